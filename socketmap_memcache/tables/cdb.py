"""``cdb:``, the constant databases that postmap(1) makes.

The format (cr.yp.to/cdb/cdb.txt): 256 pairs of a position and a number of slots; the records, each the lengths of key
and value and then both; 256 hash tables, whose slots are pairs of a hash value and the position of a record. All
numbers have 32 bits, least significant byte first.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable

from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger
from zope.interface import implementer

from socketmap_memcache.errors import ConfigurationError, Problem, TemporaryError
from socketmap_memcache.tables.folding import normalize
from socketmap_memcache.tables.indexed_file import FORMS, age_warnings, stamp, without_nul
from socketmap_memcache.tables.interface import ICursor, ITable
from socketmap_memcache.tables.read_only import ReadOnlyTable
from socketmap_memcache.tables.registry import TableContext

#: Seconds: how often a table that is in use looks whether its file has been replaced.
CHECK_INTERVAL = 1.0

_HEADER = struct.Struct("<512I")
_PAIR = struct.Struct("<II")
_HASH_START = 5381
_SLOTS_AT_ONCE = 8  # postmap's tables are half empty: one read finds nearly every key's slot


def open_cdb(name: str, context: TableContext) -> CdbTable:
    """Open ``cdb:NAME``, which is the file NAME.cdb.

    :raises ConfigurationError: the file cannot be read, or is not a constant database.
    """
    if not name:
        raise ConfigurationError([Problem("cdb: needs the path of a file")])
    path = f"{name}.cdb"
    try:
        file = CdbFile(path)
    except OSError as error:
        text = f"cannot be opened: {error.strerror} (make it with: postmap cdb:{name})"
        raise ConfigurationError([Problem(text, path)]) from error
    except CorruptError as error:
        raise ConfigurationError([Problem(str(error), path)]) from error
    context.warnings += age_warnings(name, path)
    return CdbTable(name, file, context.fold_keys)


class CorruptError(ValueError):
    """A file is not what the format says."""


class CdbFile:
    """An open file, as it was when it was opened; it is closed when nobody refers to it any more.

    It is read and not mapped: a mapped file that somebody cuts short ends the process. Both cost the same here.
    """

    def __init__(self, path: str) -> None:
        """Open it and read its header.

        :raises OSError: it cannot be read.
        :raises CorruptError: it is no constant database.
        """
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # non-blocking: it may be a pipe
        status = os.fstat(self._descriptor)
        self.stamp = stamp(status)
        self._size = status.st_size
        header = _HEADER.unpack(self._read(0, _HEADER.size))
        self._tables = list(zip(header[::2], header[1::2], strict=True))
        self.begin = _HEADER.size
        self.end = header[0]  # the first hash table follows the last record
        for position, slots in self._tables:
            if not self.begin <= self.end <= position <= self._size - slots * _PAIR.size:
                raise CorruptError("is not a constant database, or not all of one")

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):  # it could be opened
            os.close(self._descriptor)

    def find(self, key: bytes) -> bytes | None:
        """Return the value of the first record with this key, or ``None``.

        :raises OSError: the file cannot be read.
        :raises CorruptError: what has to be read for the answer makes no sense.
        """
        hashed = _HASH_START
        for byte in key:
            hashed = (hashed * 33 & 0xFFFFFFFF) ^ byte
        table, slots = self._tables[hashed % 256]
        first = (hashed >> 8) % slots if slots else 0
        slot, seen = first, 0
        while seen < slots:
            count = min(_SLOTS_AT_ONCE, slots - slot, slots - seen)
            for slot_hash, position in _PAIR.iter_unpack(self._read(table + slot * _PAIR.size, count * _PAIR.size)):
                if not position:
                    return None
                if slot_hash == hashed:
                    found, value, _ = self.record(position)
                    if found == key:
                        return value
            seen += count
            slot = (slot + count) % slots
        return None

    def check_unchanged(self) -> None:
        """Make sure that what was read, or not found, is what the file says.

        :raises OSError: the file cannot be asked.
        :raises CorruptError: somebody has written to the file (cp does, where mv would not) since its header was read.
        """
        if stamp(os.fstat(self._descriptor)) != self.stamp:
            raise CorruptError("has been overwritten in place")

    def record(self, position: int) -> tuple[bytes, bytes, int]:
        """Return the key, the value, and where the next record begins.

        :raises OSError: the file cannot be read.
        :raises CorruptError: there is no record.
        """
        begin = position + _PAIR.size
        if position < self.begin or begin > self.end:
            raise CorruptError("is corrupt: a record is out of place")
        key_size, value_size = _PAIR.unpack(self._read(position, _PAIR.size))
        end = begin + key_size + value_size
        if end > self.end:
            raise CorruptError("is corrupt: a record is too long")
        both = self._read(begin, key_size + value_size)
        return both[:key_size], both[key_size:], end

    def _read(self, position: int, size: int) -> bytes:
        data = os.pread(self._descriptor, size, position)
        if len(data) < size:
            raise CorruptError("is not a constant database, or not all of one")
        return data


@implementer(ITable)
class CdbTable(ReadOnlyTable):
    """The records of a constant database; of a file that takes its place within a second.

    A file that has gone, or was replaced by one that cannot be used, is logged, and the old one stays in use. Reading
    happens at once: two or three short reads of a file that is in the system's cache.
    """

    _log = Logger()

    def __init__(
        self, name: str, file: CdbFile, fold_keys: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Make a table.

        :param name: the path without ``.cdb``.
        :param fold_keys: whether keys are folded before the look-up, as postmap folded them when it made the file.
        :param clock: gives the time in seconds.
        """
        self.name = f"cdb:{name}"
        self._path = f"{name}.cdb"
        self._file = file
        self._fold_keys = fold_keys
        self._clock = clock
        self._checked = clock()
        self._complaint = ""

    def lookup(self, key: bytes) -> Deferred[bytes | None]:
        """See :class:`ITable`."""
        normalized = normalize(key, self._fold_keys)
        if not normalized or b"\0" in normalized:
            return succeed(None)
        file = self._current_file()
        try:
            values = (file.find(normalized + end) for end in FORMS)
            value = next((value for value in values if value is not None), None)
            file.check_unchanged()
        except (OSError, CorruptError) as error:
            return fail(TemporaryError(f"{self.name}: {error}"))
        return succeed(None if value is None else without_nul(value))

    def cursor(self) -> ICursor:
        """See :class:`ITable`; the walk stays in the file of its beginning, in the order of the source."""
        return CdbCursor(self.name, self._current_file())

    def close(self) -> None:
        """Do nothing, because nothing is under way; see :class:`ITable`. The file is closed with the table's end."""

    def _current_file(self) -> CdbFile:
        now = self._clock()
        if now - self._checked >= CHECK_INTERVAL:
            self._checked = now
            self._check()
        return self._file

    def _check(self) -> None:
        try:
            if stamp(os.stat(self._path)) != self._file.stamp:  # noqa: PTH116
                self._file = CdbFile(self._path)
                self._log.info("{table}: opened again", table=self.name)
            self._complaint = ""
        except (OSError, CorruptError) as error:
            reason = str(error)
            if reason != self._complaint:
                self._complaint = reason
                self._log.error(
                    "{path}: {reason}; the old content of {table} stays in use",
                    path=self._path,
                    reason=reason,
                    table=self.name,
                )


@implementer(ICursor)
class CdbCursor:
    """Walks through the records in the order of the file."""

    def __init__(self, name: str, file: CdbFile) -> None:
        """:param name: the table's name, for errors."""
        self._name = name
        self._file = file
        self._position = file.begin

    def next(self) -> Deferred[tuple[bytes, bytes] | None]:
        """See :class:`ICursor`."""
        if self._position >= self._file.end:
            return succeed(None)
        try:
            key, value, position = self._file.record(self._position)
            self._file.check_unchanged()
        except (OSError, CorruptError) as error:
            return fail(TemporaryError(f"{self._name}: {error}"))
        self._position = position
        return succeed((without_nul(key), without_nul(value)))
