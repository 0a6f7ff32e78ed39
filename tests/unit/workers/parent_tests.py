"""What the tests of the parent have in common: processes that are none, and a reactor that starts them."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from socketmap_memcache.workers.parent import WorkersService
from socketmap_memcache.workers.process import FROM_PARENT, TO_PARENT, WorkerProcess


class FakeProcess:
    """A process that runs until a test says otherwise."""

    def __init__(self, worker: WorkerProcess, argv: list[str], env: Mapping[str, str], fds: Mapping[int, Any]) -> None:
        self.worker = worker
        self.argv = argv
        self.env = env
        self.descriptors = fds
        self.signals: list[int] = []
        self.told: list[bytes] = []
        self.running = True
        worker.makeConnection(self)

    def signalProcess(self, number: int) -> None:
        if not self.running:
            raise ProcessExitedAlready
        self.signals.append(number)

    def writeToChild(self, descriptor: int, message: bytes) -> None:
        if not self.running:
            raise KeyError(descriptor)
        assert descriptor == FROM_PARENT
        self.told.append(message)

    def tell(self, message: bytes) -> None:
        self.worker.childDataReceived(TO_PARENT, message)

    def end(self, *, status: int = 0, killed_by: int | None = None) -> None:
        self.running = False
        done = ProcessDone(None) if not status and killed_by is None else ProcessTerminated(status, killed_by)
        self.worker.processEnded(Failure(done))


class Reactor(Clock):
    """Time, threads whose work is done when a test says so, and processes that are none."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[FakeProcess] = []
        self.refuses: Exception | None = None
        self.in_thread = False
        self.readers: list[Any] = []
        self.at_start: list[Any] = []
        self._work: list[tuple[Any, Any]] = []

    def addReader(self, reader: Any) -> None:
        self.readers.append(reader)

    def removeReader(self, reader: Any) -> None:
        self.readers.remove(reader)

    def callWhenRunning(self, function: Any) -> None:
        self.at_start.append(function)

    def start(self) -> None:
        while self.at_start:
            self.at_start.pop()()

    def getThreadPool(self) -> Reactor:
        return self

    def callInThreadWithCallback(self, done: Any, function: Any) -> None:
        self._work.append((done, function))

    def run_threads(self) -> None:
        work, self._work = self._work, []
        for done, function in work:
            self.in_thread = True
            try:
                outcome = (True, function())
            except Exception:  # noqa: BLE001 (as a thread pool does)
                outcome = (False, Failure())
            self.in_thread = False
            done(*outcome)

    def spawnProcess(
        self, worker: WorkerProcess, executable: str, argv: list[str], env: Mapping[str, str], **options: Any
    ) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.processes.append(FakeProcess(worker, argv, env, options["childFDs"]))

    def callFromThread(self, function: Any, *args: Any) -> None:
        function(*args)


class ParentTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)
        self.path = self.directory / "main.cf"
        self.reactor = Reactor()

    def configure(self, workers: str = "2", more: str = "tables = t=static:1\n") -> None:
        listen = f"socketmap_listen = unix:{self.directory}/socket\n"
        self.path.write_text(f"{listen}workers = {workers}\n{more}")

    def make(self) -> WorkersService:
        return WorkersService(str(self.path), ["shutdown_timeout=7s"], self.reactor)

    def start(self, workers: str = "2", *, ready: bool = True) -> WorkersService:
        self.configure(workers)
        service = self.make()
        self.addCleanup(signal.signal, signal.SIGHUP, signal.getsignal(signal.SIGHUP))
        service.privilegedStartService()
        service.startService()
        self.reactor.start()
        if ready:
            self.get_ready()
        return service

    def get_ready(self) -> None:
        for process in self.running():
            if not process.worker.ready:
                process.tell(b"ready\n")

    def running(self) -> list[FakeProcess]:
        return [process for process in self.reactor.processes if process.running]

    def stop(self, service: WorkersService) -> Deferred[None]:
        stopped = service.stopService()
        for process in self.running():
            process.end()
        return stopped
