from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, cast
from unittest.mock import patch

import attrs
import pytest
from twisted.internet.task import Clock

pytest.importorskip("psycopg")

import psycopg
from psycopg import pq

from socketmap_memcache.tables.pgsql_connection import (
    Connection,
    ConnectionFailure,
    Execute,
    Prepare,
    Query,
    StatementError,
    wait_for,
)

Status = pq.ExecStatus


@attrs.define
class FakeResult:
    status: int
    rows: list[tuple[bytes | None, ...]] = attrs.Factory(list)
    error_message: bytes = b""
    state: bytes | None = b"42601"

    @property
    def ntuples(self) -> int:
        return len(self.rows)

    @property
    def nfields(self) -> int:
        return len(self.rows[0]) if self.rows else 0

    def get_value(self, row: int, column: int) -> bytes | None:
        return self.rows[row][column]

    def error_field(self, code: int) -> bytes | None:
        assert code == pq.DiagnosticField.SQLSTATE
        return self.state


END = None
SYNC = FakeResult(Status.PIPELINE_SYNC)
OK = FakeResult(Status.COMMAND_OK)


def rows(*found: tuple[bytes | None, ...]) -> FakeResult:
    return FakeResult(Status.TUPLES_OK, list(found))


class FakePGconn:
    """A connection whose results are prepared.

    :ivar results: what comes; an exception is raised, ``True`` is a wait before the next one.
    :ivar sent: what was called.
    """

    def __init__(self, *results: Any) -> None:
        self.results = list(results)
        self.sent: list[tuple[Any, ...]] = []
        self.polls: list[Any] = [pq.PollingStatus.READING, pq.PollingStatus.OK]
        self.unflushed = 0
        self.status = pq.ConnStatus.OK
        self.error_message = b""
        self.socket = 7
        self.nonblocking = 0

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: self.sent.append((name, *arguments))

    def connect_poll(self) -> int:
        step = self.polls.pop(0)
        if isinstance(step, Exception):
            raise step
        return int(step)

    def flush(self) -> int:
        self.unflushed -= 1
        return int(self.unflushed >= 0)

    def is_busy(self) -> int:
        if isinstance(self.results[0], Exception):
            raise self.results.pop(0)
        return int(self.results[0] is True)

    def consume_input(self) -> None:
        if self.results[0] is True:
            self.results.pop(0)

    def get_result(self) -> FakeResult | None:
        return cast("FakeResult | None", self.results.pop(0))

    def parameter_status(self, name: bytes) -> bytes | None:
        return b"UTF8" if name == b"server_encoding" else None


@attrs.define
class Site:
    clock: Clock = attrs.Factory(Clock)
    waits: list[tuple[int, bool, float]] = attrs.Factory(list)

    def wait(self, socket: int, write: bool, seconds: float) -> None:
        self.waits.append((socket, write, seconds))
        self.clock.advance(1)

    def connection(self, pgconn: FakePGconn) -> Connection:
        with patch.object(pq, "Escaping", lambda _: None):
            return Connection(cast("pq.abc.PGconn", pgconn), self.clock.seconds, self.wait)

    def open(self, pgconn: FakePGconn) -> Connection:
        class Module:
            @staticmethod
            def connect_start(conninfo: bytes) -> FakePGconn:
                assert conninfo == b"host=x"
                return pgconn

        with (
            patch.object(pq, "PGconn", Module),
            patch.object(pq, "Escaping", lambda _: None),
        ):
            return Connection.open(b"host=x", 10, self.clock.seconds, self.wait)


@pytest.fixture
def site() -> Site:
    return Site()


class TestOpen:
    def test_open(self, site: Site) -> None:
        """A connection is made step by step, as libpq says what to wait for."""
        pgconn = FakePGconn()
        connection = site.open(pgconn)
        assert [write for _, write, _ in site.waits] == [True, False]
        assert pgconn.nonblocking == 1
        assert connection.server_encoding == "UTF8"
        connection.close()
        assert pgconn.sent == [("finish",)]

    def test_refused(self, site: Site) -> None:
        """The reason of a failure is the first line of what libpq says, without the place."""
        pgconn = FakePGconn()
        pgconn.polls = [pq.PollingStatus.FAILED]
        pgconn.error_message = b'connection to server at "x", port 1 failed: Connection refused\n\tIs it up?\n'
        with pytest.raises(ConnectionFailure, match="^Connection refused$") as caught:
            site.open(pgconn)
        assert not caught.value.hung
        assert pgconn.sent == [("finish",)]

    def test_bad_at_once(self, site: Site) -> None:
        """A connection that is bad from the beginning is a failure."""
        pgconn = FakePGconn()
        pgconn.status = pq.ConnStatus.BAD
        with pytest.raises(ConnectionFailure, match="^the connection is lost$"):
            site.open(pgconn)

    def test_error(self, site: Site) -> None:
        """An error of psycopg's is a failure."""
        pgconn = FakePGconn()
        pgconn.polls = [psycopg.OperationalError("x")]
        with pytest.raises(ConnectionFailure):
            site.open(pgconn)

    def test_hangs(self, site: Site) -> None:
        """A server that does not answer in time hangs."""
        pgconn = FakePGconn()
        pgconn.polls = [pq.PollingStatus.READING] * 20
        with pytest.raises(ConnectionFailure, match="no answer in time") as caught:
            site.open(pgconn)
        assert caught.value.hung
        assert site.clock.seconds() == 10


class TestAsk:
    def test_values(self, site: Site) -> None:
        """A statement with values gives rows of bytes."""
        pgconn = FakePGconn(True, rows((b"1", None), (b"2", b"x")), END)
        pgconn.unflushed = 1
        assert site.connection(pgconn).ask(b"SQL", 10, [b"v"]) == [(b"1", None), (b"2", b"x")]
        assert pgconn.sent == [("send_query_params", b"SQL", [b"v"])]
        assert [write for _, write, _ in site.waits] == [True]  # what comes meanwhile is read

    def test_several(self, site: Site) -> None:
        """Of several statements the last one's answer counts, or the first error."""
        assert site.connection(FakePGconn(rows((b"1",)), OK, END)).ask(b"SQL", 10) is None
        error = FakeResult(Status.FATAL_ERROR, error_message=b"ERROR:  no such\nLINE 1: x")
        pgconn = FakePGconn(OK, True, error, END)
        assert site.connection(pgconn).ask(b"SQL", 10) == StatementError("42601", "no such")
        assert pgconn.sent == [("send_query", b"SQL")]

    def test_empty(self, site: Site) -> None:
        """An empty query is an error."""
        answer = site.connection(FakePGconn(FakeResult(Status.EMPTY_QUERY), END)).ask(b";", 10)
        assert answer == StatementError("42601", "the query is empty")

    def test_no_state(self, site: Site) -> None:
        """An error of libpq's own has no state."""
        error = FakeResult(Status.FATAL_ERROR, error_message=b"x", state=None)
        assert site.connection(FakePGconn(error, END)).ask(b"SQL", 10) == StatementError("", "x")

    def test_lost(self, site: Site) -> None:
        """A connection that ends is a failure, however libpq says so."""
        pgconn = FakePGconn(FakeResult(Status.FATAL_ERROR, error_message=b"FATAL:  terminating connection"))
        pgconn.status = pq.ConnStatus.BAD
        with pytest.raises(ConnectionFailure, match="^terminating connection$"):
            site.connection(pgconn).ask(b"SQL", 10)
        for act in ("ask", "run"):
            pgconn = FakePGconn(psycopg.OperationalError("x"))
            pgconn.error_message = b"server closed the connection unexpectedly\n\tThis probably means"
            with pytest.raises(ConnectionFailure, match="^server closed the connection unexpectedly$"):
                getattr(site.connection(pgconn), act)(b"", 10)

    def test_copy(self, site: Site) -> None:
        """An answer that is none of a query's is a failure."""
        with pytest.raises(ConnectionFailure, match="an answer that was not expected"):
            site.connection(FakePGconn(FakeResult(Status.COPY_OUT))).ask(b"COPY", 10)

    def test_escape(self) -> None:
        """A value is escaped as the connection needs it; one that cannot be is an error."""
        connection = Connection(pq.PGconn.connect_start(b"host=/nowhere"), Clock().seconds)

        class Escaping:
            def escape_string(self, value: bytes) -> bytes:
                if value == b"bad":
                    raise psycopg.OperationalError("incomplete multibyte character")
                return value.replace(b"'", b"''")

        connection._escaping = cast("Any", Escaping())
        assert connection.escape(b"a'b") == b"a''b"
        with pytest.raises(ValueError, match="incomplete"):
            connection.escape(b"bad")
        connection.close()
        connection.close()


class TestRun:
    def run(self, site: Site, commands: Sequence[Any], *results: Any) -> tuple[Any, list[Any]]:
        pgconn = FakePGconn(*results)
        return site.connection(pgconn).run(commands, 10), pgconn.sent

    def test_run(self, site: Site) -> None:
        """Commands leave together, and each has an answer."""
        commands = [Prepare(b"P"), Execute([b"1"]), Query(b"Q")]
        answers, sent = self.run(site, commands, OK, END, rows((b"x",)), END, rows(), END, SYNC)
        assert answers == [None, [(b"x",)], []]
        assert sent == [
            ("enter_pipeline_mode",),
            ("send_prepare", b"", b"P"),
            ("send_query_prepared", b"", [b"1"]),
            ("send_query_params", b"Q", None),
            ("pipeline_sync",),
            ("exit_pipeline_mode",),
        ]

    def test_error(self, site: Site) -> None:
        """What is after an error has no answer."""
        error = FakeResult(Status.FATAL_ERROR, error_message=b"ERROR: bad")
        aborted = FakeResult(Status.PIPELINE_ABORTED)
        answers, _ = self.run(site, [Query(b"1"), Query(b"2")], error, END, aborted, END, SYNC)
        assert answers == [StatementError("42601", "bad")]


def test_wait_for() -> None:
    """A wait ends when the socket can be written to, or when its time is over."""
    import socket

    one, two = socket.socketpair()
    begin = time.monotonic()
    with one, two:
        wait_for(one.fileno(), True, 20)
        wait_for(one.fileno(), False, 0)
        wait_for(one.fileno(), False, -1)
    assert time.monotonic() - begin < 20
