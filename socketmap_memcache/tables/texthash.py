"""``texthash:/path``, a text file like postmap(1) reads, held in memory and read again when it changes."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import attrs
from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from socketmap_memcache.config.syntax import excerpt, logical_lines, split_key
from socketmap_memcache.errors import ConfigurationError, Problem
from socketmap_memcache.regular_file import open_regular
from socketmap_memcache.tables.folding import normalize, valid
from socketmap_memcache.tables.interface import ICursor, ITable
from socketmap_memcache.tables.read_only import ItemsCursor, ReadOnlyTable
from socketmap_memcache.tables.registry import TableContext

CHECK_INTERVAL = 1.0
"""Seconds: how often a table that is in use looks whether its file has changed, and how long a file must have been left
alone before it is read again, because an editor may be half done."""

LARGEST_AT_ONCE = 1024 * 1024
"""Bytes: a file of up to this size is read between two look-ups, in some 20 ms; a larger one in a thread."""

_MOST_LOGGED = 10
_KEY_END = re.compile(rb"\s")

_Stamp = tuple[int, int, int]


def open_texthash(name: str, context: TableContext, fold_keys: bool = True) -> TexthashTable:
    """Open ``texthash:/path``. Lines that Postfix would skip become warnings in the context.

    :param fold_keys: whether upper and lower case are the same; Postfix's own programs all have it so, but for the
        tables in a list of domains.
    :raises ConfigurationError: the file cannot be read.
    """
    if not name:
        raise ConfigurationError([Problem("texthash: needs the path of a file")])
    fold_keys = fold_keys and context.fold_keys
    content = read(name, fold_keys)
    context.warnings += content.warnings
    return TexthashTable(name, content, fold_keys)


@attrs.frozen
class Content:
    """What a file held at one time.

    :ivar stamp: tells whether the file is still the same; ``None`` if it changed while it was read.
    """

    entries: dict[bytes, bytes]
    warnings: list[Problem]
    stamp: _Stamp | None


def read(path: str, fold_keys: bool) -> Content:
    """Read a file.

    :raises ConfigurationError: it cannot be read.
    """
    try:
        with open_regular(path) as file:
            before = _stamp(os.fstat(file.fileno()))
            text = file.read()
            after = _stamp(os.fstat(file.fileno()))
    except OSError as error:
        raise ConfigurationError([Problem(f"cannot be read: {error.strerror}", path)]) from error
    warnings: list[Problem] = []
    return Content(parse(text, path, fold_keys, warnings), warnings, after if before == after else None)


def parse(text: bytes, path: str, fold_keys: bool, warnings: list[Problem]) -> dict[bytes, bytes]:
    """Return the entries of a source file of postmap(1), with the keys folded if they are to be.

    Lines that are not ``key whitespace value`` or not UTF-8 are skipped with a warning, as Postfix does. Of equal keys
    the first counts, also with a warning.
    """
    entries: dict[bytes, bytes] = {}
    for number, line in logical_lines(text, path, warnings):
        try:
            key, value = _split(line)
        except ValueError as error:
            warnings.append(Problem(f'{error}; ignored: "{excerpt(line)}"', path, number))
            continue
        if key.endswith(b":"):
            warnings.append(Problem('this is in "key: value" format; is it an alias file?', path, number))
        normalized = normalize(key, fold_keys) or b""
        if normalized in entries:
            warnings.append(Problem(f'duplicate entry: "{excerpt(key)}"; the first one counts', path, number))
        else:
            entries[normalized] = value
    return entries


def _split(line: bytes) -> tuple[bytes, bytes]:
    if not valid(line):
        raise ValueError("non-UTF-8 input")
    key, value = split_key(line, _KEY_END)
    value = value.strip()
    if not key or not value:
        raise ValueError("expected format: key whitespace value")
    return key, value


@implementer(ITable)
class TexthashTable(ReadOnlyTable):
    """Has the keys that its file holds.

    A change is noticed at a look-up, and counts some two seconds later at most. When the file cannot be read any more
    the old content stays, and that is logged once.
    """

    _log = Logger()

    def __init__(
        self,
        path: str,
        content: Content,
        fold_keys: bool = True,
        clock: Callable[[], float] = time.time,
        in_thread: Callable[..., Deferred[Content]] = deferToThread,
    ) -> None:
        """Serve content that was read before.

        :param clock: the seconds since the epoch, to be compared with the time of the last change of the file.
        :param in_thread: calls a function with arguments in a thread.
        """
        self.name = f"texthash:{path}"
        self._path = Path(path)
        self._fold_keys = fold_keys
        self._clock = clock
        self._in_thread = in_thread
        self._checked = clock()
        self._entries = content.entries
        # Somebody may be writing to a file that is as young as this: it is read once more when it has cooled down.
        self._stamp = None if content.stamp is None or self._is_hot(content.stamp) else content.stamp
        self._reading = False
        self._complaint = ""

    def lookup(self, key: bytes) -> Deferred[bytes | None]:
        """See :class:`ITable`."""
        if not 0 <= self._clock() - self._checked < CHECK_INTERVAL:  # below 0: the clock was set back
            self._checked = self._clock()
            self._check()
        normalized = normalize(key, self._fold_keys)
        return defer.succeed(None if normalized is None else self._entries.get(normalized))

    def cursor(self) -> ICursor:
        """See :class:`ITable`."""
        return ItemsCursor(list(self._entries.items()))

    def close(self) -> None:
        """See :class:`ITable`."""

    def _check(self) -> None:
        """Read the file if it changed, but not while it still changes."""
        try:
            status = self._path.stat()
        except OSError as error:
            self._complain(f"{self._path}: cannot be read: {error.strerror}")
            return
        stamp = _stamp(status)
        if stamp == self._stamp:
            self._complaint = ""
        elif not self._reading and not self._is_hot(stamp):
            self._reading = True
            read_it = defer.maybeDeferred if status.st_size <= LARGEST_AT_ONCE else self._in_thread
            reading = read_it(read, str(self._path), self._fold_keys)
            reading.addCallbacks(self._take, self._keep_old)

    def _is_hot(self, stamp: _Stamp) -> bool:
        return 0 <= self._clock() - stamp[0] / 1e9 < CHECK_INTERVAL

    def _take(self, content: Content) -> None:
        self._reading = False
        if content.stamp is None or self._is_hot(content.stamp):  # it may be a while since the file was looked at
            return  # the next check tries again
        self._entries = content.entries
        self._stamp = content.stamp
        self._complaint = ""
        self._log.info("{table}: read again, {count} entries", table=self.name, count=len(content.entries))
        for problem in content.warnings[:_MOST_LOGGED]:
            self._log.warn("{problem}", problem=str(problem))
        if len(content.warnings) > _MOST_LOGGED:
            self._log.warn("{path}: and {count} more", path=str(self._path), count=len(content.warnings) - _MOST_LOGGED)

    def _keep_old(self, failure: Failure) -> None:
        self._reading = False
        self._complain(failure.getErrorMessage())

    def _complain(self, reason: str) -> None:
        if reason != self._complaint:
            self._complaint = reason
            self._log.error("{reason}; the old content of {table} stays in use", reason=reason, table=self.name)


def _stamp(status: os.stat_result) -> _Stamp:
    """Return what tells one state of a file from another; the first item is the time of the last change."""
    return status.st_mtime_ns, status.st_size, status.st_ino
