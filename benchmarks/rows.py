"""The rows of the table that ``make bench`` prints: what was measured, and how much of it is wanted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import attrs


@attrs.frozen
class Row:
    """One figure.

    :ivar what: what it is, in words.
    :ivar value: the figure; ``None`` where it could not be measured.
    :ivar unit: comes after it, with the blank before it.
    :ivar behind: the measurements that it was made from, or why there is none.
    :ivar mark: what it has to reach; ``None`` where it is only of interest.
    :ivar aim: what is hoped for.
    :ivar at_most: whether less is better.
    """

    what: str
    value: float | None
    unit: str = ""
    behind: str = ""
    mark: float | None = None
    aim: float | None = None
    at_most: bool = False

    @property
    def verdict(self) -> str:
        """``aim`` or ``ok`` for what has reached its aim or its mark, ``MISSED``, ``skipped``; empty without a mark."""
        if self.value is None:
            return "skipped"
        if self.mark is None:
            return ""
        if not self._reaches(self.mark):
            return "MISSED"
        return "aim" if self.aim is not None and self._reaches(self.aim) else "ok"

    def record(self) -> dict[str, object]:
        """Give it for JSON."""
        return {**attrs.asdict(self), "verdict": self.verdict}

    def _reaches(self, wanted: float) -> bool:
        assert self.value is not None
        return self.value <= wanted if self.at_most else self.value >= wanted


def table(rows: Iterable[Row]) -> Iterator[str]:
    """Give the lines of the table."""
    yield f"{'':66}{'mark':>9}{'aim':>9}{'measured':>16}  "
    for row in rows:
        bound = "<= " if row.at_most else ">= "
        mark, aim = (f"{bound}{wanted:g}" if wanted is not None else "" for wanted in (row.mark, row.aim))
        measured = f"{number(row.value)}{row.unit}" if row.value is not None else "-"
        yield f"{row.what:66}{mark:>9}{aim:>9}{measured:>16}  {row.verdict:9}{row.behind}".rstrip()


def number(value: float) -> str:
    """Give a figure with as many digits as mean something."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
