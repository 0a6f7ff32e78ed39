from __future__ import annotations

from errno import EACCES
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError
from twisted.internet.error import ConnectionRefusedError as NobodyThere

from socketmap_memcache.errors import (
    LookupTimeout,
    PermanentError,
    TemporaryError,
)
from socketmap_memcache.protocols.proxymap import FLAGS
from socketmap_memcache.tables import proxymap_client
from socketmap_memcache.tables.proxymap_client import AGE_LIMIT, IDLE_LIMIT, TIMEOUT
from socketmap_memcache.tables.registry import PROXYMAP_SOCKET

from .proxy_tests import GREETING, OPEN, ProxyTestCase, Server, result_of


class DialectTests(ProxyTestCase):
    def test_no_greeting(self) -> None:
        """A server up to Postfix 3.5, which does not greet, is not waited for."""
        answer = self.table.lookup(b"key")
        server = self.accept()
        assert server.received() == OPEN
        server.send("status|0|flags|16||")
        server.send("status|0|value|v||")
        assert result_of(answer) == b"v"

    def test_instance_flags(self) -> None:
        """A server since Postfix 3.11 refuses the older requests, and gets the newer, at once the next time."""
        answer = self.table.lookup(b"KEY")
        server = self.accept()
        server.received()
        server.send(GREETING + "status|3|flags|0||")
        assert server.received() == f"request|open|table|btree:/x|instance_flags|{FLAGS}||"
        server.send("status|0|flags|786896||")
        lookup = f"request|lookup|table|btree:/x|instance_flags|{FLAGS}|flags|786896|key|"
        assert server.received() == f"{lookup}key||"
        server.send("status|0|flags|786896|value|v||")
        assert result_of(answer) == b"v"
        server.lose()
        self.table.lookup(b"a")
        server = self.accept()
        assert server.received() == f"request|open|table|btree:/x|instance_flags|{FLAGS}||"
        server.send(GREETING + "status|3|flags|0||")  # an older Postfix was put back
        assert server.received() == OPEN
        server.send("status|0|flags|16||")
        assert server.received() == f"request|lookup|table|btree:/x|flags|{FLAGS}|key|a||"

    def test_neither(self) -> None:
        """A server that takes neither dialect's request takes it for invalid."""
        answer = self.table.lookup(b"key")
        self.accept().send(GREETING + "status|3|flags|0||status|3|flags|0||")
        self.error_of(answer, PermanentError, f"proxy:btree:/x: {PROXYMAP_SOCKET} takes the request for invalid")

    def test_not_proxymap(self) -> None:
        """Whatever else is said is a failure of all that waits, and ends the connection."""
        for reply in ("protocol|rewrite||", "status|2|flags|0||", GREETING + GREETING, "x|||"):
            answers = [self.table.lookup(b"key"), self.table.lookup(b"key")]
            server = self.accept()
            server.send(reply)
            for answer in answers:
                self.error_of(answer, TemporaryError, "unexpected reply")
            assert server.dropped()
        self.quiet()


class ConnectionTests(ProxyTestCase):
    def test_never_pipelined(self) -> None:
        """A request is sent when the one before has its reply, even if that is slow."""
        answers = [self.table.lookup(b"%d" % i) for i in range(3)]
        server = self.opened()
        for i, answer in enumerate(answers):
            assert server.received() == f"request|lookup|table|btree:/x|flags|{FLAGS}|key|{i}||"
            for byte in f"status|0|value|v{i}||":
                assert server.received() == ""
                server.send(byte)
            assert result_of(answer) == b"v%d" % i

    def test_asked_in_callback(self) -> None:
        """What is asked when an answer comes waits for those who waited before."""
        later: list[Deferred[Any]] = []
        first, second = self.table.lookup(b"a"), self.table.lookup(b"b")
        first.addCallback(lambda _: later.append(self.table.lookup(b"c")))
        server = self.opened()
        server.received()
        server.send("status|1|value|||")
        assert server.received().endswith("|key|b||")
        server.send("status|1|value|||")
        assert server.received().endswith("|key|c||")
        server.send("status|0|value|v||")
        assert result_of(second) is None
        assert result_of(later[0]) == b"v"

    def test_unreachable(self) -> None:
        """Where nobody listens, all that waits fails at once, and the next request tries again."""
        answers = [self.table.lookup(b"a"), self.table.lookup(b"b")]
        self.refuse(NobodyThere())
        for answer in answers:
            self.error_of(answer, TemporaryError, f"proxy:btree:/x: cannot connect to {PROXYMAP_SOCKET}")
        self.quiet()
        self.table.lookup(b"c")
        self.opened()

    def test_forbidden(self) -> None:
        """A socket that may not be used fails for good, with who may."""
        answer = self.table.lookup(b"a")
        self.refuse(ConnectError(EACCES, "Permission denied"))
        self.error_of(answer, PermanentError, "only root and Postfix's own user")

    def test_timeout(self) -> None:
        """A request without a reply fails after its time, with its connection; those behind it go on with another."""
        first = self.table.lookup(b"a")
        server = self.opened()
        self.reactor.advance(TIMEOUT - 1)
        second = self.table.lookup(b"b")
        self.reactor.advance(1)
        self.error_of(first, LookupTimeout, f"no answer from {PROXYMAP_SOCKET} in 10 s")
        assert server.dropped()
        server.send("status|0|value|too late||")
        server.lose()
        server = self.opened()
        server.send("status|0|value|b||")
        assert result_of(second) == b"b"

    def test_own_time(self) -> None:
        """The time of a request that was asked later than others is later over."""
        first = self.table.lookup(b"a")
        server = self.opened()
        self.reactor.advance(TIMEOUT - 1)
        second = self.table.lookup(b"b")
        server.send("status|0|value|a||")
        assert result_of(first) == b"a"
        self.reactor.advance(TIMEOUT - 1)
        self.assertNoResult(second)
        server.send("status|0|value|b||")
        assert result_of(second) == b"b"

    def test_timeout_while_connecting(self) -> None:
        """The time limit holds for those who wait for the connection, which is made all the same."""
        answer = self.table.lookup(b"a")
        self.reactor.advance(TIMEOUT)
        self.error_of(answer, LookupTimeout, "no answer")
        self.opened()
        assert [call.getTime() for call in self.reactor.getDelayedCalls()] == [TIMEOUT + IDLE_LIMIT]

    def test_timeout_answered(self) -> None:
        """Asking anew when an answer is overdue is safe."""
        later: list[Deferred[Any]] = []
        self.table.lookup(b"a").addErrback(lambda _: later.append(self.table.lookup(b"b")))
        self.opened()
        self.reactor.advance(TIMEOUT)
        self.opened().send("status|0|value|b||")
        assert result_of(later[0]) == b"b"

    def test_queue_limit(self) -> None:
        """More requests than can wait fail at once."""
        self.patch(proxymap_client, "QUEUE_LIMIT", 2)
        for _ in range(2):
            self.assertNoResult(self.table.lookup(b"a"))
        self.error_of(self.table.lookup(b"a"), TemporaryError, "more than 2 requests wait")

    def kept(self) -> Server:
        """Make a connection that has worked."""
        answer = self.table.lookup(b"a")
        server = self.opened()
        server.send("status|1|value|||")
        server.received()
        assert result_of(answer) is None
        return server

    def test_lost_while_idle(self) -> None:
        """A connection that the server closes between requests is replaced without anybody noticing."""
        self.kept().lose()
        self.quiet()
        self.kept()

    def test_stray_data(self) -> None:
        """Data that nobody asked for ends the connection."""
        server = self.kept()
        server.send("status|0|value|x||")
        assert server.dropped()
        self.quiet()

    def test_sent_again(self) -> None:
        """A look-up that meets a kept connection just as it is closed is sent again, but only once."""
        server = self.kept()
        answer = self.table.lookup(b"b")
        server.lose()
        server = self.opened()
        assert server.received().endswith("|key|b||")
        server.lose()
        self.error_of(answer, TemporaryError, f"{PROXYMAP_SOCKET}: the connection was closed without an answer")
        self.quiet()

    def test_not_sent_again(self) -> None:
        """A delete whose reply is lost fails: done twice it would say that the key was not there."""
        self.table.update(b"a", b"v")
        server = self.opened()
        server.send("status|0||")
        answer, behind = self.table.delete(b"a"), self.table.delete(b"b")
        server.lose()
        self.error_of(answer, TemporaryError, "closed without an answer")
        self.opened().send("status|0||")
        assert result_of(behind) is True

    def test_malformed(self) -> None:
        """A malformed reply to the first request of a connection is its failure, and those behind it go on."""
        first, second = self.table.lookup(b"a"), self.table.lookup(b"b")
        self.opened().send("status|0||")
        self.error_of(first, TemporaryError, "unexpected reply")
        self.opened().send("status|0|value|v||")
        assert result_of(second) == b"v"

    def test_lost_while_opening(self) -> None:
        """A server that leaves before it has opened the table is a failure of all that waits."""
        answers = [self.table.lookup(b"a"), self.table.lookup(b"b")]
        self.accept().lose()
        for answer in answers:
            self.error_of(answer, TemporaryError, "closed without an answer")
        self.quiet()

    def test_idle(self) -> None:
        """A connection is closed when it has not been used for a while, so that Postfix may renew its process."""
        server = self.kept()
        self.reactor.advance(IDLE_LIMIT - 1)
        self.table.lookup(b"b")
        server.send("status|1|value|||")
        self.reactor.advance(IDLE_LIMIT - 1)
        assert not server.dropped()
        self.reactor.advance(1)
        assert server.dropped()
        self.quiet()

    def test_age(self) -> None:
        """A connection that is always in use is closed when it is old."""
        server = self.kept()
        for seconds in [4] * int(AGE_LIMIT // 5):
            self.reactor.advance(seconds)
            answer = self.table.lookup(b"b")
            assert not server.dropped()
            self.reactor.advance(1)  # the server is slow
            server.send("status|0|value|v||")
            assert result_of(answer) == b"v"
        assert server.dropped()
        self.quiet()

    def test_close(self) -> None:
        """A table that is closed still gives the answers that are under way, then closes its connections."""
        answer = self.table.lookup(b"a")
        server = self.opened()
        self.table.close()
        self.table.close()
        assert not server.dropped()
        server.send("status|0|value|v||")
        assert result_of(answer) == b"v"
        assert server.dropped()
        self.quiet()

    def test_close_idle(self) -> None:
        """A table that is idle closes its connection at once."""
        server = self.kept()
        self.table.close()
        assert server.dropped()
        self.quiet()

    def test_close_while_connecting(self) -> None:
        """A table that is closed when nobody waits any more lets go of the connection that is being made."""
        self.table.lookup(b"a").addErrback(lambda _: None)
        self.reactor.advance(TIMEOUT)
        self.table.close()
        assert self.accept().dropped()
        self.quiet()
