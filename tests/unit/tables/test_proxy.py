from __future__ import annotations

import tempfile
from errno import EACCES
from typing import Any, cast

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError, ConnectionDone
from twisted.internet.error import ConnectionRefusedError as NobodyThere
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from socketmap_memcache.config.service import load
from socketmap_memcache.errors import (
    ConfigurationError,
    LookupTimeout,
    PermanentError,
    TableError,
    TemporaryError,
)
from socketmap_memcache.memcache.pool import ClientPool
from socketmap_memcache.protocols.proxymap import FLAGS
from socketmap_memcache.tables import proxymap_client
from socketmap_memcache.tables.interface import RefusedError
from socketmap_memcache.tables.proxy import ProxyTable
from socketmap_memcache.tables.proxymap_client import AGE_LIMIT, IDLE_LIMIT, TIMEOUT, DeniedError
from socketmap_memcache.tables.registry import PROXYMAP_SOCKET, PROXYWRITE_SOCKET, TableContext

FIXED, PATTERN = "16", "32"
OPEN = f"request|open|table|btree:/x|flags|{FLAGS}||"
GREETING = "protocol|proxymap_protocol||"


class Server:
    """The server's end of one connection: text with ``|`` for NUL."""

    def __init__(self, path: str, factory: Any) -> None:
        self.path = path
        self.transport = StringTransport()
        self.protocol = factory.buildProtocol(cast(Any, None))
        self.protocol.makeConnection(self.transport)

    def received(self) -> str:
        """Give what came since the last call."""
        data: bytes = self.transport.value()
        self.transport.clear()
        return data.decode().replace("\0", "|")

    def send(self, text: str) -> None:
        self.protocol.dataReceived(text.encode().replace(b"|", b"\0"))

    def lose(self) -> None:
        self.protocol.connectionLost(Failure(ConnectionDone()))

    def dropped(self) -> bool:
        return bool(self.transport.disconnected)


def result_of(answer: Deferred[Any]) -> Any:
    """Give the result or the error, which is there already."""
    results: list[Any] = []
    answer.addBoth(results.append)
    (result,) = results
    return result.value if isinstance(result, Failure) else result


class ProxyTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.table = self.open("btree:/x")

    def open(self, name: str) -> ProxyTable:
        table = TableContext(ClientPool(self.reactor)).open_table(f"proxy:{name}")
        assert isinstance(table, ProxyTable)
        return table

    def accept(self) -> Server:
        """Let the only attempt to connect succeed."""
        ((path, factory, *_),) = self.reactor.unixClients
        self.reactor.unixClients.clear()
        return Server(path, factory)

    def refuse(self, error: Exception) -> None:
        """Let the only attempt to connect fail."""
        ((_, factory, *_),) = self.reactor.unixClients
        self.reactor.unixClients.clear()
        factory.clientConnectionFailed(cast(Any, None), Failure(error))

    def opened(self, flags: str = FIXED) -> Server:
        """Let the only attempt to connect succeed, greet, and open the table."""
        server = self.accept()
        server.send(GREETING)
        assert server.received() == OPEN
        server.send(f"status|0|flags|{flags}||")
        return server

    def deny(self, path: str) -> None:
        server = self.accept()
        assert server.path == path
        server.send(GREETING + "status|4|flags|0||")

    def error_of(self, answer: Deferred[Any], kind: type[TableError], text: str) -> None:
        error = result_of(answer)
        assert type(error) is kind, error
        assert text in str(error), error

    def quiet(self) -> None:
        """Nothing is connected or waited for."""
        assert self.reactor.getDelayedCalls() == []
        assert self.reactor.unixClients == []


class OperationTests(ProxyTestCase):
    def test_lookup(self) -> None:
        """A look-up asks proxymap, with the key folded where the table is of fixed strings."""
        answer = self.table.lookup(b"KEY")
        server = self.opened()
        assert server.path == PROXYMAP_SOCKET
        assert server.received() == f"request|lookup|table|btree:/x|flags|{FLAGS}|key|key||"
        server.send("status|0|value|the value||")
        assert result_of(answer) == b"the value"

    def test_case(self) -> None:
        """A key is sent as it is where it is not to be folded."""
        context = TableContext(ClientPool(self.reactor), fold_keys=False)
        self.table = cast("ProxyTable", context.open_table("proxy:btree:/x"))
        self.table.lookup(b"KEY")
        assert self.opened().received() == f"request|lookup|table|btree:/x|flags|{FLAGS}|key|KEY||"

    def test_missing(self) -> None:
        """A key that the server does not find is missing."""
        answer = self.table.lookup(b"key")
        self.opened().send("status|1|value|||")
        assert result_of(answer) is None

    def test_pattern(self) -> None:
        """A key for a table of patterns keeps its case."""
        self.table.lookup(b"KEY")
        assert "|key|KEY||" in self.opened(PATTERN).received()

    def test_update(self) -> None:
        """An update goes to proxywrite."""
        answer = self.table.update(b"Key", b"Value", ttl=5)
        server = self.opened()
        assert server.path == PROXYWRITE_SOCKET
        assert server.received() == f"request|update|table|btree:/x|flags|{FLAGS}|key|key|value|Value||"
        server.send("status|0||")
        assert result_of(answer) is True

    def test_update_not_taken(self) -> None:
        """An update that the table does not take, as memcache: with a domain does not, says so."""
        answer = self.table.update(b"key", b"value")
        self.opened().send("status|1||")
        assert result_of(answer) is False

    def test_delete(self) -> None:
        """A delete goes to proxywrite, and tells whether the key was there."""
        first, second = self.table.delete(b"Key"), self.table.delete(b"key")
        server = self.opened()
        for answer, status, expected in ((first, 0, True), (second, 1, False)):
            assert server.received() == f"request|delete|table|btree:/x|flags|{FLAGS}|key|key||"
            server.send(f"status|{status}||")
            assert result_of(answer) is expected

    def test_read_after_write(self) -> None:
        """Once the table has been changed from here, look-ups go where the change went."""
        self.table.update(b"key", b"value")
        server = self.opened()
        server.received()
        server.send("status|0||")
        answer = self.table.lookup(b"key")
        assert "lookup" in server.received()
        server.send("status|0|value|value||")
        assert result_of(answer) == b"value"

    def test_impossible_keys(self) -> None:
        """A key that is not UTF-8, or has NUL, is missing, and cannot be stored; nothing is sent."""
        for key in (b"\xff", b"a\0value\0b"):
            assert result_of(self.table.lookup(key)) is None
            assert result_of(self.table.delete(key)) is False
            self.error_of(self.table.update(key, b"value"), RefusedError, "proxy:btree:/x: a key")
        self.error_of(self.table.update(b"key", b"a\nb"), RefusedError, "newline")
        self.quiet()

    def test_empty_key(self) -> None:
        """An empty key is asked for, for there are tables that have every key; it cannot be changed."""
        assert result_of(self.table.delete(b"")) is False
        self.error_of(self.table.update(b"", b"value"), RefusedError, "proxy:btree:/x: a key")
        self.quiet()
        answer = self.table.lookup(b"")
        server = self.opened()
        assert server.received() == f"request|lookup|table|btree:/x|flags|{FLAGS}|key|||"
        server.send("status|0|value|any||")
        assert result_of(answer) == b"any"

    def test_statuses(self) -> None:
        """Each status that is a failure fails, with who can help; the connection goes on."""
        self.table.lookup(b"key")
        server = self.opened()
        server.send("status|1|value|||")
        for status, kind, text in (
            (2, TemporaryError, "the table has failed"),
            (3, PermanentError, "takes the request for invalid"),
            (5, PermanentError, "is not usable"),
        ):
            answer = self.table.lookup(b"key")
            server.send(f"status|{status}|value|||")
            self.error_of(answer, kind, text)
        assert not server.dropped()

    def test_value_not_utf8(self) -> None:
        """A value that is not UTF-8 is a failure, as with Postfix's own client."""
        answer = self.table.lookup(b"key")
        self.opened().protocol.dataReceived(b"status\0000\0value\0\xff\0\0")
        self.error_of(answer, PermanentError, "not UTF-8")

    def test_sockets(self) -> None:
        """The service's file says where the servers listen."""
        context = TableContext(ClientPool(self.reactor))
        with tempfile.NamedTemporaryFile("w", suffix=".cf") as file:
            file.write("proxymap_socket = /a\nproxywrite_socket = /b\ntables = x=proxy:btree:/x\n")
            file.flush()
            table = load(file.name, (), context, self.reactor).tables["x"]
        table.lookup(b"key")
        assert self.accept().path == "/a"
        table.delete(b"key")
        assert self.accept().path == "/b"

    def test_names(self) -> None:
        """The name is type:name, after any number of proxy: prefixes."""
        assert self.open("proxy:proxy:btree:/x").name == "proxy:btree:/x"
        for name in ("", "btree", "btree:", ":x", "proxy:", "a:b\0c"):
            caught = self.assertRaises(ConfigurationError, self.open, name)
            assert "write proxy:type:name" in str(caught)


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


class DenialTests(ProxyTestCase):
    def test_only_for_writing(self) -> None:
        """A table that is served by proxywrite only is looked up there, and from then on there at once."""
        answers = [self.table.lookup(b"key") for _ in range(2)]
        self.deny(PROXYMAP_SOCKET)
        server = self.opened()
        assert server.path == PROXYWRITE_SOCKET
        for answer in answers:
            server.send("status|0|value|v||")
            assert result_of(answer) == b"v"
        self.table.lookup(b"key")
        assert "lookup" in server.received()

    def test_for_nothing(self) -> None:
        """A table that is served by neither fails, naming where it should be listed for that; and is tried again."""
        for _ in range(2):
            answer = self.table.lookup(b"key")
            self.deny(PROXYMAP_SOCKET)
            self.deny(PROXYWRITE_SOCKET)
            self.error_of(answer, DeniedError, "list proxy:btree:/x in proxy_read_maps")
        self.quiet()

    def test_other_failure(self) -> None:
        """A table that is denied by one and fails at the other fails."""
        answer = self.table.lookup(b"key")
        self.deny(PROXYMAP_SOCKET)
        self.refuse(NobodyThere())
        self.error_of(answer, TemporaryError, f"cannot connect to {PROXYWRITE_SOCKET}")

    def test_not_for_writing(self) -> None:
        """An update that is not allowed names the parameter for that; look-ups stay where they were."""
        answer = self.table.update(b"key", b"value")
        self.deny(PROXYWRITE_SOCKET)
        self.error_of(answer, DeniedError, "proxy_write_maps")
        self.table.lookup(b"key")
        assert self.accept().path == PROXYMAP_SOCKET


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


@attrs.define
class Tree:
    """A server with entries that can be walked through, as Postfix's lmdb: is: it loses its place with its entry."""

    entries: dict[str, str]
    place: str = ""
    requests: list[str] = attrs.Factory(list)

    def serve(self, server: Server) -> None:
        while request := server.received():
            fields = request.split("|")
            self.requests.append(fields[1] + fields[7])
            if fields[1] == "sequence":
                server.send(self.sequence(fields[7]))
            else:
                server.send(f"status|{0 if self.entries.pop(fields[7], '') else 1}||")

    def sequence(self, function: str) -> str:
        keys = [*sorted(self.entries), ""]
        if function == "0":
            self.place = keys[0]
        elif self.place in keys[:-1]:
            self.place = keys[keys.index(self.place) + 1]
        else:
            self.place = ""
        return f"status|{0 if self.place else 1}|key|{self.place}|value|{self.entries.get(self.place, '')}||"


class WalkTests(ProxyTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.tree = Tree({"a": "1", "b": "2", "c": "3", "d": "4"})

    def writing(self) -> Server:
        """Make a connection that is used for everything."""
        answer = self.table.delete(b"x")
        server = self.opened()
        self.tree.serve(server)
        assert result_of(answer) is False
        self.tree.requests.clear()
        return server

    def test_walk(self) -> None:
        """A walk gives all entries, and then its end as often as it is asked."""
        server = self.writing()
        cursor = self.table.cursor()
        found = []
        for _ in range(6):
            answer = cursor.next()
            self.tree.serve(server)
            found.append(result_of(answer))
        assert found == [(b"a", b"1"), (b"b", b"2"), (b"c", b"3"), (b"d", b"4"), None, None]
        assert self.tree.requests == ["sequence0", *["sequence1"] * 4]

    def test_empty(self) -> None:
        """A walk through an empty table is at its end at once."""
        self.tree.entries.clear()
        server = self.writing()
        answer = self.table.cursor().next()
        self.tree.serve(server)
        assert result_of(answer) is None

    def test_deletes(self) -> None:
        """Any entry may be deleted during the walk: the server is never left without its place."""
        for deleted in ("a", "b", "c", "d", "B", "cd", "bc", "bcd", "abcd"):
            self.tree = Tree({"a": "1", "b": "2", "c": "3", "d": "4"})
            server = self.writing()
            cursor = self.table.cursor()
            answers: list[Deferred[Any]] = [cursor.next()]
            self.tree.serve(server)
            for key in deleted:
                gone = self.table.delete(key.encode())
                self.tree.serve(server)
                assert result_of(gone) is True
            for _ in range(5):
                answers.append(cursor.next())
                self.tree.serve(server)
            found = [entry[0].decode() for entry in map(result_of, answers) if entry]
            for key in "abcd":
                assert found.count(key) == 1 if key not in deleted.lower() else found.count(key) <= 1, (deleted, found)
            self.table.close()
            self.table = self.open("btree:/x")

    def test_where_it_began(self) -> None:
        """A walk stays with the server where it began, when look-ups move to the other."""
        cursor = self.table.cursor()
        answer = cursor.next()
        reading = self.opened()
        assert reading.path == PROXYMAP_SOCKET
        self.tree.serve(reading)
        assert result_of(answer) == (b"a", b"1")
        gone = self.table.delete(b"b")
        self.tree.serve(reading)
        self.tree.serve(self.opened())
        assert result_of(gone) is True
        answers = [cursor.next(), cursor.next()]
        self.tree.serve(reading)
        assert [result_of(answer) for answer in answers] == [(b"b", b"2"), (b"c", b"3")]

    def test_denied(self) -> None:
        """A walk through a table that is served by proxywrite only goes there."""
        cursor = self.table.cursor()
        answer = cursor.next()
        self.deny(PROXYMAP_SOCKET)
        self.tree.serve(self.opened())
        assert result_of(answer) == (b"a", b"1")

    def test_another_walk(self) -> None:
        """A walk that begins ends the one before, which fails, and goes on failing, once its entries are used up."""
        server = self.writing()
        first, second = self.table.cursor(), self.table.cursor()
        for cursor in (first, second):
            answer = cursor.next()
            self.tree.serve(server)
            assert result_of(answer) == (b"a", b"1")
        for _ in range(2):
            self.error_of(first.next(), TemporaryError, "another walk has begun")
        answer = second.next()
        self.tree.serve(server)
        assert result_of(answer) == (b"b", b"2")

    def test_failed_first(self) -> None:
        """A walk that fails at its begin is not taken for the end of an empty table."""
        cursor = self.table.cursor()
        answer = cursor.next()
        self.opened().send("status|2|key||value|||")
        self.error_of(answer, TemporaryError, "has failed")
        self.error_of(cursor.next(), TemporaryError, "has failed")
        assert self.table.walk is None

    def test_lost(self) -> None:
        """A walk whose connection is lost fails: the next process would begin anew, or abort."""
        server = self.writing()
        cursor = self.table.cursor()
        answer = cursor.next()
        self.tree.serve(server)
        assert result_of(answer) == (b"a", b"1")
        server.lose()
        answer = cursor.next()
        self.opened()
        self.error_of(answer, TemporaryError, "has lost its place")

    def test_delete_when_lost(self) -> None:
        """A delete is done even if the walk that it may disturb fails."""
        server = self.writing()
        cursor = self.table.cursor()
        cursor.next()
        self.tree.serve(server)
        server.lose()
        gone = self.table.delete(b"b")
        self.tree.serve(self.opened())
        assert result_of(gone) is True
        self.error_of(cursor.next(), TemporaryError, "has lost its place")

    def test_not_idle(self) -> None:
        """During a walk the connection is kept even if it is idle, but not for ever."""
        server = self.writing()
        self.table.cursor().next()
        self.tree.serve(server)
        self.reactor.advance(AGE_LIMIT - 1)
        assert not server.dropped()
        self.reactor.advance(1)
        assert server.dropped()
        self.quiet()
