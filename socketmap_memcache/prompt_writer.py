"""Writing without waiting for the reactor's next turn."""

from __future__ import annotations

from collections.abc import Callable
from socket import AF_UNIX, socket
from typing import cast

from twisted.internet.interfaces import IConsumer, IPushProducer, ITransport
from twisted.internet.tcp import Connection
from twisted.logger import Logger
from zope.interface import implementer


def _nothing() -> None:
    pass


class WritesTogether:
    """A context in which all that is written, by any writer, is held back, and then leaves in one go.

    Each write wakes up another process. To wake up many one after the other, with no work in between, takes a tenth
    less time in all.

    Contexts may be inside each other: the outermost one counts.

    :ivar held: what has been held back: functions, each with the bytes that it is to write; ``None`` outside of a
        context.
    """

    __slots__ = ("_depth", "held")
    _log = Logger()

    def __init__(self) -> None:
        """Begin outside."""
        self.held: list[tuple[Callable[[bytes], object], bytes]] | None = None
        self._depth = 0

    def __enter__(self) -> None:
        self._depth += 1
        if self.held is None:
            self.held = []

    def __exit__(self, *exc_info: object) -> None:
        self._depth -= 1
        if not self._depth:
            self.release()

    def release(self) -> None:
        """Write what is held back, and hold back nothing more."""
        held, self.held = self.held, None
        for write, data in held or ():
            try:
                write(data)
            except Exception:  # noqa: BLE001 (whatever happens to one client, the others get what was held back)
                self._log.failure("what was held back could not be written")


#: There is one reactor, so there is one of these.
WRITES_TOGETHER = WritesTogether()


@implementer(IPushProducer)
class PromptWriter:
    """Writes to a transport: at once what its socket takes now, and only the rest through the transport's buffer.

    ``transport.write`` alone would register the socket with epoll for each reply, which takes longer than the look-up.
    It is used for whatever is not a plain socket of Twisted's (TLS, tests). An error of the socket is left for the
    transport to find, which then closes the connection in its own time: the caller never sees it.

    :ivar full: whether the transport's buffer holds something.
    """

    __slots__ = ("_on_drained", "_on_full", "_registering", "_socket", "_transport", "full")

    def __init__(
        self,
        transport: ITransport,
        on_full: Callable[[], None] = _nothing,
        on_drained: Callable[[], None] = _nothing,
    ) -> None:
        """Take over the writing side of a transport.

        :param on_full: called when the peer does not read as fast as it is written to.
        :param on_drained: called when it has caught up.
        """
        self._transport = transport
        self._on_full = on_full
        self._on_drained = on_drained
        self._socket: socket | None = None
        self._registering = False
        self.full = False
        if isinstance(transport, Connection) and not transport.TLS:
            self._socket = transport.getHandle()
            if self._socket.family != AF_UNIX:
                transport.setTcpNoDelay(True)
        else:
            cast(IConsumer, transport).registerProducer(self, True)

    def write(self, data: bytes) -> None:
        """Write, in order, all of the data."""
        if WRITES_TOGETHER.held is None:
            self._write(data)
        else:
            WRITES_TOGETHER.held.append((self._write, data))

    def _write(self, data: bytes) -> None:
        if self._socket is None or self.full:
            self._transport.write(data)
            return
        try:
            sent = self._socket.send(data)
        except OSError:
            sent = 0
        if sent < len(data):
            self._transport.write(data[sent:])
            self._watch_buffer()

    def close(self) -> None:
        """Close the connection when all is written."""
        WRITES_TOGETHER.release()
        if self._socket is None:
            cast(IConsumer, self._transport).unregisterProducer()
        self._transport.loseConnection()

    def _watch_buffer(self) -> None:
        # A pull producer is asked for more as soon as it registers, and then when the buffer is empty.
        self.pauseProducing()
        self._registering = True
        cast(IConsumer, self._transport).registerProducer(self, False)
        self._registering = False

    def pauseProducing(self) -> None:
        """Hear that the buffer is not empty."""
        self.full = True
        self._on_full()

    def resumeProducing(self) -> None:
        """Hear that the buffer is empty."""
        if self._registering:
            return
        if self._socket is not None:
            cast(IConsumer, self._transport).unregisterProducer()
        self.full = False
        self._on_drained()

    def stopProducing(self) -> None:
        """Hear that the connection is gone; whoever owns it hears that too."""
