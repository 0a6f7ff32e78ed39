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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from heapq import nsmallest
from importlib import import_module
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure
from zope.interface import implementer

from socketmap_memcache.errors import ConfigurationError, Problem, TemporaryError
from socketmap_memcache.tables.indexed_file import FORMS, age_warnings, without_nul
from socketmap_memcache.tables.interface import ICursor, ISweptTable
from socketmap_memcache.tables.lookup_all import gather
from socketmap_memcache.tables.registry import TableContext
from socketmap_memcache.tables.store import (
    READ_AHEAD,
    Entry,
    Halfway,
    Kind,
    Operation,
    ReadAhead,
)
from socketmap_memcache.tables.store_cursor import StoreCursor
from socketmap_memcache.tables.store_table import StoreTable

#: The keys of a hash: table that a walk holds in memory, at most.
KEYS_AT_ONCE = 100_000

_READERS, _WRITERS = fcntl.LOCK_SH, fcntl.LOCK_EX


def open_hash(name: str, context: TableContext, create: bool = False) -> StoreTable:
    """Open ``hash:NAME``, which is the file NAME.db.

    :param create: whether to make the file if it does not exist: for a table that belongs to this service.
    :raises ConfigurationError: there is no such file, it is not a Berkeley DB hash, or the package ``berkeleydb`` is
        not installed.
    """
    store = _store("hash", name, context, create)
    return HashTable(f"hash:{name}", store, context.reactor, context.fold_keys, context.timeout)


def open_btree(name: str, context: TableContext, create: bool = False) -> StoreTable:
    """Open ``btree:NAME``, which is the file NAME.db.

    :param create: whether to make the file if it does not exist: for a table that belongs to this service.
    :raises ConfigurationError: there is no such file, it is not a Berkeley DB btree, or the package ``berkeleydb`` is
        not installed.
    """
    store = _store("btree", name, context, create)
    return StoreTable(f"btree:{name}", store, context.reactor, context.fold_keys, context.timeout)


def _store(kind: str, name: str, context: TableContext, create: bool) -> BerkeleyStore:
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
        if create:
            store.create()
        store.check()
    except BlockingIOError:
        text = "is being written and was not checked; look-ups will wait for it"
        context.warnings.append(Problem(text, path))
    except OSError as error:
        hint = f"make it with: postmap {kind}:{name}"
        if create and isinstance(error, FileNotFoundError):
            hint = "its directory does not exist"
        text = f"cannot be opened: {error.strerror} ({hint})"
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
            Kind.SOME: self._some,
        }

    def create(self) -> None:
        """Make a file with nothing in it, unless there is one, with mode 0640: all at once, and in nobody's place.

        :raises OSError: it cannot be made.
        """
        path = Path(self._path)
        if path.exists():
            return
        with TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as directory:
            new = Path(directory) / "new"
            database = self._db.DB()
            database.open(os.fspath(new), dbtype=self._type, flags=self._db.DB_CREATE, mode=0o640)
            database.close()
            with suppress(FileExistsError):  # another process of the service was faster
                os.link(new, path)

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
                found = database.stat(self._db.DB_FAST_STAT)
                if os.stat(self._path).st_size < found["pagecnt"] * found["pagesize"]:  # noqa: PTH116
                    # To the library a page of a hash that is not there has no keys.
                    raise self._db.DBError(f"the file has lost its end; make it again with: postmap {self._name}")
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

    def _after(self, database: Any, operation: Operation) -> list[Entry]:
        found = ReadAhead()
        cursor = database.cursor()
        try:
            # Of two forms of the same key the one without NUL comes first, and both are passed over.
            entry = cursor.set_range(operation.key + b"\0") if operation.key else cursor.first()
            while entry is not None and found.has_room:
                key = without_nul(entry[0])
                if key not in {operation.key, b""}:
                    found.add(key, without_nul(entry[1]))
                entry = cursor.next()
            return found.entries
        finally:
            cursor.close()

    def _keys(self, database: Any, operation: Operation) -> list[bytes]:
        keys = map(without_nul, self._all_keys(database))
        return list(dict.fromkeys(nsmallest(KEYS_AT_ONCE, (key for key in keys if key > operation.key))))

    def _some(self, database: Any, operation: Operation) -> list[bytes]:
        after = (key + end for key in operation.value.split(b"\0") for end in FORMS)
        return list(dict.fromkeys(map(without_nul, islice(self._all_keys(database, after), READ_AHEAD))))

    def _all_keys(self, database: Any, after: Iterable[bytes] = ()) -> Iterator[bytes]:
        """Give all keys, or those after the first that exists of some."""
        without_value = {"dlen": 0, "doff": 0}
        cursor = database.cursor()
        try:
            if any(cursor.set(key, **without_value) is not None for key in after):
                entry = cursor.next(**without_value)
            else:
                entry = cursor.first(**without_value)
            while entry is not None:
                yield entry[0]
                entry = cursor.next(**without_value)
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


@implementer(ISweptTable)
class HashTable(StoreTable):
    """A table in a Berkeley DB hash."""

    def cursor(self) -> ICursor:
        """See :class:`~socketmap_memcache.tables.interface.ITable`; the keys come in their own order.

        Each hundred thousand entries hold up all others for a second.
        """
        return HashCursor(self, self._reactor.seconds)

    def sweep(self) -> ICursor:
        """See :class:`~socketmap_memcache.tables.interface.ISweptTable`."""
        return SweepCursor(self)


@implementer(ICursor)
class SweepCursor:
    """Walks through a hash in its own order, some keys at a time.

    It goes on after the last of them that still exists. When the hash grows meanwhile, some may have moved. When none
    is left it begins anew: so many have been deleted then that it comes to an end all the same.
    """

    def __init__(self, table: StoreTable) -> None:
        """Begin before the first entry."""
        self._table = table
        self._ahead: deque[bytes] = deque()
        self._passed: list[bytes] = []  # the last comes first

    def next(self) -> Deferred[Entry | None]:
        """See :class:`~socketmap_memcache.tables.interface.ICursor`."""
        if self._ahead:
            return self._give(self._ahead.popleft())
        return self._table.submit(Kind.SOME, b"", b"\0".join(self._passed)).addCallback(self._go_on)

    def _go_on(self, keys: list[bytes]) -> Deferred[Entry | None] | None:
        if not keys:
            return None
        self._passed = keys[::-1]
        self._ahead.extend(keys)
        return self.next()

    def _give(self, key: bytes) -> Deferred[Entry | None]:
        value = self._table.submit(Kind.LOOKUP, key)
        return value.addCallback(lambda value: self.next() if value is None else (key, value))


class HashCursor(StoreCursor):
    """Walks through a hash, whose order changes with each update, by the order of the keys.

    It takes some keys, the least that it has not had, and asks for the values of a few when their turn comes.
    """

    def __init__(self, table: StoreTable, seconds: Callable[[], float]) -> None:
        """Begin before the first entry."""
        super().__init__(table, seconds)
        self._keys: deque[bytes] = deque()
        self._ended = False

    def read(self, key: bytes) -> Deferred[Any]:
        """See :class:`StoreCursor`."""
        while self._keys and self._keys[0] <= key:
            self._keys.popleft()
        if self._keys:
            keys = list(islice(self._keys, READ_AHEAD))
            asked = gather(self._table.submit(Kind.LOOKUP, each) for each in keys)
            return asked.addCallback(self._entries, keys)
        if self._ended:
            return succeed([])
        return self._table.submit(Kind.KEYS, key).addCallback(self._more, key)

    def _more(self, keys: list[bytes], after: bytes) -> Deferred[Any]:
        self._keys.extend(keys)
        self._ended = not keys
        return self.read(after)

    def _entries(self, values: list[bytes | Failure | None], keys: list[bytes]) -> Any:
        found = []
        for key, value in zip(keys, values, strict=True):
            if isinstance(value, Failure):
                return value
            if value is not None:
                found.append((key, value))
        return found or Halfway(keys[-1])
