"""A bare Twisted server with one reply to all: what is left of a look-up when there is nothing to look up.

``python -m benchmarks.fixed_reply PATH`` serves on a UNIX socket. Netstrings are read by one find each, and the reply
goes out by socket.send, at once: no Twisted server of this protocol can do less.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

from twisted.internet.interfaces import IReactorCore, IReactorUNIX
from twisted.internet.protocol import Factory, Protocol

from tests.integration.harness.processes import Server, accepts

_REPLY = b"24:OK user@mail.example.com,"


class FixedReply(Protocol):
    """One client."""

    def __init__(self) -> None:
        self._rest = b""

    def dataReceived(self, data: bytes) -> None:
        """Reply to each netstring, without a look at what is in it."""
        if self._rest:
            data = self._rest + data
        start = count = 0
        while (colon := data.find(b":", start)) >= 0:
            end = colon + int(data[start:colon]) + 2
            if end > len(data):
                break
            start, count = end, count + 1
        self._rest = data[start:]
        if count:
            # A client that does not read what is a few bytes long has this server's error.
            cast(Any, self.transport).socket.send(_REPLY * count)


class FixedReplyServer(Server):
    """It, in a process of its own.

    :ivar address: ``unix:/path``.
    """

    def __init__(self, directory: Path) -> None:
        """:param directory: gets the socket, and what it prints."""
        self.address = f"unix:{directory}/fixed.sock"
        argv = [sys.executable, "-m", "benchmarks.fixed_reply", self.address.removeprefix("unix:")]
        super().__init__(argv, directory / "fixed.log")

    def ready(self) -> bool:
        return accepts(self.address)


def main() -> None:
    """Serve until killed."""
    from twisted.internet import reactor

    IReactorUNIX(reactor).listenUNIX(sys.argv[1], Factory.forProtocol(FixedReply), backlog=256)
    IReactorCore(reactor).run()


if __name__ == "__main__":
    main()
