"""Tables whose store blocks: a thread for each, which takes all that waits as one batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from threading import Condition, Thread
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from socketmap_memcache.asker import FIRING, Asker
from socketmap_memcache.busy_poll import BUSY_POLL
from socketmap_memcache.errors import LookupTimeout, TableError, TemporaryError
from socketmap_memcache.prompt_writer import WRITES_TOGETHER
from socketmap_memcache.tables.folding import normalize
from socketmap_memcache.tables.interface import IAskedTable, ICursor, RefusedError, check_entry
from socketmap_memcache.tables.store import Kind, Operation, Store
from socketmap_memcache.tables.store_cursor import StoreCursor

#: Seconds that an operation may take, waiting for its turn included.
STORE_TIMEOUT = 10.0

#: Seconds between two steps of a walk that passes over much.
BREAK = 0.02

#: Operations that are given to a store at once, at most.
BATCH_LIMIT = 1000


class Submitted(Operation):
    """An operation, and who waits for it.

    :ivar asker: hears of the result, with the token.
    """

    __slots__ = ("asker", "token")

    def __init__(
        self, kind: Kind, key: bytes, value: bytes, ttl: int | None, deadline: float, asker: Asker, token: Any
    ) -> None:
        super().__init__(kind, key, value, ttl, deadline)
        self.asker = asker
        self.token = token


@implementer(IAskedTable)
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
        self._pending: deque[Submitted] = deque()  # without a result; the oldest first
        self._collected: list[Submitted] = []  # those of them that the thread does not know of yet
        self._waiting: deque[Submitted] = deque()  # those of them that have not begun; shared with the thread,
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

    def lookup_for(self, key: bytes, asker: Asker, token: Any) -> None:
        """See :class:`IAskedTable`."""
        normalized = self._normalize(key)
        if normalized:
            self._submit(Kind.LOOKUP, normalized, b"", None, asker, token)
        else:
            asker.answered(None, token)

    def update(self, key: bytes, value: bytes, ttl: int | None = None) -> Deferred[bool]:
        """See :class:`ITable`."""
        return self._deferred(partial(self._update, key, value, ttl, FIRING))

    def update_for(self, key: bytes, value: bytes, ttl: int | None, asker: Asker, token: Any) -> None:
        """See :class:`IAskedTable`."""
        self._update(key, value, ttl, asker, token)

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
            self._hand_over()
            with self._wake:
                self._closed = True
                self._wake.notify()
            if self._thread is None:
                self._store.close()

    def submit(self, kind: Kind, key: bytes, value: bytes = b"") -> Deferred[Any]:
        """Ask the store for something; ``key`` is taken as it is. To cancel the Deferred is to give it up."""
        return self._deferred(partial(self._submit, kind, key, value, None, FIRING))

    def _update(self, key: bytes, value: bytes, ttl: int | None, asker: Asker, token: Any) -> Submitted | None:
        try:
            normalized = check_entry(self.name, key, value, ttl, self._fold_keys)
            if b"\0" in normalized:
                raise RefusedError(f"{self.name}: a key with NUL cannot be stored")
        except TableError:
            asker.failed(Failure(), token)
            return None
        self.changes += 1
        return self._submit(Kind.UPDATE, normalized, value, ttl, asker, token)

    def _deferred(self, ask: Callable[[Deferred[Any]], Submitted | None]) -> Deferred[Any]:
        """Ask with a Deferred as token, and return it."""
        operation: Submitted | None = None

        def give_up(_: Deferred[Any]) -> None:
            if operation is not None:
                operation.given_up = True

        answer: Deferred[Any] = Deferred(give_up)
        operation = ask(answer)
        return answer

    def _submit(
        self, kind: Kind, key: bytes, value: bytes, ttl: int | None, asker: Asker, token: Any
    ) -> Submitted | None:
        """Ask the store for something. What is asked in one turn of the reactor goes to the thread together."""
        if self._closed:
            asker.failed(Failure(TemporaryError(f"{self.name}: the table is closed")), token)
            return None
        if self._thread is None:
            thread = Thread(target=self._run, name=self.name, daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # the limit of the user or of the service
                asker.failed(Failure(TemporaryError(f"{self.name}: {error}")), token)
                return None
            self._thread = thread
        operation = Submitted(kind, key, value, ttl, self._reactor.seconds() + self._timeout, asker, token)
        self._pending.append(operation)
        if self._timer is None:
            self._timer = self._reactor.callLater(self._timeout, self._expire)
        self._collected.append(operation)
        if WRITES_TOGETHER.held is None:
            self._hand_over()
        elif len(self._collected) == 1:
            WRITES_TOGETHER.held.append((self._hand_over, b""))
        return operation

    def _hand_over(self, _: bytes = b"") -> None:
        BUSY_POLL.heard = False  # the thread takes its time, and each look would take the interpreter away from it
        with self._wake:
            self._waiting += self._collected
            self._wake.notify()
        self._collected.clear()

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

    def _next_batch(self) -> list[Submitted]:
        """Wait for operations; none are left when the table is closed."""
        with self._wake:
            while not self._waiting and not self._closed:
                self._wake.wait()
            return [self._waiting.popleft() for _ in range(min(len(self._waiting), BATCH_LIMIT))]

    def _execute(self, operations: list[Submitted]) -> Sequence[object]:
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

    def _deliver(self, operations: list[Submitted], results: Sequence[object]) -> None:
        BUSY_POLL.heard = True
        with WRITES_TOGETHER:
            for operation, result in zip(operations, results, strict=True):
                if not operation.given_up:
                    self._tell(operation, result)
        while self._pending and self._pending[0].given_up:
            self._pending.popleft()
        if not self._pending and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tell(self, operation: Submitted, result: object) -> None:
        """Tell the asker the result, and the others theirs, whatever that leads to."""
        operation.given_up = True
        try:
            if isinstance(result, Exception):
                # One each: whoever raises it adds to its traceback.
                operation.asker.failed(Failure(copy(result)), operation.token)
            else:
                operation.asker.answered(result, operation.token)
        except Exception:  # noqa: BLE001 (the others that wait have nothing to do with it)
            self._log.failure("{table}: an answer led to an unforeseen error", table=self.name)

    def _expire(self) -> None:
        now = self._reactor.seconds()
        while self._pending and (self._pending[0].given_up or self._pending[0].deadline <= now):
            operation = self._pending.popleft()
            if not operation.given_up:
                error = LookupTimeout(f"{self.name}: no {operation.kind.value} within {self._timeout:g} s")
                self._tell(operation, error)
        with self._wake:  # while the store hangs, nobody else takes them away
            while self._waiting and self._waiting[0].given_up:
                self._waiting.popleft()
        self._timer = None  # not before: those who got an error may have asked again
        if self._pending:
            self._timer = self._reactor.callLater(max(self._pending[0].deadline - now, 0), self._expire)
