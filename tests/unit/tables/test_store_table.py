from __future__ import annotations

from collections.abc import Sequence
from queue import Queue
from threading import Event, Thread, get_ident
from typing import Any
from unittest.mock import patch

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from socketmap_memcache.errors import LookupTimeout, PermanentError, TemporaryError
from socketmap_memcache.prompt_writer import WRITES_TOGETHER
from socketmap_memcache.tables import store_table as store_module
from socketmap_memcache.tables.interface import IAskedTable, ICursor, ITable, RefusedError
from socketmap_memcache.tables.store import Halfway, Kind, Operation
from socketmap_memcache.tables.store_table import StoreTable

from .thread_clock import PATIENCE, ThreadClock


def ignore(failure: Failure) -> None:
    """Handle a failure."""


class Recorder:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.heard: list[tuple[object, object]] = []

    def answered(self, value: object, token: object) -> None:
        self.heard.append((value, token))

    def failed(self, failure: Failure, token: object) -> None:
        self.heard.append((failure.type, token))


class DictStore:
    """Holds everything in a dict, and stops where the test wants it to.

    :ivar batches: all that it was asked.
    :ivar threads: which threads asked.
    :ivar gate: closed, it hangs until it is opened; ``begun`` has an item for each batch that got that far.
    :ivar trouble: raised before anything is done.
    :ivar results: given in place of the right ones, as many as there are operations and ``surplus`` more.
    """

    def __init__(self) -> None:
        self.content: dict[bytes, bytes] = {}
        self.batches: list[list[tuple[Kind, bytes, bytes, int | None]]] = []
        self.threads: set[int] = set()
        self.gate = Event()
        self.gate.set()
        self.begun: Queue[None] = Queue()
        self.trouble: Exception | None = None
        self.results: list[object] = []
        self.surplus = 0
        self.closed = Event()

    def execute(self, operations: Sequence[Operation]) -> Sequence[object]:
        self.threads.add(get_ident())
        self.batches.append([(each.kind, each.key, each.value, each.ttl) for each in operations])
        self.begun.put(None)
        assert self.gate.wait(PATIENCE)
        if self.trouble is not None:
            raise self.trouble
        return self.results[: len(operations) + self.surplus] or [self._do(operation) for operation in operations]

    def close(self) -> None:
        self.closed.set()

    def _do(self, operation: Operation) -> object:
        if operation.kind is Kind.LOOKUP:
            return self.content.get(operation.key)
        if operation.kind is Kind.UPDATE:
            self.content[operation.key] = operation.value
            return True
        if operation.kind is Kind.DELETE:
            return self.content.pop(operation.key, None) is not None
        return sorted(item for item in self.content.items() if item[0] > operation.key)[:3]


class StoreTableTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = ThreadClock()
        self.store = DictStore()
        self.table = StoreTable("dict:x", self.store, self.clock, timeout=5)
        self.addCleanup(self.end)

    def end(self) -> None:
        self.store.gate.set()
        self.table.close()
        assert self.store.closed.wait(PATIENCE)

    def result(self, answer: Deferred[Any]) -> Any:
        self.clock.wait(answer)
        return self.successResultOf(answer)

    def failure(self, answer: Deferred[Any], kind: type[Exception]) -> str:
        self.clock.wait(answer)
        return str(self.failureResultOf(answer, kind).value)

    def hang(self) -> None:
        """Let the store hang in a look-up."""
        self.store.gate.clear()
        self.table.lookup(b"hanging").addErrback(ignore)
        self.store.begun.get(timeout=PATIENCE)


class TestOperations(StoreTableTests):
    def test_all(self) -> None:
        """All operations reach the store, in one thread that is not the reactor's, with folded keys."""
        verifyObject(ITable, self.table)
        assert self.result(self.table.lookup(b"K")) is None
        assert self.result(self.table.update(b"K", b"V", ttl=7)) is True
        assert self.result(self.table.lookup("\u212a".encode())) == b"V"  # the Kelvin sign
        assert self.result(self.table.delete(b"K")) is True
        assert self.result(self.table.delete(b"k")) is False
        assert self.store.batches[1] == [(Kind.UPDATE, b"k", b"V", 7)]
        assert len(self.store.threads) == 1
        assert get_ident() not in self.store.threads

    def test_no_folding(self) -> None:
        """Keys stay as they are where upper and lower case differ."""
        table = StoreTable("dict:x", self.store, self.clock, fold_keys=False)
        self.addCleanup(table.close)
        self.result(table.update(b"K", b"V"))
        assert [self.result(table.lookup(key)) for key in (b"k", b"K")] == [None, b"V"]

    def test_impossible_keys(self) -> None:
        """A key that is empty, not UTF-8 or has a NUL is missing, and refused in an update; the store is not asked."""
        for key in (b"", b"\xff", b"a\0", b"a\0b"):
            assert self.successResultOf(self.table.lookup(key)) is None
            assert self.successResultOf(self.table.delete(key)) is False
            self.failureResultOf(self.table.update(key, b"v"), RefusedError)
        assert self.store.batches == []

    def test_impossible_values(self) -> None:
        """A value that no program of Postfix could read back is refused, and so is a ttl below 1."""
        for value in (b"a\nb", b"a\0", b"\xff"):
            self.failureResultOf(self.table.update(b"k", value), RefusedError)
        for ttl in (0, -1):
            self.failureResultOf(self.table.update(b"k", b"v", ttl), RefusedError)
        assert self.store.batches == []

    def test_cursor(self) -> None:
        """A walk goes on by the key that came last, whatever is deleted or added meanwhile."""
        self.store.content = {b"a": b"1", b"c": b"3", b"e": b"5"}
        cursor = self.table.cursor()
        verifyObject(ICursor, cursor)
        assert self.result(cursor.next()) == (b"a", b"1")
        assert self.result(cursor.next()) == (b"c", b"3")
        self.result(self.table.delete(b"c"))
        self.result(self.table.update(b"b", b"new"))
        self.result(self.table.update(b"d", b"new"))
        assert [self.result(cursor.next()) for _ in range(4)] == [(b"d", b"new"), (b"e", b"5"), None, None]

    def test_cursor_ahead(self) -> None:
        """A walk asks for some entries at once, and again when they are a second old."""
        self.store.content = {b"%d" % number: b"old" for number in range(5)}
        cursor = self.table.cursor()
        assert [self.result(cursor.next()) for _ in range(4)] == [(b"%d" % number, b"old") for number in range(4)]
        assert len(self.store.batches) == 2
        self.store.content = {b"4": b"new", b"5": b"new"}
        self.clock.advance(1)
        assert [self.result(cursor.next()) for _ in range(3)] == [(b"4", b"new"), (b"5", b"new"), None]

    def test_cursor_update_meanwhile(self) -> None:
        """What is updated while a walk reads ahead comes with its new value."""
        self.store.content = {b"a": b"1", b"b": b"2"}
        self.hang()
        cursor = self.table.cursor()
        first, updated = cursor.next(), self.table.update(b"b", b"new")
        self.store.gate.set()
        assert [self.result(first), self.result(updated)] == [(b"a", b"1"), True]
        assert self.result(cursor.next()) == (b"b", b"new")

    def test_cursor_halfway(self) -> None:
        """A walk goes on from where the store has got; what was read ahead before does not come again."""
        found = {b"": [(b"a", b"1"), (b"b", b"2")], b"a": Halfway(b"c"), b"c": [(b"d", b"4")]}
        cursor = self.table.cursor()
        with patch.object(self.store, "_do", lambda operation: found[operation.key]):
            assert self.result(cursor.next()) == (b"a", b"1")
            self.clock.advance(1)
            done: list[object] = []
            cursor.next().addCallback(done.append)
            while not done:
                self.clock.run_call()
            assert done == [(b"d", b"4")]

    def test_batch(self) -> None:
        """What waits while the store is busy is done as one batch, in order, up to a limit."""
        self.hang()
        with patch.object(store_module, "BATCH_LIMIT", 3):
            answers = [self.table.update(b"k", b"%d" % number) for number in range(5)]
            self.store.gate.set()
            for answer in answers:
                self.result(answer)
        values = [[value for _, _, value, _ in batch] for batch in self.store.batches]
        assert values == [[b""], [b"0", b"1", b"2"], [b"3", b"4"]]

    def test_one_turn(self) -> None:
        """What is asked in one turn of the reactor is one batch."""
        asker = Recorder()
        with WRITES_TOGETHER:
            self.table.lookup_for(b"k", asker, "first")
            self.table.update_for(b"K", b"v", None, asker, "second")
            last = self.table.lookup(b"k")
            assert self.store.begun.empty()
        assert self.result(last) == b"v"
        assert asker.heard == [(None, "first"), (True, "second")]
        assert len(self.store.batches) == 1

    def test_asker(self) -> None:
        """Who asks without a Deferred hears the same, at once where the store need not be asked."""
        verifyObject(IAskedTable, self.table)
        asker = Recorder()
        self.table.lookup_for(b"", asker, "empty")
        self.table.update_for(b"", b"v", None, asker, "refused")
        self.table.update_for(b"k", b"v", 7, asker, "stored")
        self.result(self.table.lookup(b"k"))
        assert asker.heard == [(None, "empty"), (RefusedError, "refused"), (True, "stored")]


class TestErrors(StoreTableTests):
    def test_asker(self) -> None:
        """An asker that does what it must not, and raises, is logged; the others hear all the same."""
        asker = Recorder()
        self.hang()
        with patch.object(asker, "answered", side_effect=ZeroDivisionError):
            self.table.lookup_for(b"a", asker, "first")
            other = self.table.lookup(b"b")
            self.store.gate.set()
            assert self.result(other) is None
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1
        assert self.clock.getDelayedCalls() == []

    def test_all_failed(self) -> None:
        """An error that the store raises is the result of each operation of the batch."""
        self.hang()
        self.store.trouble = PermanentError("broken")
        answers: list[Deferred[Any]] = [self.table.lookup(b"a"), self.table.update(b"b", b"v")]
        self.store.gate.set()
        assert [self.failure(answer, PermanentError) for answer in answers] == ["broken", "broken"]

    def test_one_failed(self) -> None:
        """An error in the place of a result, of whatever class, fails that operation only."""
        self.hang()
        self.store.results = [b"found", RefusedError("no"), ValueError("odd")]
        answers = [self.table.lookup(b"a"), self.table.lookup(b"b"), self.table.lookup(b"c")]
        self.store.gate.set()
        assert self.result(answers[0]) == b"found"
        assert self.failure(answers[1], RefusedError) == "no"
        assert self.failure(answers[2], ValueError) == "odd"

    def test_unforeseen(self) -> None:
        """An unforeseen error of the store is logged, and is a temporary failure; the thread goes on."""
        self.store.trouble = ZeroDivisionError()
        assert "internal error" in self.failure(self.table.lookup(b"a"), TemporaryError)
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1
        self.store.trouble = None
        assert self.result(self.table.lookup(b"a")) is None

    def test_wrong_number(self) -> None:
        """A store that gives more results than it should, or fewer, is such an error too."""
        self.store.results, self.store.surplus = [b"1", b"2"], 1
        self.failure(self.table.lookup(b"a"), TemporaryError)
        assert len(self.flushLoggedErrors(ValueError)) == 1

    def test_no_thread(self) -> None:
        """Where no thread can be started the operation fails, and the next one tries again."""
        with patch.object(Thread, "start", side_effect=RuntimeError("can't start new thread")):
            assert "can't start" in self.failure(self.table.lookup(b"a"), TemporaryError)
        assert self.clock.getDelayedCalls() == []
        assert self.result(self.table.lookup(b"a")) is None


class TestTimeout(StoreTableTests):
    def test_hanging(self) -> None:
        """Operations on a store that hangs fail when their time is over, each on its own; later ones work again."""
        self.store.gate.clear()
        first = self.table.update(b"a", b"1")
        self.store.begun.get(timeout=PATIENCE)
        self.clock.advance(3)
        second = self.table.lookup(b"a")
        self.clock.advance(2)
        assert self.failure(first, LookupTimeout) == "dict:x: no update within 5 s"
        self.assertNoResult(second)
        self.clock.advance(3)
        assert self.failure(second, LookupTimeout) == "dict:x: no lookup within 5 s"
        assert self.clock.getDelayedCalls() == []
        self.store.gate.set()
        assert self.result(self.table.lookup(b"a")) == b"1"

    def test_not_begun(self) -> None:
        """What had not begun when its time was over is never done, and takes no memory."""
        self.hang()
        answers = [self.table.update(b"%d" % number, b"v") for number in range(10)]
        self.clock.advance(5)
        for answer in answers:
            self.failure(answer, LookupTimeout)
        assert not self.table._waiting
        self.store.gate.set()
        self.result(self.table.lookup(b"k"))
        assert self.store.content == {}
        assert len(self.store.batches) == 2

    def test_cancelled(self) -> None:
        """An operation that was cancelled before it begins is not done, and one that has begun harms nobody."""
        begun = self.table.lookup(b"begun")
        self.hang()
        begun.addErrback(ignore).cancel()
        waiting = self.table.update(b"k", b"v").addErrback(ignore)
        later = self.table.lookup(b"later")
        waiting.cancel()
        self.store.gate.set()
        assert self.result(later) is None
        assert self.store.content == {}
        assert self.clock.getDelayedCalls() == []

    def test_cancelled_and_late(self) -> None:
        """A cancelled operation does not keep the next one from its time limit."""
        self.hang()
        self.clock.advance(1)
        self.table.lookup(b"a").addErrback(ignore).cancel()
        later = self.table.lookup(b"b")
        self.clock.advance(4)
        self.assertNoResult(later)
        self.clock.advance(1)
        self.failure(later, LookupTimeout)

    def test_asked_again(self) -> None:
        """Who asks again as soon as the time is over has the full time again, on a single timer."""
        self.hang()
        answers: list[Deferred[Any]] = []
        self.table.lookup(b"a").addErrback(lambda _: answers.append(self.table.lookup(b"b")))
        self.clock.advance(5)
        assert len(self.clock.getDelayedCalls()) == 1
        self.clock.advance(4)
        self.assertNoResult(answers[0])
        self.clock.advance(1)
        self.failure(answers[0], LookupTimeout)

    def test_asked_again_beside_others(self) -> None:
        """Who asks again as soon as the time is over does not put off the time limit of the others."""
        self.hang()
        self.table.lookup(b"a").addErrback(lambda _: self.table.lookup(b"b").addErrback(ignore))
        self.clock.advance(1)
        other = self.table.lookup(b"c")
        self.clock.advance(4)
        self.assertNoResult(other)
        self.clock.advance(1)
        self.failure(other, LookupTimeout)
        self.clock.advance(5)

    def test_independent(self) -> None:
        """A store that hangs does not hold up another table."""
        self.hang()
        other_store = DictStore()
        other = StoreTable("dict:y", other_store, self.clock)
        self.addCleanup(other.close)
        assert self.result(other.update(b"k", b"v")) is True


class TestClose(StoreTableTests):
    def test_unused(self) -> None:
        """A table that was never used closes its store at once, and once only."""
        with patch.object(self.store, "close", wraps=self.store.close) as close:
            self.table.close()
            self.table.close()
            assert close.call_count == 1

    def test_under_way(self) -> None:
        """Operations under way, begun or not, get their answers, and then the store is closed."""
        self.hang()
        answer = self.table.update(b"k", b"v")
        self.table.close()
        assert not self.store.closed.is_set()
        self.store.gate.set()
        assert self.result(answer) is True
        assert self.store.closed.wait(PATIENCE)
        assert self.clock.getDelayedCalls() == []

    def test_same_turn(self) -> None:
        """Operations of the turn in which the table is closed get their answers."""
        self.result(self.table.lookup(b"k"))
        with WRITES_TOGETHER:
            answer = self.table.update(b"k", b"v")
            self.table.close()
            assert self.store.closed.wait(PATIENCE)
        assert self.result(answer) is True

    def test_nothing_to_do(self) -> None:
        """The store is closed without having been asked what nobody waits for any more."""
        self.hang()
        self.table.update(b"k", b"v").addErrback(ignore).cancel()
        self.table.close()
        self.store.gate.set()
        assert self.store.closed.wait(PATIENCE)
        assert len(self.store.batches) == 1
        self.clock.run_call()
        assert self.clock.getDelayedCalls() == []

    def test_afterwards(self) -> None:
        """Whatever is begun after closing fails, and that at once."""
        cursor = self.table.cursor()
        self.table.close()
        for answer in (self.table.lookup(b"k"), self.table.update(b"k", b"v"), self.table.delete(b"k"), cursor.next()):
            error = self.failureResultOf(answer, TemporaryError)
            assert error.getErrorMessage() == "dict:x: the table is closed"

    def test_error(self) -> None:
        """An error while the store is closed is logged."""
        self.result(self.table.lookup(b"k"))
        with patch.object(self.store, "close", side_effect=ZeroDivisionError):
            self.table.close()
            self.clock.run_call()
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1
        self.store.closed.set()
