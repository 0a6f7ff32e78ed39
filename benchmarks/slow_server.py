"""A socketmap server that has every key and takes its time, for any number of clients at once.

``python -m benchmarks.slow_server PATH SECONDS`` serves on a UNIX socket.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from twisted.internet.interfaces import IReactorCore, IReactorTime, IReactorUNIX
from twisted.internet.protocol import Factory
from twisted.protocols.basic import NetstringReceiver

from tests.integration.harness.processes import Server, accepts


class SlowReply(NetstringReceiver):
    """One client. All replies take as long, so that they leave in the order of the requests."""

    def __init__(self, clock: IReactorTime, seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds

    def stringReceived(self, string: bytes) -> None:
        """Reply in a while."""
        self._clock.callLater(self._seconds, self._reply)

    def _reply(self) -> None:
        transport: Any = self.transport
        if transport.connected:
            self.sendString(b"OK found")


class SlowServer(Server):
    """It, in a process of its own.

    :ivar table: what a ``.cf`` file has as its backup.
    """

    def __init__(self, directory: Path, seconds: float) -> None:
        """:param directory: gets the socket, and what it prints."""
        self._address = f"unix:{directory}/slow.sock"
        self.table = f"socketmap:{self._address}:slow"
        argv = [sys.executable, "-m", "benchmarks.slow_server", self._address.removeprefix("unix:"), str(seconds)]
        super().__init__(argv, directory / "slow.log")

    def ready(self) -> bool:
        return accepts(self._address)


def main() -> None:
    """Serve until killed."""
    from twisted.internet import reactor

    seconds = float(sys.argv[2])
    factory: Any = Factory.forProtocol(lambda: SlowReply(IReactorTime(reactor), seconds))
    IReactorUNIX(reactor).listenUNIX(sys.argv[1], factory, backlog=256)
    IReactorCore(reactor).run()


if __name__ == "__main__":
    main()
