"""What all listeners share: replies in the order of the requests, limits, idle time, drain."""

from __future__ import annotations

from collections import deque
from typing import Protocol as Structure
from typing import cast

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import (
    IDelayedCall,
    IHalfCloseableProtocol,
    IPushProducer,
    IReactorTime,
    ITCPTransport,
)
from twisted.internet.protocol import Protocol, ServerFactory, connectionDone
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from socketmap_memcache.errors import ProtocolError
from socketmap_memcache.listeners.entrance import Entrance
from socketmap_memcache.listeners.peer import peer_name
from socketmap_memcache.listeners.pipelined import Pipelined
from socketmap_memcache.log_limit import LogLimit
from socketmap_memcache.prompt_writer import WRITES_TOGETHER, PromptWriter

#: Clients of all listeners together.
CLIENT_LIMIT = 10_000

#: Requests of one client that may wait for their replies; then no more is read from it. Postfix has one at a time.
#: The replies may take 100,000 bytes each.
IN_FLIGHT_LIMIT = 100

#: Requests of one client that are begun before it is the turn of all others.
SLICE = 100

#: Seconds after which a slice ends, however few of them it has had: a regular expression may take long.
SLICE_TIME = 0.01

#: Lines in the log, in a minute, about what goes wrong with the clients of one listener; as many of each kind.
LOG_LINES = 30

#: An idle client is found at the latest after the idle time and this part of it more.
_TICKS = 4


class RequestReader(Structure):
    """A codec's reading side."""

    def sole(self, data: bytes) -> bytes | None:
        """Give the request that was received, if it is just one, and whole, and nothing is held; else ``None``.

        With ``None`` the data has not been taken, and is to be fed.
        """

    def feed(self, data: bytes) -> None:
        """Take what was received."""

    def next_payload(self) -> bytes | None:
        """Give the next whole request, or ``None`` until more is fed; raises :class:`ProtocolError` of garbage."""

    @property
    def partial(self) -> bool:
        """Whether bytes are held."""


class Request:
    """The place of a request in the order of its connection.

    :ivar reply: the bytes of its reply, once they are known.
    """

    __slots__ = ("reply",)

    def __init__(self) -> None:
        self.reply: bytes | None = None


class _StreamTransport(ITCPTransport, IPushProducer):
    """What a transport of Twisted's, TCP or UNIX, provides."""


@implementer(IHalfCloseableProtocol)
class StreamConnection(Protocol):
    """A client's connection. A subclass says how requests look and what to do with each.

    Nothing is read from a client while :data:`IN_FLIGHT_LIMIT` of its requests wait, or those of all clients are too
    many, or while it does not read its replies; so what clients can make the process hold is bounded.
    """

    factory: StreamFactory
    log = Logger()

    def __init__(self, reader: RequestReader) -> None:
        """Make a connection that is not connected yet."""
        self._reader = reader
        self._requests: deque[Request] = deque()
        self._paused = False
        self._closing = False
        self._ticks = 0
        self._pipelined = 0  # requests that count in the factory's
        self._next_slice: IDelayedCall | None = None

    def request_received(self, payload: bytes, request: Request) -> None:
        """Handle a request: now or later, once, call :meth:`reply`; or now :meth:`refuse`."""
        raise NotImplementedError

    def refuse(self, request: Request, error: ProtocolError) -> None:
        """Close the connection, without a reply to the request just received, after those before it are answered."""
        self._requests.remove(request)
        self._close_for(error)

    def reply(self, request: Request, reply: bytes) -> None:
        """Answer a request. It is sent when all requests before it have been answered; if the client left, never."""
        request.reply = reply
        requests = self._requests
        if not requests or requests[0] is not request:
            return
        requests.popleft()
        if requests:
            replies = [reply]
            while requests and requests[0].reply is not None:
                replies.append(cast(bytes, requests.popleft().reply))
            reply = b"".join(replies)
            self._count_pipelined()
        self._writer.write(reply)
        if self._closing:
            self._close_when_answered()
        elif self._paused:
            self._resume_if_possible()

    def peer(self) -> str:
        """Name the client, for the log."""
        return peer_name(self._transport)

    # The transport's side.

    def connectionMade(self) -> None:
        """Begin."""
        # Twisted's UNIX transports have all of a TCP transport's methods that are used here.
        self._transport = cast(_StreamTransport, self.transport)
        self._writer = PromptWriter(self._transport, self._pause, self._resume_if_possible)
        self.factory.remember(self)

    def dataReceived(self, data: bytes) -> None:
        """Handle the requests that are whole now."""
        if not self._requests and not self._paused and not self._closing:
            payload = self._reader.sole(data)
            if payload is not None:  # as all of Postfix's are
                self._begin(payload)
                return
        self._reader.feed(data)
        if not self._paused:
            self._handle_requests()

    def readConnectionLost(self) -> None:
        """Hear that the client sends no more, but may still read."""
        self.finish()

    def writeConnectionLost(self) -> None:
        """Hear that the client's end is closed; the reading side will tell."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Forget the client. Postfix closes connections as it likes, so this is no news."""
        self._requests.clear()
        self._closing = True
        self._count_pipelined()
        if self._next_slice is not None:
            self._next_slice.cancel()
        # Else what it holds would stay until the garbage collector comes: this object and its writer are a cycle.
        del self._reader
        self.factory.forget(self)

    # Reading, and its pauses.

    def _handle_requests(self) -> None:
        allowed = self._allowed()
        seconds = self.factory.reactor.seconds
        end = seconds() + SLICE_TIME
        try:
            for number in range(SLICE):
                if self._closing:
                    return
                if number:  # what is held back is not full
                    WRITES_TOGETHER.release()
                if self._writer.full or len(self._requests) >= allowed:
                    self._pause()
                    return
                payload = self._reader.next_payload()
                if payload is None:
                    return
                self._begin(payload)
                if seconds() >= end:
                    break
            self._pause()
            self._next_slice = self.factory.reactor.callLater(0, self._go_on)
        except ProtocolError as error:
            self._close_for(error)
        finally:
            self._count_pipelined()

    def _go_on(self) -> None:
        self._next_slice = None
        self._resume_if_possible()

    def _allowed(self) -> int:
        """Give how many requests may wait: one at least, and more while those of all clients are not too many."""
        pipelined = self.factory.pipelined
        return max(1, min(IN_FLIGHT_LIMIT, 1 + self._pipelined + pipelined.limit - pipelined.count))

    def _count_pipelined(self) -> None:
        waiting = max(0, len(self._requests) - 1)
        self.factory.pipelined.count += waiting - self._pipelined
        self._pipelined = waiting

    def _begin(self, payload: bytes) -> None:
        self._ticks = 0
        request = Request()
        self._requests.append(request)
        self.request_received(payload, request)

    def _pause(self) -> None:
        if not self._paused and not self._closing:
            self._paused = True
            self._transport.pauseProducing()

    def _resume_if_possible(self) -> None:
        if self._closing or not self._paused or self._next_slice is not None:
            return
        if self._writer.full or len(self._requests) > self._allowed() // 2:
            return
        self._paused = False
        self._handle_requests()
        if not self._paused and not self._closing:
            self._transport.resumeProducing()

    # The end.

    def tick(self) -> None:
        """Count a quarter of the idle time; only a whole request (and not: a byte of one) starts the count again."""
        if self._requests and not self._writer.full:
            return
        self._ticks += 1
        if self._ticks > _TICKS:
            if self._reader.partial or self._writer.full:
                self._complain("stalled; closed", self.factory.stalled_lines)
            self._transport.abortConnection()

    def finish(self) -> None:
        """Answer what has been asked, then close."""
        if not self._closing:
            self._transport.pauseProducing()
            self._closing = True
            self._close_when_answered()

    def _close_for(self, error: ProtocolError) -> None:
        self._complain(f"{error}; connection closed", self.factory.malformed_lines)
        self.finish()

    def _complain(self, what: str, limit: LogLimit) -> None:
        if limit.due():
            text = "{kind} client {peer}: {what}{more}"
            self.log.warn(text, kind=self.factory.kind, peer=self.peer(), what=what, more=limit.more())

    def _close_when_answered(self) -> None:
        if not self._requests:
            self._writer.close()

    def abort(self) -> None:
        """Close now."""
        self._transport.abortConnection()


class StreamFactory(ServerFactory):
    """A listener: makes connections, and looks after all of them.

    :cvar kind: the protocol's name, for the log.
    :ivar connections: those that are open.
    :ivar reactor: its time.
    :ivar entrance: how many clients there may be, here and at other listeners.
    :ivar pipelined: how many requests there may be, here and at other listeners.
    :ivar malformed_lines: keeps those who send garbage from filling the log.
    :ivar stalled_lines: keeps those who stop in the middle of something from filling the log.
    """

    kind = "stream"
    noisy = False
    _log = Logger()

    def __init__(self, reactor: IReactorTime, idle_timeout: float) -> None:
        """Make a listener without connections, and with limits of its own until others are set.

        :param idle_timeout: seconds after which a client that completes no request is disconnected.
        """
        self.reactor = reactor
        self.entrance = Entrance(reactor, CLIENT_LIMIT)
        self.pipelined = Pipelined()
        self.malformed_lines = LogLimit(reactor, lines=LOG_LINES)
        self.stalled_lines = LogLimit(reactor, lines=LOG_LINES)
        self.connections: set[StreamConnection] = set()
        self._drained: Deferred[None] | None = None
        self._idle_timeout = idle_timeout
        self._ticker = LoopingCall(self._tick)
        self._ticker.clock = reactor

    @property
    def idle_timeout(self) -> float:
        """Seconds after which a client that completes no request is disconnected; may be set at any time."""
        return self._idle_timeout

    @idle_timeout.setter
    def idle_timeout(self, seconds: float) -> None:
        if seconds == self._idle_timeout:
            return  # or else reloads that come often would put the next tick off for ever
        self._idle_timeout = seconds
        if self._ticker.running:
            self._ticker.stop()
            self.startFactory()

    def startFactory(self) -> None:
        """Begin to look for idle clients."""
        self._ticker.start(self._idle_timeout / _TICKS, now=False)

    def stopFactory(self) -> None:
        """Hear that the last port is closed; connections may still be open."""

    def _tick(self) -> None:
        for connection in list(self.connections):
            try:
                connection.tick()
            except Exception:  # noqa: BLE001 (idle clients would never be looked for again)
                self._log.failure("{kind} client: an unforeseen error", kind=self.kind)

    def remember(self, connection: StreamConnection) -> None:
        """Hear that a connection is open."""
        self.connections.add(connection)
        self.entrance.came()

    def forget(self, connection: StreamConnection) -> None:
        """Hear that a connection is closed."""
        if connection not in self.connections:
            return
        self.connections.remove(connection)
        self.entrance.left()
        if self._drained is not None and not self.connections:
            drained, self._drained = self._drained, None
            drained.callback(None)

    def drain(self) -> Deferred[None]:
        """Finish all connections; fires when they are closed."""
        if self._ticker.running:
            self._ticker.stop()
        if not self.connections:
            return succeed(None)
        self._drained = Deferred()
        drained = self._drained
        for connection in list(self.connections):
            connection.finish()
        return drained

    def abort(self) -> None:
        """Close all connections now."""
        for connection in list(self.connections):
            connection.abort()
