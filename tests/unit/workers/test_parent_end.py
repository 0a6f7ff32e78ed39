from __future__ import annotations

import errno
import signal
import socket
from select import select

from twisted.logger import capturedLogs

from socketmap_memcache.workers.parent import CLIENTS_PATIENCE, FIRST_PAUSE, GRACE, LAST_PAUSE, SOON
from tests.unit.logs import texts

from .parent_tests import ParentTests


class TestEnd(ParentTests):
    def test_replaced(self) -> None:
        """A worker that ends is replaced after a moment, and that is logged."""
        service = self.start()
        self.reactor.advance(SOON)
        with capturedLogs() as events:
            self.reactor.processes[1].end(killed_by=signal.SIGSEGV)
        assert texts(events) == [f"worker 2 was killed by SIGSEGV; replaced in {FIRST_PAUSE:g} s"]
        assert len(self.reactor.processes) == 2
        self.reactor.advance(FIRST_PAUSE)
        assert len(self.running()) == 2
        assert self.reactor.processes[2].worker.number == 2
        self.successResultOf(self.stop(service))

    def test_cannot_be_started(self) -> None:
        """A worker that the system does not start is tried again; until then there is nothing to stop."""
        self.reactor.refuses = BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        with capturedLogs() as events:
            service = self.start("1")
        reason = "cannot be started: [Errno 11] Resource temporarily unavailable"
        assert texts(events)[-1] == f"worker 1 {reason}; replaced in {FIRST_PAUSE:g} s"
        self.reactor.advance(FIRST_PAUSE)
        self.reactor.refuses = None
        self.reactor.advance(2 * FIRST_PAUSE)
        assert len(self.running()) == 1
        self.successResultOf(self.stop(service))
        assert not self.reactor.getDelayedCalls()

    def test_all_serve_again(self) -> None:
        """When the one that was missing has been replaced, the log says so."""
        service = self.start()
        self.reactor.processes[0].end(status=1)
        self.reactor.advance(FIRST_PAUSE)
        with capturedLogs() as events:
            self.get_ready()
        assert texts(events) == ["2 workers serve"]
        self.successResultOf(self.stop(service))

    def test_back_off(self) -> None:
        """One that ends soon, again and again, is started less and less often, until one lives."""
        service = self.start("1")
        pauses = []
        for _ in range(12):
            with capturedLogs() as events:
                self.running()[0].end(status=1)
            pauses.append(float(texts(events)[0].split()[-2]))
            self.reactor.advance(pauses[-1])
        assert pauses[:4] == [0.1, 0.2, 0.4, 0.8]
        assert pauses[-1] == LAST_PAUSE
        self.reactor.advance(SOON)
        with capturedLogs() as events:
            self.running()[0].end(status=1)
        assert texts(events) == ["worker 1 ended with status 1; replaced in 0.1 s"]
        self.successResultOf(self.stop(service))
        assert not self.reactor.getDelayedCalls()

    def test_nobody_serves(self) -> None:
        """While no worker can be started, clients are refused at once; when one serves, or at the end, they are not."""
        service = self.start("2", ready=False)
        pauses: list[float] = []
        while not self.reactor.readers:
            with capturedLogs() as events:
                for process in self.running():
                    process.end(status=1)
            pauses.append(float(texts(events)[0].split()[-2]))
            self.reactor.advance(pauses[-1])
        assert pauses[-2] <= CLIENTS_PATIENCE < pauses[-1]
        assert texts(events)[-1] == "no worker can be started; clients are refused until one serves"
        (door,) = self.reactor.readers
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{self.directory}/socket")
            assert select([door.fileno()], [], [], 1)[0]
            door.doRead()
            assert client.recv(1) == b""
        door.doRead()  # nobody is there any more
        with capturedLogs() as events:
            for process in self.running():
                process.end(status=1)
        assert not any("refused" in text for text in texts(events))  # it is said once
        assert self.reactor.readers == [door]
        self.reactor.advance(LAST_PAUSE)
        self.running()[0].tell(b"ready\n")
        assert not self.reactor.readers
        self.successResultOf(self.stop(service))

    def test_stop_while_nobody_serves(self) -> None:
        """A parent that refuses clients leaves its sockets at the end."""
        service = self.start("1", ready=False)
        while not self.reactor.readers:
            self.reactor.advance(LAST_PAUSE)
            for process in self.running():
                process.end(status=1)
        self.successResultOf(self.stop(service))
        assert not self.reactor.readers
        assert not (self.directory / "socket").exists()

    def test_stop(self) -> None:
        """At the end all workers are told, and it is waited for them."""
        service = self.start()
        stopped = service.stopService()
        assert [process.signals for process in self.reactor.processes] == [[signal.SIGTERM]] * 2
        self.reactor.processes[0].end()
        self.assertNoResult(stopped)
        self.reactor.processes[1].end()
        self.successResultOf(stopped)
        assert not self.reactor.getDelayedCalls()

    def test_does_not_end(self) -> None:
        """A worker that does not end in time is killed."""
        service = self.start("1")
        stopped = service.stopService()
        with capturedLogs() as events:
            self.reactor.advance(7 + GRACE)
        assert self.reactor.processes[0].signals == [signal.SIGTERM, signal.SIGKILL]
        assert texts(events) == ["worker 1 does not end; it is killed"]
        self.reactor.processes[0].end(killed_by=signal.SIGKILL)
        self.successResultOf(stopped)
