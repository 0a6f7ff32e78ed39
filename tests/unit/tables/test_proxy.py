from __future__ import annotations

import tempfile
from typing import cast

from twisted.internet.error import ConnectionRefusedError as NobodyThere

from socketmap_memcache.config.service import load
from socketmap_memcache.errors import (
    ConfigurationError,
    PermanentError,
    TemporaryError,
)
from socketmap_memcache.memcache.pool import ClientPool
from socketmap_memcache.protocols.proxymap import FLAGS
from socketmap_memcache.tables.interface import RefusedError
from socketmap_memcache.tables.proxy import ProxyTable
from socketmap_memcache.tables.proxymap_client import DeniedError
from socketmap_memcache.tables.registry import PROXYMAP_SOCKET, PROXYWRITE_SOCKET, TableContext

from .proxy_tests import PATTERN, ProxyTestCase, result_of


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
