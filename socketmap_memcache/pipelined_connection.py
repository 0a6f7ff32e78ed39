"""What connections have in common on which commands go out without waiting for the replies of those before."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

from twisted.internet import tcp, unix
from twisted.internet.address import UNIXAddress
from twisted.internet.interfaces import IReactorTime, ITCPTransport
from twisted.internet.protocol import Protocol

from socketmap_memcache.busy_poll import BUSY_POLL
from socketmap_memcache.prompt_writer import WRITES_TOGETHER, PromptWriter


class PipelinedConnection(Protocol):
    """A connection that is used until the first thing goes wrong on it.

    :ivar usable: whether nothing has.
    """

    #: Takes replies from the reader.
    _hand_over: Callable[[], None]

    def __init__(self, reactor: IReactorTime, reader: Any) -> None:
        """Make a connection that is not connected yet.

        :param reader: is fed with what is received.
        """
        self._reactor = reactor
        self._reader = reader
        self._unsent: list[bytes] = []
        self.usable = True

    def connectionMade(self) -> None:
        """Begin."""
        # Twisted's UNIX transports have all of a TCP transport's methods that are used here.
        self._transport = cast(ITCPTransport, self.transport)
        if isinstance(self._transport, unix.Client):
            # Twisted's own also takes file descriptors: a server has none to send, and each read takes longer. The
            # reactor makes the transport, of a class that cannot be chosen.
            self._transport.doRead = partial(tcp.Connection.doRead, self._transport)  # type: ignore[method-assign]
        if not isinstance(self._transport.getPeer(), UNIXAddress):
            self._transport.setTcpNoDelay(True)
            self._transport.setTcpKeepAlive(True)
        self._writer = PromptWriter(self._transport)

    def dataReceived(self, data: bytes) -> None:
        """Match what has come with the commands in flight."""
        BUSY_POLL.heard = True
        if self.usable:
            self._reader.feed(data)
            with WRITES_TOGETHER:
                self._hand_over()

    def _flush(self, _: bytes = b"") -> None:
        if self.usable:
            self._writer.write(b"".join(self._unsent))
        self._unsent.clear()
