"""``lmdb:/path``, the LMDB file /path.lmdb, for reading and writing beside Postfix and beside other processes.

The file is what ``postmap lmdb:/path`` makes: keys and values end in a NUL, unless postmap ran with ``-n``. An update
is on the disk when it is acknowledged, and a process that is killed at any moment leaves a file that is whole.

**Time to live.** An entry with a ttl has its end in the same value, after the NUL:
``value NUL expires=1795288664.250 NUL``, in seconds since the epoch. No value of Postfix's has anything after its first
NUL, and Postfix reads a value up to there. So Postfix reads such an entry too, but does not know that it ends: a table
that gets updates with a ttl is for this service alone. Here an entry whose time is over does not exist; a walk through
the table deletes it.

**A table that this service updates must not be made anew or extended (-i) with postmap at the same time.** postmap
looks at the file before it locks it, and what others write in between is lost; under load the file may be damaged. That
is so between Postfix's own programs too. To add entries ask this service; to make the table anew, make it under another
name and rename the file: this service goes over to it with its next operation. ``postmap -q``, ``-s`` and ``-d``, and
Postfix's daemons, do no harm at any time, and a table that is only read here may be made anew at any time.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from socketmap_memcache.errors import ConfigurationError, Problem, TableError, TemporaryError
from socketmap_memcache.tables.indexed_file import FORMS, age_warnings, without_nul
from socketmap_memcache.tables.interface import RefusedError
from socketmap_memcache.tables.lmdb_file import ReplacedError, Transaction, acquire, release
from socketmap_memcache.tables.registry import TableContext
from socketmap_memcache.tables.store import Entry, Halfway, Kind, Operation, ReadAhead
from socketmap_memcache.tables.store_table import StoreTable

#: Bytes of a key, its NUL included: LMDB's limit.
KEY_LIMIT = 511

#: Entries whose time is over that a walk passes over, and deletes, at once, at most: others wait for that.
PURGE_LIMIT = 100

_CHANGES = (Kind.UPDATE, Kind.DELETE)
_LONGEST_TTL = 1000 * 365 * 24 * 60 * 60
_END = re.compile(rb"\0expires=(\d+\.\d+)\0", re.ASCII)


def open_lmdb(name: str, context: TableContext, create: bool = False) -> StoreTable:
    """Open ``lmdb:/path``, which is the file /path.lmdb.

    :param create: whether to make the file if it does not exist, with mode 0640: for a table that belongs to this
        service. Postfix does not do so for a table that is looked up, nor for the backup of memcache_table(5).
    :raises ConfigurationError: there is no such file, or it is not one of LMDB's.
    """
    if not name:
        raise ConfigurationError([Problem("lmdb: needs the path of a file, without .lmdb")])
    path = Path(os.path.abspath(f"{name}.lmdb"))  # noqa: PTH100 (as the kernel resolves it, whatever it links to)
    store = LmdbStore(f"lmdb:{name}", path, create)
    context.warnings += age_warnings(name, os.fspath(path))
    return StoreTable(f"lmdb:{name}", store, context.reactor, context.fold_keys, context.timeout)


def pack(value: bytes, nul: bytes, end: float | None) -> bytes:
    """Return a value as it is stored.

    :param nul: what follows keys and values in this file: a NUL or nothing.
    :param end: when the entry ends, in seconds since the epoch; ``None`` if never.
    """
    return value + nul if end is None else b"%s\0expires=%.3f\0" % (value, end)


def has_ended(stored: bytes, now: float) -> bool:
    """Return whether the time of an entry is over, given its value as it is stored."""
    position = stored.find(b"\0")
    if position in {-1, len(stored) - 1}:
        return False
    match = _END.fullmatch(stored, position)
    return match is not None and float(match[1]) <= now


class LmdbStore:
    """The blocking side of a table; see :class:`~socketmap_memcache.tables.store.Store`."""

    def __init__(self, name: str, path: Path, create: bool = False, clock: Callable[[], float] = time.time) -> None:
        """Open the file.

        :param name: the table's, for errors.
        :param path: absolute.
        :param clock: gives the seconds since the epoch: what is stored is read after the next start.
        :raises ConfigurationError: it cannot be opened.
        """
        self._name = name
        self._path = path
        self._clock = clock
        self._file = acquire(path, create)
        self._attached = True
        self._nul = b""  # what follows keys and values, in the transaction under way
        self._ended: list[bytes] = []  # keys of entries that a walk has come across
        self._do = {
            Kind.LOOKUP: self._lookup,
            Kind.UPDATE: self._update,
            Kind.DELETE: self._delete,
            Kind.AFTER: self._after,
        }

    def execute(self, operations: Sequence[Operation]) -> Sequence[object]:
        """Do the operations in one transaction; see :class:`~socketmap_memcache.tables.store.Store`."""
        changes = [operation.kind in _CHANGES for operation in operations]
        if not any(changes):
            results = self._transact(operations, write=False)
        else:
            try:
                results = self._transact(operations, write=True)
            except TableError as error:
                # A file that cannot be written, because the disk is full, say, can still be read.
                others = [operation for operation, change in zip(operations, changes, strict=True) if not change]
                read = iter(self._transact(others, write=False) if others else [])
                results = [error if change else next(read) for change in changes]
        if self._ended:
            ends = any(each.kind is Kind.AFTER and found == [] for each, found in zip(operations, results, strict=True))
            if ends or len(self._ended) >= PURGE_LIMIT:
                self._purge()
        return results

    def close(self) -> None:
        """Give the file back."""
        if self._attached:
            self._attached = False
            release(self._file)

    def _transact(self, operations: Sequence[Operation], write: bool) -> Sequence[object]:
        def work(transaction: Transaction) -> list[object]:
            if write:
                self._nul = _usual_form(transaction)
            # There may have been a wait for the lock. An update that nobody waits for any more is not made.
            results: list[object] = [
                None if each.given_up else self._do[each.kind](transaction, each) for each in operations
            ]
            if write:
                self._delete_ended(transaction)  # here it takes no time for the disk of its own
            return results

        with suppress(OSError):  # the privilege to come to it may have been given up since
            if self._attached and not self._file.has_name(self._path):
                self.close()
        if not self._attached:
            self._attach()
        try:
            return self._file.transact(work, write)
        except ReplacedError:
            self.close()
            self._attach()
        try:
            return self._file.transact(work, write)
        except ReplacedError:
            raise TemporaryError(f"{self._path}: is being replaced") from None

    def _attach(self) -> None:
        try:
            self._file = acquire(self._path)
        except ConfigurationError as error:
            raise TemporaryError(str(error)) from error
        self._attached = True

    def _lookup(self, transaction: Transaction, operation: Operation) -> bytes | None:
        for key in _stored_forms(operation.key):
            stored = transaction.get(key)
            if stored is not None:
                return None if has_ended(stored, self._clock()) else without_nul(stored)
        return None

    def _update(self, transaction: Transaction, operation: Operation) -> bool | TableError:
        nul = self._nul
        key = operation.key + nul
        if len(key) > KEY_LIMIT:
            limit = KEY_LIMIT - len(nul)
            return RefusedError(f"{self._name}: a key of {len(operation.key)} bytes cannot be stored, only {limit}")
        end = None if operation.ttl is None else self._clock() + min(operation.ttl, _LONGEST_TTL)
        for other in _stored_forms(operation.key):
            if other != key:
                transaction.delete(other)
        transaction.put(key, pack(operation.value, nul, end))
        return True

    def _delete(self, transaction: Transaction, operation: Operation) -> bool:
        existed = self._lookup(transaction, operation) is not None
        for key in _stored_forms(operation.key):
            transaction.delete(key)
        return existed

    def _after(self, transaction: Transaction, operation: Operation) -> list[Entry] | Halfway:
        now = self._clock()
        found = ReadAhead()
        passed = 0
        with transaction.cursor() as cursor:
            # Beyond all forms of the last key; no key of Postfix's has a byte below 1.
            more = cursor.set_range(operation.key + b"\x01")
            while more and found.has_room:
                key, stored = cursor.item()
                if has_ended(stored, now):
                    if len(self._ended) < PURGE_LIMIT:
                        self._ended.append(key)
                    passed += 1
                    if passed >= PURGE_LIMIT:
                        return found.entries or Halfway(without_nul(key))
                else:
                    found.add(without_nul(key), without_nul(stored))
                more = cursor.next()
        return found.entries

    def _purge(self) -> None:
        """Delete what has ended; if that cannot be done, another walk will."""
        with suppress(TableError, ReplacedError):
            self._file.transact(self._delete_ended, write=True)
        self._ended.clear()

    def _delete_ended(self, transaction: Transaction) -> None:
        now = self._clock()
        for key in self._ended:
            stored = transaction.get(key)
            if stored is not None and has_ended(stored, now):  # it may have been updated meanwhile
                transaction.delete(key)
        self._ended.clear()


def _stored_forms(key: bytes) -> list[bytes]:
    """Return what a key may look like in a file; nothing for a key that is too long for one."""
    return [key + end for end in FORMS] if len(key) < KEY_LIMIT else [key] if len(key) == KEY_LIMIT else []


def _usual_form(transaction: Transaction) -> bytes:
    """Return what follows the keys and values of this file."""
    with transaction.cursor() as cursor:
        return b"" if cursor.first() and not cursor.key().endswith(b"\0") else b"\0"
