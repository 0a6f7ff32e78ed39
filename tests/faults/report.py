"""What was counted while a fault lasted, and until all was well again: one row of the table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from threading import Lock
from typing import Any

import attrs

from .truth import Verdict

#: Evidence that is kept for each row.
EVIDENCE = 20

#: Seconds of lag above which a row proves nothing about times.
LARGE_LAG = 1.0


@attrs.define
class Row:
    """One fault, all rounds together.

    :ivar place: among all faults.
    :ivar limit: seconds that an answer to a look-up may take; ``policy_limit``: of a policy.
    :ivar old_limit: seconds for which a cache may have had an old value.
    :ivar ended: connections to clients that the fault itself has ended.
    :ivar look_ups: answers; ``requests``: of policies.
    :ivar longest: seconds that an answer took.
    :ivar oldest: seconds since an old value had been changed.
    :ivar lag: seconds that the tests themselves had to wait for a processor; limits of time are longer by that.
    :ivar recovery: seconds from the end of the fault to the last answer that was not as usual.
    :ivar descriptors: how many more the service has than before.
    :ivar memory: bytes.
    :ivar evidence: what was not right.
    """

    fault: str
    place: int
    limit: float
    policy_limit: float
    old_limit: float
    look_ups: int = 0
    requests: int = 0
    updates: int = 0
    verdicts: dict[str, int] = attrs.field(factory=dict)
    refused: int = 0
    ended: int = 0
    dropped: int = 0
    unanswered: int = 0
    tracebacks: int = 0
    longest: float = 0.0
    policy_longest: float = 0.0
    oldest: float = 0.0
    lag: float = 0.0
    recovery: float = 0.0
    descriptors: int = 0
    memory: int = 0
    memory_limit: int = 0
    evidence: list[str] = attrs.field(factory=list)
    _lock: Lock = attrs.field(factory=Lock, eq=False, repr=False)

    def judged(self, verdict: Verdict, seconds: float, age: float = 0.0, *, policy: bool = False, text: str) -> None:
        """Count an answer.

        :param text: says what was asked and answered.
        """
        with self._lock:
            self.verdicts[verdict.name] = self.verdicts.get(verdict.name, 0) + 1
            if policy:
                self.requests += 1
                self.policy_longest = max(self.policy_longest, seconds)
            else:
                self.look_ups += 1
                self.longest = max(self.longest, seconds)
            self.oldest = max(self.oldest, age)
            slow = seconds > (self.policy_limit if policy else self.limit)
            bad = verdict in {Verdict.MISSING, Verdict.WRONG, Verdict.LOST} or age > self.old_limit
            if (bad or slow) and len(self.evidence) < EVIDENCE:
                self.evidence.append(f"{verdict.name} after {seconds:.2f} s, {age:.2f} s old: {text}")

    def not_answered(self, how: str, text: str) -> None:
        """Count a question without an answer.

        :param how: the name of a counter: refused, dropped, unanswered.
        """
        with self._lock:
            setattr(self, how, getattr(self, how) + 1)
            if len(self.evidence) < EVIDENCE:
                self.evidence.append(f"{how}: {text}")

    def count(self, verdict: Verdict) -> int:
        return self.verdicts.get(verdict.name, 0)

    def wrong(self) -> list[str]:
        """Say which answers are not as they have to be, however slow all may be."""
        return _text(
            {
                "wrong answers": self.count(Verdict.WRONG),
                "false NOTFOUND": self.count(Verdict.MISSING),
                "lost acknowledged updates": self.count(Verdict.LOST),
            }
        )

    def problems(self) -> list[str]:
        """Say all that is not as it has to be."""
        found = {
            "connections refused": self.refused,
            f"connections dropped, above {self.ended}": _above(self.dropped, self.ended),
            "questions without an answer": self.unanswered,
            "tracebacks in the log": self.tracebacks,
            f"seconds for a look-up, above {self.limit:g}": _above(self.longest, self.limit + self.lag),
            f"seconds for a policy, above {self.policy_limit:g}": _above(
                self.policy_longest, self.policy_limit + self.lag
            ),
            f"seconds of an old value, above {self.old_limit:g}": _above(self.oldest, self.old_limit + self.lag),
            "seconds to recover, above 2": _above(self.recovery, 2 + self.lag),
            "more descriptors": max(self.descriptors, 0),
            "more bytes of memory": _above(self.memory, self.memory_limit),
            "look-ups too few": 0 if self.look_ups and self.requests else "no load",
        }
        return [*self.wrong(), *_text(found)]


def _text(found: Mapping[str, object]) -> list[str]:
    return [f"{count} {what}" for what, count in found.items() if count]


def _above(value: float, limit: float) -> float:
    return round(value, 2) if value > limit else 0


_COLUMNS = (
    *("look-ups", "policy", "updates", "failed", "wrong", "false NF", "lost", "refused", "dropped", "longest", "limit"),
    *("policy", "limit", "oldest", "recovery", "lag", "fds", "MB"),
)


def table(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Give the lines of the table.

    :param rows: the attributes of :class:`Row`, as :func:`attributes` gives them.
    """
    lines = [f"{'fault':<32}" + "".join(f"{name:>9}" for name in _COLUMNS)]
    for row in rows:
        verdicts = row["verdicts"]
        values = [
            *(row["look_ups"], row["requests"], row["updates"], verdicts.get("FAILED", 0), verdicts.get("WRONG", 0)),
            *(verdicts.get("MISSING", 0), verdicts.get("LOST", 0), row["refused"], row["dropped"]),
            *(f"{row[name]:.2f}" for name in ("longest", "limit", "policy_longest", "policy_limit", "oldest")),
            *(f"{row['recovery']:.2f}", f"{row['lag']:.2f}", f"{row['descriptors']:+d}"),
            f"{row['memory'] / 1e6:+.1f}",
        ]
        lines.append(f"{row['fault']:<32}" + "".join(f"{value:>9}" for value in values))
        if row["lag"] > LARGE_LAG:
            lines.append(f"    ^ proves nothing about times: the tests waited {row['lag']:.2f} s for a processor")
    return lines


def attributes(row: Row) -> dict[str, Any]:
    """Give a row as values that pytest can hand to another process."""
    return attrs.asdict(row, filter=lambda attribute, _: attribute.name != "_lock")
