"""One connection to a PostgreSQL server, for a thread that may wait, but never longer than it is told.

It works with psycopg's binding of libpq, below its cursors: bytes in, bytes out, and a time limit for each exchange.
"""

from __future__ import annotations

import re
import select
from collections.abc import Callable, Sequence
from typing import NamedTuple

import attrs
from psycopg import Error, pq

from socketmap_memcache.errors import LookupTimeout, TemporaryError

Row = tuple[bytes | None, ...]

#: Waits until a socket can be read from, or written to; arguments: the socket, whether to write, seconds.
Wait = Callable[[int, bool, float], None]

_OLDEST = 140000  # libpq 14 has pipelines
_CANCELED = "57014"  # by statement_timeout
_PLACE = re.compile(r"^connection to server .* failed: ")


class ConnectionFailure(Exception):
    """There is no connection any more, or there never was. What was under way may have been done or not.

    :ivar hung: there was no answer in time, which there may not be the next time either.
    """

    def __init__(self, reason: str, hung: bool = False) -> None:
        super().__init__(reason)
        self.hung = hung


@attrs.frozen
class StatementError:
    """What the server has against a statement.

    :ivar state: the SQLSTATE, five characters.
    """

    state: str
    message: str

    def failure(self, name: str) -> TemporaryError:
        """Return the error of an operation on the table of this name."""
        kind = LookupTimeout if self.state == _CANCELED else TemporaryError
        return kind(f"{name}: {self.message}")


#: The rows of a statement; ``None`` for one that gives none; or an error.
Answer = list[Row] | StatementError | None


class Prepare(NamedTuple):
    """Prepare a statement with parameters ``$1``, ``$2``, ... for the :class:`Execute` that follow."""

    sql: bytes


class Execute(NamedTuple):
    """Execute the statement that was prepared."""

    values: Sequence[bytes]


class Query(NamedTuple):
    """Execute a statement."""

    sql: bytes


Command = Prepare | Execute | Query


def check_libpq() -> None:
    """See whether psycopg has found a libpq that will do.

    :raises ImportError: it has not.
    """
    if pq.version() < _OLDEST:
        raise ImportError(f"libpq {pq.version() // 10000} is too old, it has to be 14 at least")


def wait_for(socket: int, write: bool, seconds: float) -> None:
    """Wait with poll(2); see :data:`Wait`."""
    poll = select.poll()
    poll.register(socket, select.POLLIN | select.POLLOUT if write else select.POLLIN)
    poll.poll(max(seconds, 0) * 1000)


class Connection:
    """A connection that is used by one thread."""

    def __init__(self, pgconn: pq.abc.PGconn, seconds: Callable[[], float], wait: Wait = wait_for) -> None:
        """:param seconds: the time, of all deadlines."""
        self._pgconn = pgconn
        self._seconds = seconds
        self._wait = wait
        self._escaping = pq.Escaping(pgconn)

    @classmethod
    def open(cls, conninfo: bytes, deadline: float, seconds: Callable[[], float], wait: Wait = wait_for) -> Connection:
        """Connect to a server; by addresses, as libpq may stop all threads while it looks up a name.

        :raises ConnectionFailure: with the reason.
        """
        pgconn = pq.PGconn.connect_start(conninfo)
        connection = cls(pgconn, seconds, wait)
        try:
            connection._connect(deadline)
        except ConnectionFailure:
            connection.close()
            raise
        return connection

    def ask(self, sql: bytes, deadline: float, values: Sequence[bytes] | None = None) -> Answer:
        """Execute a statement, or without values maybe several; the answer is that of the last, or the first error.

        With an answer that is no error all is committed.

        :param values: of the parameters ``$1``, ``$2``, ...
        :raises ConnectionFailure: there is no connection any more.
        """
        try:
            if values is None:
                self._pgconn.send_query(sql)
            else:
                self._pgconn.send_query_params(sql, values)
            answers: list[Answer] = []
            while (result := self._next_result(deadline)) is not None:
                answers.append(self._answer(result))
        except Error:
            raise self._failure() from None
        errors = [answer for answer in answers if isinstance(answer, StatementError)]
        return errors[0] if errors else answers[-1]

    def run(self, commands: Sequence[Command], deadline: float) -> list[Answer]:
        """Execute commands in one round trip, and as one transaction.

        :return: the answers to all of them, or up to the first error, which is the last answer then.
        :raises ConnectionFailure: there is no connection any more.
        """
        answers: list[Answer] = []
        try:
            self._pgconn.enter_pipeline_mode()
            for command in commands:
                self._send(command)
            self._pgconn.pipeline_sync()
            while True:
                result = self._next_result(deadline)
                if result is None:  # the end of a command
                    continue
                if result.status == pq.ExecStatus.PIPELINE_SYNC:
                    break
                if result.status != pq.ExecStatus.PIPELINE_ABORTED:
                    answers.append(self._answer(result))
            self._pgconn.exit_pipeline_mode()
        except Error:
            raise self._failure() from None
        return answers

    def escape(self, value: bytes) -> bytes:
        """Return what stands for a value inside the quotes of a statement.

        :raises ValueError: that is not text in the encoding of the connection.
        """
        try:
            return bytes(self._escaping.escape_string(value))
        except Error as error:
            raise ValueError(str(error)) from None

    @property
    def server_encoding(self) -> str:
        """The encoding of the database."""
        return (self._pgconn.parameter_status(b"server_encoding") or b"").decode()

    def close(self) -> None:
        """Give the connection back; idempotent."""
        self._pgconn.finish()

    def _connect(self, deadline: float) -> None:
        pgconn = self._pgconn
        status = pq.PollingStatus.WRITING
        try:
            while status != pq.PollingStatus.OK:
                if status == pq.PollingStatus.FAILED or pgconn.status == pq.ConnStatus.BAD:
                    raise self._failure()
                self._pause(status == pq.PollingStatus.WRITING, deadline)
                status = pq.PollingStatus(pgconn.connect_poll())
            pgconn.nonblocking = 1
        except Error:
            raise self._failure() from None

    def _send(self, command: Command) -> None:
        if isinstance(command, Execute):
            self._pgconn.send_query_prepared(b"", command.values)
        elif isinstance(command, Prepare):
            self._pgconn.send_prepare(b"", command.sql)
        else:
            self._pgconn.send_query_params(command.sql, None)

    def _next_result(self, deadline: float) -> pq.abc.PGresult | None:
        pgconn = self._pgconn
        while pgconn.flush():  # while it takes no more, it may wait for us to read
            self._pause(True, deadline)
            pgconn.consume_input()
        while pgconn.is_busy():
            self._pause(False, deadline)
            pgconn.consume_input()
        return pgconn.get_result()

    def _pause(self, write: bool, deadline: float) -> None:
        left = deadline - self._seconds()
        if left <= 0:
            raise ConnectionFailure("no answer in time", hung=True)
        self._wait(self._pgconn.socket, write, left)

    def _answer(self, result: pq.abc.PGresult) -> Answer:
        if result.status == pq.ExecStatus.TUPLES_OK:
            columns = range(result.nfields)
            return [tuple([result.get_value(row, column) for column in columns]) for row in range(result.ntuples)]
        if result.status == pq.ExecStatus.COMMAND_OK:
            return None
        if result.status == pq.ExecStatus.EMPTY_QUERY:
            return StatementError("42601", "the query is empty")
        if self._pgconn.status == pq.ConnStatus.BAD or result.status != pq.ExecStatus.FATAL_ERROR:
            raise ConnectionFailure(_reason(result.error_message) or "an answer that was not expected")
        state = result.error_field(pq.DiagnosticField.SQLSTATE) or b""
        return StatementError(state.decode(), _reason(result.error_message))

    def _failure(self) -> ConnectionFailure:
        return ConnectionFailure(_reason(self._pgconn.error_message) or "the connection is lost")


def _reason(message: bytes) -> str:
    """Return the first line of a message of libpq's, without what everybody knows."""
    line = message.decode(errors="replace").strip().partition("\n")[0]
    return _PLACE.sub("", line).removeprefix("ERROR:").removeprefix("FATAL:").strip()
