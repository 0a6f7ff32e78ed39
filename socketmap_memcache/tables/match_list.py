"""``domain``: the list of the domains that a table is asked for, in the syntax that Postfix's lists share."""

from __future__ import annotations

from collections.abc import Callable

import attrs
from twisted.internet.defer import Deferred

from socketmap_memcache.config.syntax import excerpt, logical_lines, read_file, split_list
from socketmap_memcache.errors import ConfigurationError, Problem
from socketmap_memcache.tables.folding import fold
from socketmap_memcache.tables.inline import open_inline
from socketmap_memcache.tables.interface import ITable
from socketmap_memcache.tables.registry import TableContext
from socketmap_memcache.tables.texthash import open_texthash

# Postfix folds the domain but opens the tables of a list without folding, because it supposes that a database was
# folded when it was made. That shows where there was no such time: Example.COM in a text file matches nothing.
_FOLDED_WHEN_READ: dict[str, Callable[[str, TableContext, bool], ITable]] = {
    "inline": open_inline,
    "texthash": open_texthash,
}


@attrs.frozen
class _TableItem:
    table: ITable
    verdict: bool


# Names in a row, each with its verdict, are one dictionary: a list may be long, and look-ups wait for it.
_Segment = dict[bytes, bool] | _TableItem


class MatchList:
    """A list of names, ``!names``, ``/files`` of such items, and ``type:tables``; the first item that matches decides.

    A name matches itself only, in any case: not the domains below it. A table matches every name that it has, whatever
    the value. After ``!`` a match means no. Without a match the answer is no, so a list that only excludes has to end
    with ``static:all``.
    """

    def __init__(self, segments: list[_Segment]) -> None:
        self._segments = segments

    @classmethod
    def parse(cls, spec: str, context: TableContext, path: str | None = None, line: int = 0) -> MatchList:
        """Read a list, its files, and open its tables.

        :param spec: items separated by commas or blanks. Without any item nothing matches.
        :param path: with ``line``, where the list is written, for errors that have no place of their own.
        :raises ConfigurationError: a ``!`` without a pattern, a file that cannot be read or that contains itself, a
            table that cannot be opened. (Postfix starts without such a file or table and fails each look-up.)
        """
        reader = _Reader(context)
        reader.read(spec, True, path, line)
        if reader.errors:
            cls(reader.segments).close()
            raise ConfigurationError(reader.errors)
        return cls(reader.segments)

    def match_address(self, key: bytes) -> bool | Deferred[bool]:
        """Say whether a key has text before its last ``@``, and the domain after it is in the list.

        This is how Postfix applies the ``domain`` of a table. The domain may be empty, which only a table can match.

        :param key: UTF-8; any other matches nothing.
        :return: as :meth:`match` does.
        """
        local, _, domain = key.rpartition(b"@")
        return self.match(domain) if local else False

    def match(self, name: bytes) -> bool | Deferred[bool]:
        """Say whether a name is in the list.

        :param name: UTF-8, in any case; any other matches nothing.
        :return: the answer, at once where names decide it. Where a table is asked a Deferred, which fails with
            :class:`~socketmap_memcache.errors.TableError` when that table fails.
        """
        folded = fold(name)
        return False if folded is None else self._match_from(0, folded)

    def close(self) -> None:
        """Close the tables in the list."""
        for segment in self._segments:
            if isinstance(segment, _TableItem):
                segment.table.close()

    def _match_from(self, position: int, name: bytes) -> bool | Deferred[bool]:
        for index in range(position, len(self._segments)):
            segment = self._segments[index]
            if isinstance(segment, _TableItem):
                return segment.table.lookup(name).addCallback(self._answered, index, segment.verdict, name)
            verdict = segment.get(name)
            if verdict is not None:
                return verdict
        return False

    def _answered(self, value: bytes | None, index: int, verdict: bool, name: bytes) -> bool | Deferred[bool]:
        return self._match_from(index + 1, name) if value is None else verdict


@attrs.define
class _Reader:
    """Collects the items of one list, and of the files in it."""

    context: TableContext
    segments: list[_Segment] = attrs.Factory(list)
    errors: list[Problem] = attrs.Factory(list)
    _files: list[str] = attrs.Factory(list)

    def read(self, text: str, verdict: bool, path: str | None, line: int) -> None:
        """Add items.

        :param verdict: what a match of an item without ``!`` means.
        :param path: with ``line``, where the text is from.
        """
        for item in split_list(text):
            if item.startswith("#"):
                comment = "a comment after other text is not allowed; this and all after it is ignored"
                self.context.warnings.append(Problem(f"{comment}: {excerpt(item)}", path, line))
                return
            pattern = item.lstrip("!")
            means = verdict if (len(item) - len(pattern)) % 2 == 0 else not verdict
            try:
                self._add(pattern, means, path, line)
            except ConfigurationError as error:
                self.errors += [attrs.evolve(p, path=path, line=line) if p.path is None else p for p in error.problems]

    def _add(self, pattern: str, verdict: bool, path: str | None, line: int) -> None:
        if not pattern:
            raise ConfigurationError([Problem("no pattern after '!'")])
        if pattern.startswith("/"):
            self._read_file(pattern, verdict)
        elif ":" in pattern and not pattern.startswith("["):
            self.segments.append(_TableItem(self._open_table(pattern), verdict))
        else:
            name = fold(pattern.encode(errors="surrogateescape"))
            if name is None:
                ignored = f"{excerpt(pattern)} is not UTF-8 and matches nothing"
                self.context.warnings.append(Problem(ignored, path, line))
                return
            names = self.segments[-1] if self.segments else None
            if not isinstance(names, dict):
                names = {}
                self.segments.append(names)
            names.setdefault(name, verdict)

    def _read_file(self, path: str, verdict: bool) -> None:
        if path in self._files:
            raise ConfigurationError([Problem(f"the file {excerpt(path, 200)} contains itself")])
        text = read_file(path)
        self._files.append(path)
        for number, line in logical_lines(text, path, self.context.warnings):
            self.read(line.decode(errors="surrogateescape"), verdict, path, number)
        self._files.pop()

    def _open_table(self, spec: str) -> ITable:
        kind, _, name = spec.partition(":")
        if kind in _FOLDED_WHEN_READ:
            return _FOLDED_WHEN_READ[kind](name, self.context, False)
        return self.context.open_table(spec)
