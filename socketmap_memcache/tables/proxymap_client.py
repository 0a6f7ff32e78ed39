"""A client of proxymap(8) for one table: one connection, one request at a time, the others wait their turn."""

from __future__ import annotations

from collections import deque
from errno import EACCES, EPERM
from typing import Any, cast

from twisted.internet.defer import Deferred, fail
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.error import ConnectError
from twisted.internet.interfaces import IDelayedCall, ITCPTransport
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from socketmap_memcache.errors import LookupTimeout, PermanentError, TableError, TemporaryError
from socketmap_memcache.protocols.proxymap import (
    FLAGS,
    GREETING,
    AttributeReader,
    Dialect,
    Flag,
    Function,
    ProxymapError,
    Reply,
    Request,
    Status,
    encode_request,
    parse_reply,
)
from socketmap_memcache.tables.folding import fold

#: Seconds that a request may take, waiting for its turn included.
TIMEOUT = 10.0

#: Requests that wait, at most.
QUEUE_LIMIT = 10_000

#: Seconds without a request after which a connection is closed (``ipc_idle`` of Postfix). Then proxymap may end, or
#: find that a table has changed.
IDLE_LIMIT = 5.0

#: Seconds after which a connection is closed in any case (``ipc_ttl`` of Postfix).
AGE_LIMIT = 1000.0

# These may be sent again when nobody knows whether they were done.
_IDEMPOTENT = frozenset({Function.LOOKUP, Function.UPDATE})


class DeniedError(PermanentError):
    """The server is not allowed to serve this table, or not to change it."""


class Walk:
    """The requests of one walk through a table.

    :ivar client: whose server has the walk's place in the table; ``None`` before the first request.
    """

    client: ProxymapClient | None = None


class _Asked:
    """A request that has no reply yet."""

    __slots__ = ("deadline", "done", "request", "walk")

    def __init__(self, request: Request, walk: Walk | None, deadline: float) -> None:
        self.request = request
        self.walk = walk
        self.deadline = deadline
        self.done: Deferred[Reply] = Deferred()


class ProxymapClient:
    """All requests for one table to one server.

    A reply is waited for before the next request is sent: proxymap drops what it has read beyond the request that it
    answers. A request that was lost with a connection that had worked is sent once more, if it does no harm to do it
    twice; a look-up, an update.
    """

    def __init__(
        self,
        name: str,
        table: bytes,
        path: str,
        parameter: str,
        reactor: Any,
        timeout: float = TIMEOUT,
        fold_keys: bool = True,
    ) -> None:
        """Make a client that does not connect before its first request.

        :param name: of the table, for errors.
        :param table: ``type:name``, without ``proxy:``.
        :param path: the server's socket.
        :param parameter: of Postfix's main.cf: where tables have to be listed for this server.
        :param timeout: seconds that a request may take, waiting for its turn included.
        :param fold_keys: whether keys are folded for a table of fixed strings.
        """
        self._name = name
        self._table = table
        self._path = path
        self._parameter = parameter
        self._timeout = timeout
        self._reactor = reactor
        self._dialect = Dialect.FLAGS
        self._pending: deque[_Asked] = deque()  # the oldest first; it is the one that was sent, if one was
        self._connecting = False
        self._connection: _Connection | None = None
        self._walk: Walk | None = None  # whose place in the table the server has
        self._watch: IDelayedCall | None = None
        self._idle: IDelayedCall | None = None
        self._closed = False
        self._factory = Factory.forProtocol(lambda: _Connection(self, fold_keys))
        self._factory.noisy = False

    def ask(self, request: Request, walk: Walk | None = None) -> Deferred[Reply]:
        """Ask the server.

        :param walk: of a sequence: the walk that it belongs to. A request that is not its first must find the server
            where the one before has left it, or fails.
        :return: fires with a reply that is OK or NOKEY; fails with a :class:`TableError`.
        """
        if len(self._pending) >= QUEUE_LIMIT:
            return fail(TemporaryError(f"{self._name}: more than {QUEUE_LIMIT} requests wait for {self._path}"))
        asked = _Asked(request, walk, self._reactor.seconds() + self._timeout)
        self._pending.append(asked)
        if self._watch is None:
            self._watch = self._reactor.callLater(self._timeout, self._expire)
        self._advance()
        return asked.done

    def close(self) -> None:
        """Close the connection when all that was asked has been answered."""
        self._closed = True
        self._advance()

    # One after the other.

    def _advance(self) -> None:
        """Do what is next."""
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        connection = self._connection
        if self._pending:
            if connection is None:
                self._connect()
            elif connection.ready:
                self._send(connection, self._pending[0])
            return
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if connection is not None:
            age = self._reactor.seconds() - connection.since
            # In the middle of a walk the server, which may be one of many, must stay the same.
            left = AGE_LIMIT - age if self._walk is not None else min(IDLE_LIMIT, AGE_LIMIT - age)
            if self._closed or left <= 0:
                self._drop()
            else:
                self._idle = self._reactor.callLater(left, self._drop_idle)

    def _send(self, connection: _Connection, asked: _Asked) -> None:
        request = asked.request
        walk = asked.walk
        if walk is not None:
            if request.first:
                self._walk, walk.client = walk, self
            elif walk is not self._walk:
                error = f"{self._name}: the server has lost its place in the table, or another walk has begun"
                self._finish(TemporaryError(error))
                return
        connection.send(request)

    def _finish(self, result: Reply | TableError) -> None:
        """Give the oldest request its result, and go on."""
        asked = self._pending.popleft()
        if isinstance(result, TableError):
            asked.done.errback(Failure(result))
        else:
            asked.done.callback(result)
        self._advance()

    def _fail_all(self, error: TableError) -> None:
        pending, self._pending = self._pending, deque()
        for asked in pending:
            asked.done.errback(Failure(error))
        self._advance()

    def _expire(self) -> None:
        self._watch = None
        now = self._reactor.seconds()
        late = []
        while self._pending and self._pending[0].deadline <= now:
            late.append(self._pending.popleft())
        if late:
            self._drop()  # it was busy with the first of them, and an answer that comes too late is nobody's
        if self._pending:
            self._watch = self._reactor.callLater(max(self._pending[0].deadline - now, 0), self._expire)
        for asked in late:
            error = LookupTimeout(f"{self._name}: no answer from {self._path} in {self._timeout:g} s")
            asked.done.errback(Failure(error))
        self._advance()

    # The connection's life.

    def _connect(self) -> None:
        if not self._connecting:
            self._connecting = True
            endpoint = UNIXClientEndpoint(self._reactor, self._path, timeout=self._timeout)
            endpoint.connect(self._factory).addCallbacks(self._connected, self._unreachable)

    def _connected(self, connection: _Connection) -> None:
        self._connecting = False
        self._connection = connection
        connection.since = self._reactor.seconds()
        connection.open(self._table, self._dialect)
        self._advance()

    def _unreachable(self, failure: Failure) -> None:
        self._connecting = False
        reason = f"{self._name}: cannot connect to {self._path}: {failure.getErrorMessage()}"
        if isinstance(failure.value, ConnectError) and failure.value.osError in {EACCES, EPERM}:
            error: TableError = PermanentError(f"{reason} (only root and Postfix's own user, postfix, may)")
        else:
            error = TemporaryError(reason)
        self._fail_all(error)

    def opened(self, dialect: Dialect) -> None:
        """Hear from the connection that the table is open."""
        self._dialect = dialect
        self._advance()

    def refused(self, status: Status) -> None:
        """Hear from the connection that the table is not to be opened."""
        self._drop()
        self._fail_all(self._error(status))

    def replied(self, connection: _Connection, reply: Reply) -> None:
        """Hear from the connection what the answer is to the oldest request."""
        if self._pending[0].walk is not None and reply.status is not Status.OK:
            self._walk = None
        if self._walk is None and self._reactor.seconds() - connection.since >= AGE_LIMIT:
            self._drop()
        self._finish(reply if reply.status in {Status.OK, Status.NOKEY} else self._error(reply.status))

    def lost(self, connection: _Connection, why: str) -> None:
        """Hear from the connection that it is of no use any more."""
        self._drop()
        error = TemporaryError(f"{self._name}: {self._path}: {why}")
        function = connection.in_flight
        if not connection.is_open:
            self._fail_all(error)
        elif function is None or (connection.has_worked and function in _IDEMPOTENT):
            self._advance()  # sends it again, once: the next connection has not worked yet
        else:
            self._finish(error)

    def _drop_idle(self) -> None:
        self._idle = None
        self._drop()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        self._walk = None
        if connection is not None:
            connection.drop()

    def _error(self, status: Status) -> TableError:
        if status is Status.DENY:
            return DeniedError(
                f"{self._name}: not allowed by Postfix: list {self._name} in {self._parameter} in its main.cf, and "
                "reload it"
            )
        if status is Status.BAD:
            return PermanentError(f"{self._name}: {self._path} takes the request for invalid")
        if status is Status.CONFIG:
            return PermanentError(f"{self._name}: the table is not usable; Postfix's log says why")
        return TemporaryError(f"{self._name}: the table has failed; Postfix's log says why")


class _Connection(Protocol):
    """A connection to proxymap that has one table open.

    :ivar since: when it was made, in reactor seconds.
    :ivar is_open: whether the table has been opened.
    :ivar in_flight: the function that was asked for last and has no reply yet, when the table is open.
    :ivar has_worked: whether a request was answered, beside the one that opened the table.
    """

    def __init__(self, client: ProxymapClient, fold_keys: bool) -> None:
        self._client = client
        self._fold_keys = fold_keys
        self._reader = AttributeReader()
        self._table = b""
        self._dialect = Dialect.FLAGS
        self._other_dialect: Dialect | None = None  # to be tried if this one is not understood
        self._flags = FLAGS
        self._folds = False
        self._greeted = False
        self._usable = True
        self.since = 0.0
        self.is_open = False
        self.in_flight: Function | None = None
        self.has_worked = False

    @property
    def ready(self) -> bool:
        """Whether a request can be sent."""
        return self.is_open and self.in_flight is None

    def open(self, table: bytes, dialect: Dialect) -> None:
        """Open the table, in this dialect or else in the other."""
        self._table = table
        self._other_dialect = Dialect.FLAGS if dialect is Dialect.INSTANCE_FLAGS else Dialect.INSTANCE_FLAGS
        self._open(dialect)

    def _open(self, dialect: Dialect) -> None:
        # The greeting is not waited for: a server before 3.6 has none.
        self._dialect = dialect
        self._write(Request(Function.OPEN))

    def send(self, request: Request) -> None:
        """Send a request; its key is folded if the table is one of fixed strings, which only its server knows."""
        self.in_flight = request.function
        if self._folds and request.key:
            request = request._replace(key=fold(request.key) or request.key)
        self._write(request)

    def _write(self, request: Request) -> None:
        assert self.transport is not None
        self.transport.write(encode_request(request, self._table, self._flags, self._dialect))

    def drop(self) -> None:
        """Close the connection without hearing from it again."""
        self._usable = False
        cast(ITCPTransport, self.transport).abortConnection()  # Twisted's UNIX transports have it, too

    def dataReceived(self, data: bytes) -> None:
        """Take a greeting or a reply."""
        self._reader.feed(data)
        try:
            while self._usable and (attributes := self._reader.next_list()) is not None:
                self._take(attributes)
        except ProxymapError as error:
            self._client.lost(self, str(error))

    def _take(self, attributes: list[tuple[bytes, bytes]]) -> None:
        if not self._greeted and attributes == GREETING:
            self._greeted = True
            return
        self._greeted = True
        if not self.is_open:
            self._take_open(parse_reply(attributes, Function.OPEN, self._dialect))
        elif self.in_flight is None:
            raise ProxymapError("data that nobody asked for")
        else:
            reply = parse_reply(attributes, self.in_flight, self._dialect)
            self.in_flight = None
            self.has_worked = True
            self._client.replied(self, reply)

    def _take_open(self, reply: Reply) -> None:
        if reply.status is Status.BAD and self._other_dialect is not None:
            other, self._other_dialect = self._other_dialect, None
            self._open(other)
        elif reply.status is Status.OK:
            self.is_open = True
            self._folds = self._fold_keys and bool(reply.flags & Flag.FIXED)
            if self._dialect is Dialect.INSTANCE_FLAGS:
                self._flags = reply.flags
            self._client.opened(self._dialect)
        elif reply.status in {Status.BAD, Status.DENY}:
            self._client.refused(reply.status)
        else:
            raise ProxymapError(f"unexpected reply: status {reply.status.value} to open")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Hear that the server has left."""
        if self._usable:
            self._client.lost(self, "the connection was closed without an answer; Postfix's log may say why")
