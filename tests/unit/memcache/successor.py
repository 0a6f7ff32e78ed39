"""What takes a connection over when it has been greeted."""

from __future__ import annotations

from typing import Any

from twisted.internet.protocol import Factory, Protocol


class Successor(Protocol):
    """Remembers what it hears.

    :ivar made: the transport that it was connected to.
    """

    def __init__(self) -> None:
        self.made: Any = None
        self.data = b""

    def connectionMade(self) -> None:
        self.made = self.transport

    def dataReceived(self, data: bytes) -> None:
        self.data += data


SUCCESSORS = Factory.forProtocol(Successor)
