from __future__ import annotations

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from socketmap_memcache.errors import LookupTimeout, PermanentError, TableError, TemporaryError
from socketmap_memcache.listeners.socketmap import SocketmapFactory
from socketmap_memcache.protocols.netstring import NetstringReader, encode
from socketmap_memcache.tables.interface import ITable
from socketmap_memcache.tables.read_only import ReadOnlyTable
from tests.unit.listeners.transports import Client


@implementer(ITable)
class ScriptedTable(ReadOnlyTable):
    """Answers when the test says so; a key that is an attribute's name is answered at once."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.asked: list[tuple[bytes, Deferred[bytes | None]]] = []
        self.answers: dict[bytes, bytes | Exception | None] = {}

    def lookup(self, key: bytes) -> Deferred[bytes | None]:
        if key == b"raise":
            raise ZeroDivisionError
        answer: Deferred[bytes | None]
        if key in self.answers:
            known = self.answers[key]
            answer = fail(known) if isinstance(known, Exception) else succeed(known)
        else:
            answer = Deferred()
            self.asked.append((key, answer))
        return answer

    def close(self) -> None:
        pass


class SocketmapTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.table = ScriptedTable("scripted:x")
        self.table.answers = {b"k": b"v", b"missing": None, b"": None, b" odd\xff\x00": b"\xff"}
        self.factory = SocketmapFactory({b"map": self.table}, Clock(), 400)
        self.client = Client(self.factory)

    def ask(self, *payloads: bytes) -> None:
        self.client.send(b"".join(map(encode, payloads)))

    def replies(self, client: Client | None = None) -> list[bytes]:
        reader = NetstringReader(100_000)
        reader.feed((client or self.client).received())
        replies = []
        while (payload := reader.next_payload()) is not None:
            replies.append(payload)
        assert not reader.partial
        return replies

    def test_found_and_missing(self) -> None:
        """A value is sent as it is, also an odd one; a missing key, and an empty one, is NOTFOUND."""
        self.ask(b"map k", b"map missing", b"map ", b"map  odd\xff\x00")
        assert self.replies() == [b"OK v", b"NOTFOUND ", b"NOTFOUND ", b"OK \xff"]

    def test_order(self) -> None:
        """Replies of one connection come in the order of its requests, whatever takes longer."""
        self.ask(b"map slow", b"map k", b"map slower")
        self.table.asked[1][1].callback(None)
        assert self.replies() == []
        self.table.asked[0][1].callback(b"s")
        assert self.replies() == [b"OK s", b"OK v", b"NOTFOUND "]

    def test_others_go_on(self) -> None:
        """A slow key of one client does not delay another client."""
        self.ask(b"map slow")
        other = Client(self.factory)
        other.send(encode(b"map k"))
        assert self.replies(other) == [b"OK v"]

    def test_failures(self) -> None:
        """Each kind of failure has its own word, with the reason; none of them is NOTFOUND."""
        self.table.answers = {
            b"temp": TemporaryError("gone for\nlunch"),
            b"timeout": LookupTimeout("too slow"),
            b"perm": PermanentError("broken"),
            b"other": TableError("hm"),
        }
        self.ask(b"map temp", b"map timeout", b"map perm", b"map other")
        assert self.replies() == [b"TEMP gone for?lunch", b"TIMEOUT too slow", b"PERM broken", b"TEMP hm"]

    def test_unforeseen(self) -> None:
        """A look-up that fails in an unforeseen way is TEMP, and logged; the connection goes on."""
        self.table.answers[b"bug"] = ZeroDivisionError("a bug")
        with capturedLogs() as logs:
            self.ask(b"map bug", b"map k")
        assert self.replies() == [b"TEMP internal error, see the log of socketmap-memcache", b"OK v"]
        assert "answered TEMP" in formatEvent(logs[0])
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1

    def test_unforeseen_in_a_loop(self) -> None:
        """A table that fails in an unforeseen way again and again does not fill the log."""
        self.table.answers[b"bug"] = ZeroDivisionError("a bug")
        for _ in range(100):
            self.ask(b"map bug")
        assert 0 < len(self.flushLoggedErrors(ZeroDivisionError)) < 50

    def test_table_raises(self) -> None:
        """A table that raises instead of failing is no different."""
        self.ask(b"map raise", b"map k")
        assert self.replies() == [b"TEMP internal error, see the log of socketmap-memcache", b"OK v"]
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1

    def test_odd_answer(self) -> None:
        """A table that answers what is no answer is no different either: nobody waits for ever."""
        self.table.answers[b"bug"] = 17  # type: ignore[assignment]
        self.ask(b"map bug", b"map k")
        assert self.replies() == [b"TEMP internal error, see the log of socketmap-memcache", b"OK v"]
        assert len(self.flushLoggedErrors(TypeError)) == 1

    def test_long_value(self) -> None:
        """A value that no Postfix would read is PERM."""
        self.table.answers[b"k"] = b"x" * 99_998
        self.ask(b"map k")
        assert self.replies() == [b"PERM value of 99998 bytes is above the socketmap reply limit of 99997"]

    def test_no_request(self) -> None:
        """A payload that is no request is PERM with the reason, and the connection goes on."""
        self.ask(b"", b"map", b" key", b"map k")
        assert self.replies() == [
            b"PERM request has no blank between map name and key",
            b"PERM request has no blank between map name and key",
            b"PERM request has no map name",
            b"OK v",
        ]

    def test_unknown_map(self) -> None:
        """A map that is not served is PERM, naming it; it is logged once a name, whoever asks."""
        with capturedLogs() as logs:
            self.ask(b"other k", b"other k", b"another\xff k", b"map k")
            client = Client(self.factory)
            client.send(encode(b"other k"))
        reason = b"PERM map 'other' is not served here; see tables in the configuration"
        assert self.replies() == [
            reason,
            reason,
            b"PERM map 'another???' is not served here; see tables in the configuration",
            b"OK v",
        ]
        assert self.replies(client) == [reason]
        assert len(logs) == 2
        assert formatEvent(logs[0]) == (
            "socketmap client [192.0.2.7]:4711: map 'other' is not served here; see tables in the configuration "
            "(logged once a name)"
        )

    def test_unknown_maps_are_bounded(self) -> None:
        """A client that makes names up does not fill the memory or the log, and long names are cut."""
        with capturedLogs() as logs:
            for number in range(300):
                self.ask(b"%d%b k" % (number, b"x" * 1000))
        assert len(logs) == 100
        assert all(len(formatEvent(event)) < 300 for event in logs)
        assert all(len(reply) <= 205 for reply in self.replies())

    def test_client_left(self) -> None:
        """The answer, or failure, of a look-up whose client has left goes nowhere."""
        self.ask(b"map a", b"map b", b"map c")
        self.client.leave(ConnectionDone())
        self.table.asked[1][1].errback(TemporaryError("x"))
        self.table.asked[0][1].callback(b"1")
        self.table.asked[2][1].callback(None)
        assert self.client.received() == b""

    def test_tables_replaced(self) -> None:
        """Requests that come after the tables are replaced use the new ones; those under way their old one."""
        self.ask(b"map slow")
        new = ScriptedTable("scripted:new")
        new.answers[b"k"] = b"new"
        self.factory.tables = {b"map": new}
        self.ask(b"map k")
        self.table.asked[0][1].callback(b"old")
        assert self.replies() == [b"OK old", b"OK new"]

    def test_garbage(self) -> None:
        """What is no netstring, or one above the limit, closes the connection after the answers to those before."""
        for garbage in (b"GET /", b"100001:", b"1:a.", b"01:a,"):
            self.client = Client(self.factory)
            with capturedLogs() as logs:
                self.client.send(encode(b"map k") + garbage + encode(b"map k"))
            assert self.replies() == [b"OK v"]
            assert self.client.is_closed()
            assert len(logs) == 1

    def test_longest_request(self) -> None:
        """A key as long as the limit allows is looked up."""
        key = b"x" * (100_000 - 4)
        self.table.answers[key] = b"long"
        self.ask(b"map " + key)
        assert self.replies() == [b"OK long"]
