"""``hash:`` and ``btree:``, the Berkeley DB files that postmap(1) makes, for reading and writing beside Postfix.

Postfix's rules hold: the file is NAME.db; keys and values end in a NUL, unless postmap ran with ``-n``; whoever reads
holds a shared flock(2) on the file, whoever writes an exclusive one. Nobody has a cache in common with others, so the
file is opened for each batch of operations, which costs 0.1 ms, and closed before the lock is given back. What postmap
and other processes do to the file in between, in place or by a new file, is then never missed.

An update is on the disk when it is acknowledged. More than that Berkeley DB cannot promise the way Postfix uses it,
without a log: a writer that is killed, or a disk that is full, in the middle of writing may leave a file that is
damaged as a whole, updates acknowledged before included. Such a file has to be made again with postmap. Use ``lmdb:``
where that matters. Berkeley DB 5.3 also fails to find some keys of a hash that was made with ``-n`` and has keys of
more than 1,000 bytes; Postfix does not find them either. An entry cannot have a time to live: the ``ttl`` of an update
is ignored.

The package ``berkeleydb``, built against Berkeley DB 5.3, is imported when such a table is opened.
"""

from __future__ import annotations

import fcntl
import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from heapq import nsmallest
from importlib import import_module
from typing import Any

from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer

from socketmap_memcache.errors import ConfigurationError, Problem, TemporaryError
from socketmap_memcache.tables.indexed_file import FORMS, age_warnings, without_nul
from socketmap_memcache.tables.interface import ICursor
from socketmap_memcache.tables.registry import TableContext
from socketmap_memcache.tables.store import Kind, Operation, StoreTable

#: The keys of a hash: table that a walk holds in memory, at most.
KEYS_AT_ONCE = 100_000

_READERS, _WRITERS = fcntl.LOCK_SH, fcntl.LOCK_EX


def open_hash(name: str, context: TableContext) -> StoreTable:
    """Open ``hash:NAME``, which is the file NAME.db.

    :raises ConfigurationError: there is no such file (none is made), it is not a Berkeley DB hash, or the package
        ``berkeleydb`` is not installed.
    """
    return HashTable(f"hash:{name}", _store("hash", name, context), context.reactor, context.fold_keys, context.timeout)


def open_btree(name: str, context: TableContext) -> StoreTable:
    """Open ``btree:NAME``, which is the file NAME.db.

    :raises ConfigurationError: there is no such file (none is made), it is not a Berkeley DB btree, or the package
        ``berkeleydb`` is not installed.
    """
    return StoreTable(
        f"btree:{name}", _store("btree", name, context), context.reactor, context.fold_keys, context.timeout
    )


def _store(kind: str, name: str, context: TableContext) -> BerkeleyStore:
    if not name:
        raise ConfigurationError([Problem(f"{kind}: needs the path of a file")])
    path = f"{name}.db"
    try:
        library = import_module("berkeleydb.db")
    except ImportError as error:
        text = (
            f"a {kind}: table needs the Python package berkeleydb ({error}); with the headers of Berkeley DB 5.3 "
            "(libdb5.3-dev on Debian): pip install 'socketmap-memcache[berkeleydb]'"
        )
        raise ConfigurationError([Problem(text, path)]) from error
    store = BerkeleyStore(kind, name, library)
    try:
        store.check()
    except BlockingIOError:
        text = "is being written and was not checked; look-ups will wait for it"
        context.warnings.append(Problem(text, path))
    except OSError as error:
        text = f"cannot be opened: {error.strerror} (make it with: postmap {kind}:{name})"
        raise ConfigurationError([Problem(text, path)]) from error
    except library.DBError as error:
        raise ConfigurationError([Problem(f"is not a usable {kind}: file: {error.args[-1]}", path)]) from error
    context.warnings += age_warnings(name, path)
    return store


class BerkeleyStore:
    """The blocking side of a table in a Berkeley DB file; see :class:`~socketmap_memcache.tables.store.Store`.

    Nothing is held between two calls.
    """

    def __init__(self, kind: str, name: str, library: Any) -> None:
        """Make a store; the file is not touched.

        :param kind: ``hash`` or ``btree``.
        :param name: the path without ``.db``.
        :param library: the module ``berkeleydb.db``.
        """
        self._name = f"{kind}:{name}"
        self._path = os.path.abspath(f"{name}.db")  # noqa: PTH100 (a string, for the library)
        self._db = library
        self._type = library.DB_HASH if kind == "hash" else library.DB_BTREE
        self._do = {
            Kind.LOOKUP: self._lookup,
            Kind.UPDATE: self._update,
            Kind.DELETE: self._delete,
            Kind.AFTER: self._after,
            Kind.KEYS: self._keys,
        }

    def check(self) -> None:
        """Open the file once.

        :raises OSError: it cannot be opened; BlockingIOError: somebody is writing to it.
        :raises berkeleydb.db.DBError: it has not the right format.
        """
        with self._locked(_READERS | fcntl.LOCK_NB), self._opened(_READERS):
            pass

    def execute(self, operations: Sequence[Operation]) -> Sequence[object]:
        """Do the operations under one lock; see :class:`~socketmap_memcache.tables.store.Store`."""
        writes = any(operation.kind in {Kind.UPDATE, Kind.DELETE} for operation in operations)
        lock = _WRITERS if writes else _READERS
        try:
            with self._locked(lock), self._opened(lock) as database:
                results = [
                    None if operation.given_up else self._do[operation.kind](database, operation)
                    for operation in operations
                ]
                if writes:
                    database.sync()
        except OSError as error:
            raise TemporaryError(f"{self._name}: cannot be opened: {error.strerror}") from error
        except self._db.DBError as error:
            raise TemporaryError(f"{self._name}: {error.args[-1]}") from error
        return results

    def close(self) -> None:
        """Do nothing; see :class:`~socketmap_memcache.tables.store.Store`."""

    @contextmanager
    def _locked(self, lock: int) -> Iterator[None]:
        """Hold a flock(2) on the file that has the name now, and not on one whose place it has taken."""
        while True:
            descriptor = os.open(self._path, os.O_RDWR if lock == _WRITERS else os.O_RDONLY)
            try:
                fcntl.flock(descriptor, lock)
                if os.path.samestat(os.fstat(descriptor), os.stat(self._path)):  # noqa: PTH116
                    yield
                    return
            finally:
                os.close(descriptor)

    @contextmanager
    def _opened(self, lock: int) -> Iterator[Any]:
        # With a home of its own, as Postfix has it, the library does not read ./DB_CONFIG.
        environment = self._db.DBEnv()
        try:
            home = os.path.dirname(self._path)  # noqa: PTH120
            environment.open(home, self._db.DB_INIT_MPOOL | self._db.DB_CREATE | self._db.DB_PRIVATE)
            database = self._db.DB(environment)
            try:
                database.open(self._path, dbtype=self._type, flags=0 if lock == _WRITERS else self._db.DB_RDONLY)
                yield database
            finally:
                database.close(self._db.DB_NOSYNC)  # what was done is synced; what failed better stays undone
        finally:
            environment.close()

    def _lookup(self, database: Any, operation: Operation) -> bytes | None:
        stored = self._find(database, operation.key)
        return None if stored is None else without_nul(stored[1])

    def _update(self, database: Any, operation: Operation) -> bool:
        found = self._find(database, operation.key) or self._first(database)
        end = b"" if found is not None and not found[0].endswith(b"\0") else b"\0"
        database.put(operation.key + end, operation.value + end)
        return True

    def _delete(self, database: Any, operation: Operation) -> bool:
        deleted = False
        while (stored := self._find(database, operation.key)) is not None:
            database.delete(stored[0])
            deleted = True
        return deleted

    def _after(self, database: Any, operation: Operation) -> tuple[bytes, bytes] | None:
        cursor = database.cursor()
        try:
            # Of two forms of the same key the one without NUL comes first, and both are passed over.
            entry = cursor.set_range(operation.key + b"\0") if operation.key else cursor.first()
            while entry is not None and without_nul(entry[0]) in {operation.key, b""}:
                entry = cursor.next()
            return None if entry is None else (without_nul(entry[0]), without_nul(entry[1]))
        finally:
            cursor.close()

    def _keys(self, database: Any, operation: Operation) -> list[bytes]:
        keys = map(without_nul, self._all_keys(database))
        return list(dict.fromkeys(nsmallest(KEYS_AT_ONCE, (key for key in keys if key > operation.key))))

    def _all_keys(self, database: Any) -> Iterator[bytes]:
        cursor = database.cursor()
        try:
            entry = cursor.first(dlen=0, doff=0)  # without the values
            while entry is not None:
                yield entry[0]
                entry = cursor.next(dlen=0, doff=0)
        finally:
            cursor.close()

    def _find(self, database: Any, key: bytes) -> tuple[bytes, bytes] | None:
        """Return the entry as it is stored."""
        for end in FORMS:
            value = database.get(key + end)
            if value is not None:
                return key + end, value
        return None

    def _first(self, database: Any) -> tuple[bytes, bytes] | None:
        cursor = database.cursor()
        try:
            entry: tuple[bytes, bytes] | None = cursor.first()
        finally:
            cursor.close()
        return entry


class HashTable(StoreTable):
    """A table in a Berkeley DB hash."""

    def cursor(self) -> ICursor:
        """See :class:`~socketmap_memcache.tables.interface.ITable`; the keys come in their own order."""
        return HashCursor(self)


@implementer(ICursor)
class HashCursor:
    """Walks through a hash, whose order changes with each update, by the order of the keys.

    It takes some keys, the least that it has not had, and asks for the value of each when its turn comes.
    """

    def __init__(self, table: StoreTable) -> None:
        """Begin before the first entry."""
        self._table = table
        self._keys: deque[bytes] = deque()
        self._last = b""
        self._ended = False

    def next(self) -> Deferred[tuple[bytes, bytes] | None]:
        """See :class:`ICursor`."""
        if self._keys:
            self._last = self._keys.popleft()
            return self._table.submit(Kind.LOOKUP, self._last).addCallback(self._entry, self._last)
        if self._ended:
            return succeed(None)
        return self._table.submit(Kind.KEYS, self._last).addCallback(self._take)

    def _entry(self, value: bytes | None, key: bytes) -> Any:
        return self.next() if value is None else (key, value)

    def _take(self, keys: list[bytes]) -> Any:
        self._keys.extend(keys)
        self._ended = not keys
        return self.next()
