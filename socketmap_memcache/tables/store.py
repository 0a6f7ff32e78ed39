"""Tables whose store blocks: a thread for each, which takes all that waits as one batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from enum import Enum
from threading import Condition, Thread
from typing import Any, NamedTuple
from typing import Protocol as Structure

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from socketmap_memcache.errors import LookupTimeout, TableError, TemporaryError
from socketmap_memcache.tables.folding import normalize
from socketmap_memcache.tables.interface import ICursor, ITable, RefusedError, check_ttl, check_value, writable_key

#: Seconds that an operation may take, waiting for its turn included.
STORE_TIMEOUT = 10.0

#: Seconds between two steps of a walk that passes over much.
BREAK = 0.02

#: Operations that are given to a store at once, at most.
BATCH_LIMIT = 1000

#: Entries, and bytes, that a walk reads ahead, about.
READ_AHEAD = 100
READ_AHEAD_SIZE = 64 * 1024

#: Seconds after which a walk reads again what it has read ahead: other processes may have changed it.
READ_AHEAD_TIME = 1.0


class Kind(Enum):
    """What is asked of a store."""

    LOOKUP = "lookup"  # the result is the value, or None
    UPDATE = "update"  # True
    DELETE = "delete"  # whether the key was there
    AFTER = "after"  # some entries, the next after the key in the store's order (b"": the first); none; or Halfway
    KEYS = "keys"  # some keys, the next ones after the key, in byte order: for a store whose own order changes
    SOME = "some"  # some keys in its own order, after the first that exists of those in the value (NUL between them)


class Halfway(NamedTuple):
    """In place of the entries after a key: so much had to be passed over that it is better done in steps.

    :ivar key: how far it was; the entries that were asked for come after it.
    """

    key: bytes


Entry = tuple[bytes, bytes]


class ReadAhead:
    """As many entries as a store should give for ``AFTER``: at least one, if there is one.

    :ivar entries: what has been added.
    :ivar has_room: whether there should be more.
    """

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.has_room = True
        self._size = 0

    def add(self, key: bytes, value: bytes) -> None:
        """Add an entry, unless it has the key of the last: that is another form of the same."""
        if not self.entries or self.entries[-1][0] != key:
            self.entries.append((key, value))
            self._size += len(key) + len(value)
            self.has_room = len(self.entries) < READ_AHEAD and self._size < READ_AHEAD_SIZE


class Operation:
    """One thing asked of a store.

    :ivar ttl: seconds that an update is to live, or ``None`` for ever.
    :ivar deadline: when it is given up, in reactor seconds.
    """

    __slots__ = ("deadline", "done", "key", "kind", "ttl", "value")

    def __init__(self, kind: Kind, key: bytes, value: bytes, ttl: int | None, deadline: float) -> None:
        self.kind = kind
        self.key = key
        self.value = value
        self.ttl = ttl
        self.deadline = deadline
        self.done: Deferred[Any] = Deferred()

    @property
    def given_up(self) -> bool:
        """Whether nobody waits for the result any more, and it need not be done. May be asked in any thread.

        A store that had to wait, for a lock say, asks before it changes anything.
        """
        return bool(self.done.called)


class Store(Structure):
    """The blocking side of a table. Its methods are called in one thread, one at a time."""

    def execute(self, operations: Sequence[Operation]) -> Sequence[object]:
        """Do the operations in their order, in as few transactions as possible.

        :return: a result for each, or a :class:`TableError` in its place; anything at all for one that is given up.
            What is reported as done is on the disk.
        :raises TableError: all of them have failed.
        """

    def close(self) -> None:
        """Give back what the store holds."""


@implementer(ITable)
class StoreTable:
    """A table over a store that blocks.

    An operation that is not done within the time limit fails with :class:`LookupTimeout`; one that had not begun by
    then is never done. A store that hangs holds up nobody but its own users.
    """

    _log = Logger()

    def __init__(
        self, name: str, store: Store, reactor: Any, fold_keys: bool = True, timeout: float = STORE_TIMEOUT
    ) -> None:
        """Make a table; its thread starts with the first operation.

        :param store: is used in that thread only, from now on.
        :param reactor: for time, timers and calls from the thread.
        :param fold_keys: whether upper and lower case in keys are the same.
        :param timeout: seconds that an operation may take, waiting for its turn included.
        """
        self.name = name
        self._store = store
        self._reactor = reactor
        self._fold_keys = fold_keys
        self._timeout = timeout
        self._pending: deque[Operation] = deque()  # without a result; the oldest first
        self._waiting: deque[Operation] = deque()  # those of them that have not begun; shared with the thread,
        self._wake = Condition()  # under this lock
        self._timer: IDelayedCall | None = None
        self._thread: Thread | None = None
        self._closed = False
        #: How many updates and deletes there have been: each makes old what a walk has read ahead.
        self.changes = 0

    def lookup(self, key: bytes) -> Deferred[bytes | None]:
        """See :class:`ITable`."""
        normalized = self._normalize(key)
        return self.submit(Kind.LOOKUP, normalized) if normalized else succeed(None)

    def update(self, key: bytes, value: bytes, ttl: int | None = None) -> Deferred[bool]:
        """See :class:`ITable`."""
        try:
            normalized = writable_key(self.name, key, self._fold_keys)
            check_value(self.name, value)
            if b"\0" in normalized:
                raise RefusedError(f"{self.name}: a key with NUL cannot be stored")
            check_ttl(self.name, ttl)
        except TableError:
            return fail()
        self.changes += 1
        return self.submit(Kind.UPDATE, normalized, value, ttl)

    def delete(self, key: bytes) -> Deferred[bool]:
        """See :class:`ITable`."""
        normalized = self._normalize(key)
        self.changes += 1
        return self.submit(Kind.DELETE, normalized) if normalized else succeed(False)

    def cursor(self) -> ICursor:
        """See :class:`ITable`."""
        return StoreCursor(self, self._reactor.seconds)

    def close(self) -> None:
        """See :class:`ITable`. The thread closes the store, after the operations that are under way."""
        if not self._closed:
            with self._wake:
                self._closed = True
                self._wake.notify()
            if self._thread is None:
                self._store.close()

    def submit(self, kind: Kind, key: bytes, value: bytes = b"", ttl: int | None = None) -> Deferred[Any]:
        """Ask the store for something; ``key`` is taken as it is."""
        if self._closed:
            return fail(TemporaryError(f"{self.name}: the table is closed"))
        if self._thread is None:
            thread = Thread(target=self._run, name=self.name, daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # the limit of the user or of the service
                return fail(TemporaryError(f"{self.name}: {error}"))
            self._thread = thread
        operation = Operation(kind, key, value, ttl, self._reactor.seconds() + self._timeout)
        self._pending.append(operation)
        if self._timer is None:
            self._timer = self._reactor.callLater(self._timeout, self._expire)
        with self._wake:
            self._waiting.append(operation)
            self._wake.notify()
        return operation.done

    def after_break(self, action: Callable[[], Deferred[Any]]) -> Deferred[Any]:
        """Do something a moment later, so that others, who may have had to wait, are first."""
        return deferLater(self._reactor, BREAK, action)

    def _normalize(self, key: bytes) -> bytes | None:
        """Return the key as the store has it, or ``None`` for one that no program of Postfix could ask for."""
        return None if b"\0" in key else normalize(key, self._fold_keys)

    # In the thread.

    def _run(self) -> None:
        while batch := self._next_batch():
            live = [operation for operation in batch if not operation.given_up]
            if live:
                self._reactor.callFromThread(self._deliver, live, self._execute(live))
        try:
            self._store.close()
        except Exception:  # noqa: BLE001 (nobody waits for it)
            self._report()

    def _next_batch(self) -> list[Operation]:
        """Wait for operations; none are left when the table is closed."""
        with self._wake:
            while not self._waiting and not self._closed:
                self._wake.wait()
            return [self._waiting.popleft() for _ in range(min(len(self._waiting), BATCH_LIMIT))]

    def _execute(self, operations: list[Operation]) -> Sequence[object]:
        try:
            results = self._store.execute(operations)
            if len(results) != len(operations):
                raise ValueError(f"{len(results)} results for {len(operations)} operations")
            return results
        except TableError as error:
            return [error] * len(operations)
        except Exception:  # noqa: BLE001 (the thread must go on, whatever a store does)
            self._report()
            return [TemporaryError(f"{self.name}: internal error, see the log")] * len(operations)

    def _report(self) -> None:
        """Log the exception that is being handled, in the reactor's thread as all logging."""
        text = "{table}: an unforeseen error of the store"
        self._reactor.callFromThread(self._log.failure, text, Failure(), table=self.name)

    # In the reactor.

    def _deliver(self, operations: list[Operation], results: Sequence[object]) -> None:
        for operation, result in zip(operations, results, strict=True):
            if operation.given_up:
                continue
            if isinstance(result, Exception):
                operation.done.errback(copy(result))  # one each: whoever raises it adds to its traceback
            else:
                operation.done.callback(result)
        while self._pending and self._pending[0].given_up:
            self._pending.popleft()
        if not self._pending and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        now = self._reactor.seconds()
        while self._pending and (self._pending[0].given_up or self._pending[0].deadline <= now):
            operation = self._pending.popleft()
            if not operation.given_up:
                error = LookupTimeout(f"{self.name}: no {operation.kind.value} within {self._timeout:g} s")
                operation.done.errback(error)
        with self._wake:  # while the store hangs, nobody else takes them away
            while self._waiting and self._waiting[0].given_up:
                self._waiting.popleft()
        self._timer = None  # not before: those who got an error may have asked again
        if self._pending:
            self._timer = self._reactor.callLater(max(self._pending[0].deadline - now, 0), self._expire)


@implementer(ICursor)
class StoreCursor:
    """Walks through a store in its order, by the key that came last: what is changed meanwhile does no harm.

    It reads some entries ahead, and reads them again if the table is changed, or a second has passed.
    """

    def __init__(self, table: StoreTable, seconds: Callable[[], float]) -> None:
        """Begin before the first entry.

        :param seconds: the time.
        """
        self._table = table
        self._seconds = seconds
        self._last = b""
        self._ahead: Iterator[Entry] = iter(())
        self._changes = 0  # of the table, when that was asked for
        self._until = 0.0  # when it is too old

    def next(self) -> Deferred[Entry | None]:
        """See :class:`ICursor`."""
        if self._changes == self._table.changes and self._seconds() < self._until:
            for entry in self._ahead:
                self._last = entry[0]
                return succeed(entry)
        self._changes = self._table.changes
        self._until = self._seconds() + READ_AHEAD_TIME
        self._ahead = iter(())
        return self.read(self._last).addCallback(self._take)

    def read(self, key: bytes) -> Deferred[list[Entry] | Halfway]:
        """Fire with the next entries after a key, none at the end; or with :class:`Halfway`."""
        return self._table.submit(Kind.AFTER, key)

    def _take(self, found: list[Entry] | Halfway) -> Any:
        if isinstance(found, Halfway):
            self._last = found.key
            return self._table.after_break(self.next)
        self._ahead = iter(found)
        for entry in self._ahead:
            self._last = entry[0]
            return entry
        return None
