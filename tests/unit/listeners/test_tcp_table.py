from __future__ import annotations

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from socketmap_memcache.errors import LookupTimeout, PermanentError, TemporaryError
from socketmap_memcache.listeners.tcp_table import TcpTableFactory
from socketmap_memcache.tables.interface import ITable
from socketmap_memcache.tables.read_only import ReadOnlyTable
from tests.unit.listeners.transports import Client


@implementer(ITable)
class ScriptedTable(ReadOnlyTable):
    def __init__(self, answers: dict[bytes, bytes | Exception | None]) -> None:
        self.name = "scripted:x"
        self.answers = answers

    def lookup(self, key: bytes) -> Deferred[bytes | None]:
        answer = self.answers[key]
        return fail(answer) if isinstance(answer, Exception) else succeed(answer)

    def close(self) -> None:
        pass


class TcpTableTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.table = ScriptedTable({b"k": b"a b", b"missing": None, b"": None})
        self.factory = TcpTableFactory(b"map", {b"map": self.table}, Clock(), 400)
        self.client = Client(self.factory)

    def ask(self, *lines: bytes) -> list[bytes]:
        self.client.send(b"".join(line + b"\n" for line in lines))
        return self.client.received().splitlines()

    def test_found_and_missing(self) -> None:
        """A value is 200, and a missing key, also an empty one, is 500."""
        replies = self.ask(b"get k", b"get missing", b"get ", b"get %6b")
        assert replies == [b"200 a%20b", b"500 not%20found", b"500 not%20found", b"200 a%20b"]

    def test_failures(self) -> None:
        """Every failure is 400 with the reason."""
        self.table.answers = {b"a": TemporaryError("1"), b"b": LookupTimeout("2"), b"c": PermanentError("3")}
        assert self.ask(b"get a", b"get b", b"get c") == [b"400 1", b"400 2", b"400 3"]

    def test_unforeseen(self) -> None:
        """A table that raises fails its look-up only."""
        assert self.ask(b"get unknown", b"get k")[1] == b"200 a%20b"
        assert len(self.flushLoggedErrors(KeyError)) == 1

    def test_long_value(self) -> None:
        """A value that does not fit is 400."""
        self.table.answers[b"k"] = b"a" * 4092
        assert self.ask(b"get k")[0].startswith(b"400 the%20encoded%20value")

    def test_no_request(self) -> None:
        """What is no request is 400, and the connection goes on."""
        replies = self.ask(b"put k v", b"", b"get k%", b"get k")
        assert replies == [
            b"400 this%20table%20is%20read-only",
            b"400 unknown%20request,%20expected:%20get%20key",
            b"400 bad%20%25-encoding%20in%20the%20key",
            b"200 a%20b",
        ]

    def test_too_long(self) -> None:
        """A request above the limit is 400, whether it has an end or not, and the connection is closed."""
        with capturedLogs() as logs:
            self.client.send(b"get k\nget " + b"a" * 100_000)
        assert self.client.received() == b"200 a%20b\n400 request%20of%20more%20than%20100000%20bytes\n"
        assert self.client.is_closed()
        assert len(logs) == 1

    def test_replaced(self) -> None:
        """When the tables are replaced requests use the new ones; those for a map that is gone are 400."""
        self.factory.tables = {b"map": ScriptedTable({b"k": b"new"})}
        assert self.ask(b"get k") == [b"200 new"]
        self.factory.tables = {}
        assert self.ask(b"get k") == [b"400 map%20'map'%20is%20not%20served%20here%20any%20more"]
