"""What the tests of the service have in common: a file, a reactor, and threads that wait for the test."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from socketmap_memcache.protocols.netstring import encode
from socketmap_memcache.service import SocketmapMemcacheService
from tests.unit.listeners.transports import Client
from tests.unit.logs import texts


def any_starts_with(events: Iterable[LogEvent], text: str) -> bool:
    return any(line.startswith(text) for line in texts(events))


class ThreadPool:
    """Runs what it is given when the test says so, and in the test's thread."""

    def __init__(self) -> None:
        self.work: list[Callable[[], None]] = []

    def callInThreadWithCallback(self, on_result: Callable[[bool, Any], None], function: Any, *args: Any) -> None:
        def run() -> None:
            try:
                result = function(*args)
            except Exception:  # noqa: BLE001 (as the real one does)
                on_result(False, Failure())
            else:
                on_result(True, result)

        self.work.append(run)

    def run(self) -> None:
        """Run the oldest work that waits."""
        self.work.pop(0)()


class Reactor(MemoryReactorClock):
    """Has a pool of threads."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = ThreadPool()

    def getThreadPool(self) -> ThreadPool:
        return self.pool

    def callFromThread(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        function(*args, **kwargs)


class ServiceTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory(prefix="service-")
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name, "main.cf")
        self.reactor = Reactor()
        before = signal.getsignal(signal.SIGHUP)
        self.addCleanup(signal.signal, signal.SIGHUP, before)

    def make(self, text: str, *overrides: str) -> SocketmapMemcacheService:
        self.path.write_text(text)
        return SocketmapMemcacheService(str(self.path), overrides, self.reactor)

    def start(self, text: str) -> SocketmapMemcacheService:
        service = self.make(text)
        service.privilegedStartService()
        service.startService()
        service._factory.doStart()  # as a port would
        return service

    def reload(self, service: SocketmapMemcacheService, text: str) -> None:
        """Write another configuration, and let the service read it."""
        self.path.write_text(text)
        done = service.reload()
        self.reactor.pool.run()
        self.successResultOf(done)

    def ask(self, service: SocketmapMemcacheService, request: bytes) -> bytes:
        client = Client(service._factory)
        client.send(encode(request))
        reply = client.received()
        client.leave(ConnectionDone())
        return reply
