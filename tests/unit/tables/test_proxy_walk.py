from __future__ import annotations

from typing import Any

import attrs
from twisted.internet.defer import Deferred

from socketmap_memcache.errors import (
    TemporaryError,
)
from socketmap_memcache.tables.proxymap_client import AGE_LIMIT
from socketmap_memcache.tables.registry import PROXYMAP_SOCKET

from .proxy_tests import ProxyTestCase, Server, result_of


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
