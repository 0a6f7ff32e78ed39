from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, Logger
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from socketmap_memcache.asker import FIRING
from socketmap_memcache.errors import LookupTimeout, PermanentError, TableError, TemporaryError
from socketmap_memcache.tables import redis_command
from socketmap_memcache.tables.redis_client import RedisClient
from tests.unit.tables.redis_scripted import Peer, Redis, bulk


@implementer(ILogObserver)
class Log:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, event: LogEvent) -> None:
        self.lines.append(event["log_format"])


class RedisClientTests(SynchronousTestCase):
    masters_only = False

    def setUp(self) -> None:
        self.clock = Clock()
        self.redis = Redis(self.clock)
        self.client = RedisClient("redis:/x", self.redis.connect, self.clock, 2, 1, self.masters_only)
        log = Log()
        self.logged = log.lines
        self.patch(RedisClient, "_log", Logger(observer=log))

    def get(self, key: bytes = b"k") -> Deferred[bytes | None]:
        answer: Deferred[bytes | None] = Deferred()
        self.client.send(redis_command.get(key, FIRING, answer))
        return answer

    def set(self, key: bytes = b"k") -> Deferred[bool]:
        answer: Deferred[bool] = Deferred()
        self.client.send(redis_command.set_(key, b"v", None, FIRING, answer))
        return answer

    def delete(self, key: bytes = b"k") -> Deferred[bool]:
        answer: Deferred[bool] = Deferred()
        self.client.send(redis_command.delete(key, FIRING, answer))
        return answer

    def error(self, answer: Deferred[Any], kind: type[TableError] = TemporaryError) -> str:
        return str(self.failureResultOf(answer, kind).getErrorMessage())

    def connected(self) -> Peer:
        """Give a connection that has served a look-up."""
        answer = self.get()
        peer = self.redis.accept()
        peer.answer(GET=bulk(b"v"))
        assert self.successResultOf(answer) == b"v"
        return peer


class TestClient(RedisClientTests):
    def test_pipeline(self) -> None:
        """The first command connects; what waits for that, or is sent in one turn, is answered in order."""
        assert self.redis.attempts == []
        answers = [self.get(b"a"), self.get(b"b")]
        assert self.redis.attempts[0].timeout == 2
        peer = self.redis.accept()
        answers.append(self.get(b"c"))
        assert peer.received() == [b"GET a"]
        self.clock.advance(0)
        assert peer.received() == [b"GET b", b"GET c"]
        for byte in bulk(b"1") + bulk(None) + bulk(b"3"):
            peer.send(bytes([byte]))
        assert [self.successResultOf(answer) for answer in answers] == [b"1", None, b"3"]
        self.client.close()
        assert peer.is_closed()
        assert self.clock.getDelayedCalls() == []

    def test_replies(self) -> None:
        """A reply that is an error, or cannot be one to the command, is a failure; the connection goes on."""
        peer = self.connected()
        for reply, kind, text in (
            (b"-ERR what\r\n", TemporaryError, "redis s: ERR what"),
            (b"-OOM command not allowed\r\n", TemporaryError, "OOM"),
            (b"-READONLY x\r\n", TemporaryError, "READONLY x"),
            (b"-WRONGTYPE x\r\n", PermanentError, "WRONGTYPE x"),
            (b"-MOVED 1 h:1\r\n", PermanentError, "a Redis Cluster, which is not supported"),
            (b"+OK\r\n", PermanentError, "unexpected reply b'OK'"),
            (b":1\r\n", PermanentError, "unexpected reply 1"),
            (b"*0\r\n", PermanentError, "unexpected reply []"),
            (bulk(b"x" * (2**20 + 1)), PermanentError, "a value of 1048577 bytes; the limit is 1048576"),
        ):
            answer = self.get()
            peer.send(reply)
            assert text in self.error(answer, kind), reply
        changes: list[Callable[[], Deferred[Any]]] = [self.set, self.delete]
        for change in changes:
            changed = change()
            peer.send(bulk(None))
            assert "unexpected reply None" in self.error(changed, PermanentError)
        assert not peer.is_aborted()

    def test_set_and_delete(self) -> None:
        """An update is done, with or without an end; a delete says whether the key was there."""
        peer = self.connected()
        answers = [self.set(), self.delete(b"a"), self.delete(b"b"), Deferred[bool]()]
        self.client.send(redis_command.set_(b"t", b"v", 7, FIRING, answers[3]))
        self.clock.advance(0)
        assert peer.received() == [b"SET k v", b"DEL a", b"DEL b", b"SET t v EX 7"]
        peer.send(b"+OK\r\n:1\r\n:0\r\n+OK\r\n")
        assert [self.successResultOf(answer) for answer in answers] == [True, True, False, True]

    def test_garbage(self) -> None:
        """After what is no reply, or was not asked for, the connection is left; a command is sent once more."""
        peer = self.connected()
        answer = self.get()
        peer.send(b"garbage\r\n")
        peer.send(bulk(b"late"))
        assert peer.is_aborted()
        second = self.redis.accept()
        second.answer(GET=bulk(b"v") + bulk(b"EVIL"))
        assert self.successResultOf(answer) == b"v"
        assert second.is_aborted()
        second.lose()
        assert self.redis.attempts == []
        answer = self.get()
        for _ in range(2):
            self.redis.accept().send(b"?\r\n")
        assert "unexpected reply" in self.error(answer)

    def test_lost(self) -> None:
        """What was on a connection that is lost is sent once more; not a delete, which may have been done."""
        peer = self.connected()
        answers: list[Deferred[Any]] = [self.get(), self.set(), self.delete()]
        peer.lose()
        assert "connection lost" in self.error(answers[2])
        second = self.redis.accept()
        self.clock.advance(0)
        assert second.received() == [b"GET k", b"SET k v"]
        second.lose()
        for answer in answers[:2]:
            assert "connection lost" in self.error(answer)
        assert self.redis.attempts == []
        assert self.client.connections == 2

    def test_order_when_lost(self) -> None:
        """What is sent because of a command that has failed comes after those that were sent before."""
        peer = self.connected()
        answers: list[Deferred[Any]] = [self.delete(), self.set()]
        later: list[Deferred[Any]] = []
        answers[0].addErrback(lambda _: later.append(self.get()))
        peer.lose()
        second = self.redis.accept()
        self.clock.advance(0)
        assert second.received() == [b"SET k v", b"GET k"]

    def test_closed_when_lost(self) -> None:
        """A client that is closed because a command has failed does the others that were under way."""
        peer = self.connected()
        answers: list[Deferred[Any]] = [self.delete(), self.get()]
        answers[0].addErrback(lambda _: self.client.close())
        peer.lose()
        self.redis.accept().answer(GET=bulk(b"v"))
        assert self.successResultOf(answers[1]) == b"v"

    def test_idle_connection_lost(self) -> None:
        """A connection that is lost between commands is nothing to speak of, and made anew when it is needed."""
        self.connected().lose()
        assert self.logged == []
        self.connected()

    def test_timeout(self) -> None:
        """Each command fails at its time limit; those behind it go on elsewhere, in the time that they have left."""
        peer = self.connected()
        first = self.get(b"a")
        self.clock.advance(1.5)
        second = self.get(b"b")
        self.clock.advance(0.5)
        assert "no answer within 2 s" in self.error(first, LookupTimeout)
        assert peer.is_aborted()
        peer.lose()
        other = self.redis.accept()
        assert other.received() == [b"GET b"]
        self.clock.advance(1.5)
        self.error(second, LookupTimeout)
        assert self.redis.attempts == []
        assert self.clock.getDelayedCalls() == []
        assert len([line for line in self.logged if line.startswith("{error}")]) == 1
        self.clock.advance(60)
        self.connected().send(b"unasked")
        self.get()
        self.redis.accept().lose()
        assert len([line for line in self.logged if line.startswith("{error}")]) == 2

    def test_no_connection_in_time(self) -> None:
        """Whoever waits for a connection fails at the time limit."""
        first = self.get()
        self.clock.advance(1)
        second = self.get()
        self.clock.advance(1)
        self.error(first, LookupTimeout)
        self.assertNoResult(second)
        self.clock.advance(1)
        self.error(second, LookupTimeout)

    def test_down(self) -> None:
        """While no server can be used all fails at once, and probes with back-off find out when that is over."""
        answers = [self.get(), self.get()]
        self.redis.refuse(TemporaryError("h: refused"))
        for answer in (*answers, self.get()):
            assert self.error(answer) == "redis:/x: down: h: refused"
        for pause in (0.1, 0.2, 0.4, 0.8, 1, 1):
            self.clock.advance(pause - 0.01)
            assert self.redis.attempts == []
            self.clock.advance(0.01)
            self.redis.refuse(TemporaryError("h: still refused"))
        self.clock.advance(1)
        assert self.error(self.get()) == "redis:/x: down: h: still refused"
        peer = self.redis.accept()
        answer = self.get()
        peer.answer(GET=bulk(b"v"))
        assert self.successResultOf(answer) == b"v"
        assert [line.partition(":")[0] for line in self.logged] == ["{name} is down", "{name}"]

    def test_unfit(self) -> None:
        """A server that is loading, or wants a password, is left, and what it refused is sent to the next in order."""
        for reply in (b"-LOADING x\r\n", b"-NOAUTH x\r\n"):
            peer = self.connected()
            answers: list[Deferred[Any]] = [self.delete(b"a"), self.get(b"b")]
            peer.send(reply)
            assert peer.is_aborted()
            other = self.redis.accept()
            self.clock.advance(0)
            assert other.received() == [b"DEL a", b"GET b"]
            other.send(b":1\r\n" + bulk(b"v"))
            assert [self.successResultOf(answer) for answer in answers] == [True, b"v"]
            answer = self.get()
            other.send(reply)
            self.redis.accept().send(reply)
            assert reply[1:-2].decode() in self.error(answer)
            self.client.close()
            self.setUp()

    def test_close(self) -> None:
        """Closing waits for what is under way, then no timer is left, and whatever is begun fails."""
        peer = self.connected()
        answer = self.get()
        self.client.close()
        peer.answer(GET=bulk(b"v"))
        assert self.successResultOf(answer) == b"v"
        assert peer.is_closed()
        assert self.clock.getDelayedCalls() == []
        peer.lose()
        assert self.error(self.get()) == "redis:/x: the table is closed"
        self.client.close()

    def test_close_while_connecting(self) -> None:
        """Closing a client that is looking for its server ends the search."""
        answer = self.get()
        self.client.close()
        self.clock.advance(2)
        self.error(answer, LookupTimeout)
        assert self.redis.attempts[0].cancelled
        assert self.clock.getDelayedCalls() == []

    def test_close_while_down(self) -> None:
        """Closing a client whose server is down ends its probes."""
        answer = self.get()
        self.redis.refuse(TemporaryError("h: refused"))
        self.error(answer)
        self.client.close()
        assert self.clock.getDelayedCalls() == []

    def test_unforeseen_error(self) -> None:
        """Whatever an asker does with its answer, the others get theirs."""

        class Breaking:
            def answered(self, value: object, token: object) -> None:
                raise ZeroDivisionError

            failed = answered

        peer = self.connected()
        self.client.send(redis_command.get(b"a", Breaking(), None))
        answer = self.get(b"b")
        self.clock.advance(0)
        peer.answer(GET=bulk(b"v"))
        assert self.successResultOf(answer) == b"v"
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1

    def test_unforeseen_reply(self) -> None:
        """Whoever asked for what cannot be understood, in a way that was not foreseen, hears of a failure."""
        peer = self.connected()
        answers: list[Deferred[Any]] = [Deferred(), Deferred()]
        for answer, meaning in zip(answers, (lambda _: 1 / 0, redis_command.value), strict=True):
            self.client.send(redis_command.Command(b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n", meaning, FIRING, answer))
        self.clock.advance(0)
        peer.answer(GET=bulk(b"v"))
        assert self.error(answers[0]) == "redis s: internal error, see the log"
        assert self.successResultOf(answers[1]) == b"v"
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1

    def test_writes_after_the_end(self) -> None:
        """What was to be written at the end of a turn is not written to a connection that has been lost."""
        peer = self.connected()
        self.get(b"a")
        self.get(b"b")
        peer.received()
        peer.lose()
        self.clock.advance(0)
        assert peer.received() == []

    def test_unix(self) -> None:
        """On a UNIX socket there are no options of TCP to set."""
        peer = Peer(self.clock, peer=UNIXAddress("/run/redis.sock"))
        answer = peer.protocol.ask(b"PING")
        peer.send(b"+PONG\r\n")
        assert self.successResultOf(answer) == b"PONG"
        peer.lose()
        self.failureResultOf(peer.protocol.ask(b"PING"), TemporaryError)
        peer.protocol.close()
        peer.protocol.drop(TemporaryError("twice"))


class TestMastersOnly(RedisClientTests):
    masters_only = True

    def test_demoted(self) -> None:
        """A server that is not master any more is left, and what it refused is done by the one that is."""
        peer = self.connected()
        answer = self.set()
        peer.send(b"-READONLY You can't write against a read only replica.\r\n")
        assert peer.is_aborted()
        self.redis.accept().answer(SET=b"+OK\r\n")
        assert self.successResultOf(answer) is True
