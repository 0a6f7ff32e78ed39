"""A client of a socketmap server: connections with one request at a time on each, as Postfix itself does it."""

from __future__ import annotations

from collections import deque
from typing import Protocol as Structure
from typing import cast

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.error import TimeoutError as ConnectTimeoutError
from twisted.internet.interfaces import IDelayedCall, IProtocolFactory, IReactorTime, ITCPTransport
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from socketmap_memcache.errors import LookupTimeout, ProtocolError, TemporaryError
from socketmap_memcache.protocols.netstring import NetstringReader
from socketmap_memcache.protocols.socketmap import REPLY_LIMIT

#: Seconds that a look-up may take, waiting for its turn, connecting and a second try included.
TIMEOUT = 10.0

#: Seconds after which a connection that is not used is closed; Postfix's own client has the same.
IDLE_TIMEOUT = 10.0

#: Connections to one server at the same time: about as many as the processes of a Postfix that would ask it themselves.
#: Of a server that takes 20 ms, this is 3,200 look-ups a second.
CONNECTION_LIMIT = 64

#: Look-ups that may wait for a connection.
QUEUE_LIMIT = 1000


class Connect(Structure):
    """A way to the server."""

    def __call__(self, factory: IProtocolFactory, timeout: float) -> Deferred[SocketmapClientConnection]:
        """Connect; fails within about ``timeout`` seconds where it cannot."""


class _Request:
    """A question: what to send, and until when its answer counts."""

    __slots__ = ("deadline", "done", "is_second_try", "wire")

    def __init__(self, wire: bytes, deadline: float) -> None:
        self.wire = wire
        self.deadline = deadline
        self.is_second_try = False
        self.done: Deferred[bytes] = Deferred()


class SocketmapClientConnection(Protocol):
    """One connection. It is used until the first thing goes wrong on it: what comes after that could be misread."""

    def __init__(self, client: SocketmapClient, reactor: IReactorTime) -> None:
        """Make a connection that is not connected yet."""
        self._client = client
        self._reactor = reactor
        self._reader = NetstringReader(REPLY_LIMIT)
        self._request: _Request | None = None
        self._timer: IDelayedCall | None = None
        self._usable = True

    def send(self, request: _Request) -> None:
        """Ask, and wait for the reply until the request's deadline."""
        self._request = request
        self._set_timer(request.deadline - self._reactor.seconds())
        self._transport().write(request.wire)

    def rest(self) -> None:
        """Stay connected for a while, without a request."""
        self._set_timer(IDLE_TIMEOUT)

    def close(self) -> None:
        """Close the connection, if it still is one; a request that is under way fails."""
        self._end("closed", TemporaryError)

    def dataReceived(self, data: bytes) -> None:
        """Take a part of a reply."""
        if not self._usable:
            return
        self._reader.feed(data)
        if self._request is None:
            self.close()  # data that nobody asked for
            return
        try:
            payload = self._reader.next_payload()
        except ProtocolError as error:
            self._end(str(error), TemporaryError)
            return
        if payload is None:
            return
        request, self._request = self._request, None
        if self._reader.partial:
            self.close()  # what follows one reply would be taken for the next
        else:
            self._client.rested(self)
        request.done.callback(payload)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Hear that the connection is gone."""
        self._end(f"connection lost: {reason.getErrorMessage()}", TemporaryError, lost=True)

    def _transport(self) -> ITCPTransport:
        # Twisted's UNIX transports have all of a TCP transport's methods that are used here.
        return cast(ITCPTransport, self.transport)

    def _set_timer(self, seconds: float) -> None:
        if self._timer is None:
            self._timer = self._reactor.callLater(max(seconds, 0), self._expire)
        else:
            self._timer.reset(max(seconds, 0))

    def _expire(self) -> None:
        self._timer = None
        self._end(f"no reply within {self._client.timeout:g} s", LookupTimeout)

    def _end(self, reason: str, kind: type[TemporaryError], *, lost: bool = False) -> None:
        if not self._usable:
            return
        self._usable = False
        if self._timer is not None:
            self._timer.cancel()
        if not lost:
            self._transport().abortConnection()
        request, self._request = self._request, None
        self._client.ended(self, request, kind(f"socketmap server {self._client.name}: {reason}"), lost)


class SocketmapClient:
    """Asks one server. What goes wrong on one connection does not concern the others.

    A look-up whose connection the server closes is sent once more, on a new connection; one that the server does not
    accept, does not answer in time, or answers with something else is not.
    """

    def __init__(self, name: str, connect: Connect, reactor: IReactorTime, timeout: float = TIMEOUT) -> None:
        """Make a client that does not connect before it is asked.

        :param name: the server as Postfix writes it; for errors.
        :param timeout: seconds that a look-up may take, waiting for a connection included.
        """
        self.name = name
        self.timeout = timeout
        self._connect = connect
        self._reactor = reactor
        self._open_count = 0  # connections, and attempts to connect
        self._idle: list[SocketmapClientConnection] = []
        self._queue: deque[_Request] = deque()
        self._dispatching = False
        self._closed = False
        self._factory = Factory.forProtocol(self._build_connection)
        self._factory.noisy = False

    def ask(self, wire: bytes) -> Deferred[bytes]:
        """Send a request; fires with the reply's payload, or fails with :class:`TemporaryError`."""
        if len(self._queue) >= QUEUE_LIMIT:
            return fail(TemporaryError(f"socketmap server {self.name}: {QUEUE_LIMIT} look-ups are waiting already"))
        request = _Request(wire, self._reactor.seconds() + self.timeout)
        self._queue.append(request)
        self._dispatch()
        return request.done

    def close(self) -> None:
        """Close each connection as soon as nothing is under way on it."""
        self._closed = True
        for connection in list(self._idle):
            connection.close()

    def _build_connection(self) -> SocketmapClientConnection:
        return SocketmapClientConnection(self, self._reactor)

    def _dispatch(self) -> None:
        if self._dispatching:  # what fails at once would go deeper and deeper
            return
        self._dispatching = True
        try:
            # The look-ups on the connections have the earliest deadlines, so that one of the queue is seen to in time.
            while self._queue and (self._idle or self._open_count < CONNECTION_LIMIT):
                request = self._queue.popleft()
                if self._idle:
                    self._idle.pop().send(request)
                else:
                    self._open(request)
        finally:
            self._dispatching = False

    def _open(self, request: _Request) -> None:
        self._open_count += 1
        attempt = self._connect(self._factory, max(request.deadline - self._reactor.seconds(), 0))
        attempt.addCallbacks(self._connected, self._unreachable, callbackArgs=(request,), errbackArgs=(request,))

    def _connected(self, connection: SocketmapClientConnection, request: _Request) -> None:
        connection.send(request)

    def _unreachable(self, failure: Failure, request: _Request) -> None:
        self._open_count -= 1
        if isinstance(failure.value, (ConnectTimeoutError, ConnectingCancelledError, CancelledError)):
            reason = f"no connection within {self.timeout:g} s"
            error: TemporaryError = LookupTimeout(f"socketmap server {self.name}: {reason}")
        else:
            error = TemporaryError(f"socketmap server {self.name}: {failure.getErrorMessage()}")
        request.done.errback(error)
        self._dispatch()

    # What connections call.

    def rested(self, connection: SocketmapClientConnection) -> None:
        """Hear that a connection has got its reply and could send another request."""
        self._idle.append(connection)
        connection.rest()
        self._dispatch()
        if self._closed and connection in self._idle:
            connection.close()

    def ended(
        self, connection: SocketmapClientConnection, request: _Request | None, error: TemporaryError, lost: bool
    ) -> None:
        """Hear that a connection is closed.

        :param request: what was under way on it.
        :param lost: whether it was the server that closed it.
        """
        self._open_count -= 1
        if connection in self._idle:
            self._idle.remove(connection)
        if request is not None:
            if lost and not request.is_second_try:
                request.is_second_try = True
                self._open(request)
            else:
                request.done.errback(error)
        self._dispatch()
