from __future__ import annotations

import errno
import signal
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.task import Clock
from twisted.logger import LogEvent, capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from socketmap_memcache.config.service import ServiceConfig, load
from socketmap_memcache.errors import ConfigurationError
from socketmap_memcache.workers import parent as parent_module
from socketmap_memcache.workers.parent import FIRST_PAUSE, GRACE, LAST_PAUSE, RELOAD_TIMEOUT, SOON, WorkersService
from socketmap_memcache.workers.process import ERRORS, LOG, TO_PARENT, WorkerProcess


class FakeProcess:
    """A process that runs until a test says otherwise."""

    def __init__(self, worker: WorkerProcess, argv: list[str], env: Mapping[str, str], fds: Mapping[int, Any]) -> None:
        self.worker = worker
        self.argv = argv
        self.env = env
        self.descriptors = fds
        self.signals: list[int] = []
        self.running = True
        worker.makeConnection(self)

    def signalProcess(self, number: int) -> None:
        if not self.running:
            raise ProcessExitedAlready
        self.signals.append(number)

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
        self.at_start: list[Any] = []
        self._work: list[tuple[Any, Any]] = []

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


def texts(events: Iterable[LogEvent]) -> list[str]:
    return [formatEvent(event) for event in events]


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


class TestStart(ParentTests):
    def test_workers(self) -> None:
        """As many processes as configured are started with the same file, items and sockets."""
        service = self.start("3")
        assert len(self.reactor.processes) == 3
        for process in self.reactor.processes:
            assert process.argv[1:] == [
                "-m",
                "socketmap_memcache.workers",
                "--config",
                str(self.path),
                "--set=shutdown_timeout=7s",
                f"--set=socketmap_listen=unix:{self.directory}/socket",
                "--set=tcp_table_listen=",
                "--set=policy_listen=",
                f"--socket=4=unix:{self.directory}/socket",
            ]
            listening = socket.socket(fileno=socket.dup(process.descriptors[4]))
            assert listening.getsockname() == f"{self.directory}/socket"
            listening.close()
            assert process.env["PYTHONPATH"]
        self.successResultOf(self.stop(service))
        assert not (self.directory / "socket").exists()

    def test_banner(self) -> None:
        """The log says once what is served, and when all workers serve."""
        with capturedLogs() as events:
            service = self.start()
        lines = texts(events)
        assert lines[0] == "serving t = static:1"
        assert lines[-1] == "2 workers serve"
        assert lines.count("2 workers serve") == 1
        self.successResultOf(self.stop(service))

    def test_privileges(self) -> None:
        """Nothing is started before the privileges are given up; without that step, sockets are made at the start."""
        self.configure()
        service = self.make()
        service.privilegedStartService()
        assert not self.reactor.processes
        service.startService()
        assert not self.reactor.processes  # a signal would end the parent without them
        self.reactor.start()
        assert len(self.reactor.processes) == 2
        self.successResultOf(self.stop(service))
        service = self.make()
        service.startService()
        assert (self.directory / "socket").exists()
        self.successResultOf(self.stop(service))

    def test_stopped_before_the_start(self) -> None:
        """A service that is stopped before the reactor runs starts nothing."""
        self.configure()
        service = self.make()
        service.startService()
        self.successResultOf(service.stopService())
        self.reactor.start()
        assert not self.reactor.processes

    def test_no_files(self) -> None:
        """The parent makes no file: it may still be root, and the workers could not open it."""
        table = f"lmdb:{self.directory}/greylist"
        self.configure(more=f"policies = greylist\ngreylist_table = {table}\n")
        with capturedLogs() as events:
            service = self.make()
            service.startService()
        assert "greylist.lmdb does not exist yet: the service makes it when it starts" in texts(events)[0]
        assert f"asking policy greylist: what is new waits 300 s, records in {table}" in texts(events)
        assert not list(self.directory.glob("*.lmdb"))
        self.successResultOf(self.stop(service))

    def test_wrong(self) -> None:
        """A configuration with errors is refused before there is any process."""
        self.configure(more="tables = t=nonsense:1\n")
        self.assertRaises(ConfigurationError, self.make)

    def test_log(self) -> None:
        """What a worker logs is in the log of the parent."""
        service = self.start("1")
        (process,) = self.reactor.processes
        published: list[LogEvent] = []
        self.patch(process.worker._log_readers[LOG], "_publish", published.append)
        process.worker.childDataReceived(LOG, b'{"log_format": "hello"}\n')
        assert texts(published) == ["hello"]
        self.successResultOf(self.stop(service))

    def test_standard_error(self) -> None:
        """What a worker says that cannot log (yet) is in the log of the parent, too: a daemon has no other place."""
        service = self.start("1", ready=False)
        (process,) = self.reactor.processes
        assert process.descriptors[ERRORS] == "r"
        published: list[LogEvent] = []
        for reader in process.worker._log_readers.values():
            self.patch(reader, "_publish", published.append)
        with capturedLogs() as events:
            process.worker.childDataReceived(LOG, b'{"log_for')
            process.worker.childDataReceived(ERRORS, b"Traceback\nImportE")
            process.worker.childDataReceived(LOG, b'mat": "hello"}\n')
            process.worker.childDataReceived(ERRORS, b"rror")
            process.end(status=1)
        assert texts(published) == ["hello"]
        assert texts(events)[:2] == ["a worker says: Traceback", "a worker says: ImportError"]
        self.successResultOf(self.stop(service))


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


class TestReload(ParentTests):
    def hangup(self) -> None:
        signal.raise_signal(signal.SIGHUP)

    def test_one_after_the_other(self) -> None:
        """The workers read the configuration one after the other."""
        service = self.start()
        first, second = self.reactor.processes
        self.hangup()
        self.reactor.run_threads()
        assert (first.signals, second.signals) == ([signal.SIGHUP], [])
        first.tell(b"reloaded\n")
        assert second.signals == [signal.SIGHUP]
        with capturedLogs() as events:
            second.tell(b"reloaded\n")
        assert texts(events) == [f"reloaded {self.path} in 2 workers"]
        self.successResultOf(self.stop(service))

    def test_refused(self) -> None:
        """A configuration with errors reaches no worker."""
        service = self.start()
        self.configure(more="tables = t=nonsense:1\n")
        with capturedLogs() as events:
            self.hangup()
            self.reactor.run_threads()
        assert "nonsense" in texts(events)[0]
        assert texts(events)[-1].startswith("reload refused: ")
        assert not any(process.signals for process in self.reactor.processes)
        self.successResultOf(self.stop(service))

    def test_unforeseen(self) -> None:
        """An unforeseen error changes nothing."""
        service = self.start()
        self.patch(parent_module, "load", lambda *_: 1 / 0)
        self.hangup()
        self.reactor.run_threads()
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1
        assert not any(process.signals for process in self.reactor.processes)
        self.successResultOf(self.stop(service))

    def test_not_ready(self) -> None:
        """SIGHUP before a worker can take it, which would kill it, is sent to it when it is ready."""
        service = self.start(ready=False)
        first, second = self.reactor.processes
        second.tell(b"ready\n")
        self.hangup()
        self.reactor.run_threads()
        assert (first.signals, second.signals) == ([], [])
        first.tell(b"ready\n")
        assert (first.signals, second.signals) == ([signal.SIGHUP], [])
        first.tell(b"reloaded\n")
        assert second.signals == [signal.SIGHUP]
        second.tell(b"reloaded\n")
        self.successResultOf(self.stop(service))

    def test_closed(self) -> None:
        """What the parent has opened to check the configuration it closes, and not in a thread."""
        service = self.start()
        where = []

        def noting(*arguments: Any) -> ServiceConfig:
            config = load(*arguments)
            self.patch(type(config), "close", lambda _: where.append(self.reactor.in_thread))
            return config

        self.patch(parent_module, "load", noting)
        self.reload()
        assert where == [False]
        self.successResultOf(self.stop(service))

    def reload(self) -> None:
        """Reload, with workers that are quick."""
        self.hangup()
        self.reactor.run_threads()
        for process in self.running():
            process.tell(b"reloaded\n")

    def test_number(self) -> None:
        """With more workers some are started, with fewer some are stopped."""
        service = self.start()
        self.configure("3")
        self.reload()
        assert [process.worker.number for process in self.running()] == [1, 2, 3]
        self.configure("1")
        self.reload()
        assert [process.signals[-1] for process in self.reactor.processes] == [
            signal.SIGHUP,
            signal.SIGTERM,
            signal.SIGTERM,
        ]
        for process in self.reactor.processes[1:]:
            process.end()
        self.reactor.advance(LAST_PAUSE)
        assert len(self.running()) == 1
        self.successResultOf(self.stop(service))

    def test_fewer_and_more_again(self) -> None:
        """One that is ending when more are wanted again is not asked to reload, and is replaced when it has ended."""
        service = self.start()
        self.configure("1")
        self.reload()
        self.configure("2")
        self.reload()
        second = self.reactor.processes[1]
        assert second.signals == [signal.SIGHUP, signal.SIGTERM]
        second.end()
        self.get_ready()
        assert [process.worker.number for process in self.running()] == [1, 2]
        self.successResultOf(self.stop(service))

    def test_fewer_but_one_does_not_end(self) -> None:
        """One too many that does not end is killed in the end; those that are wanted are not."""
        service = self.start()
        self.configure("1")
        self.reload()
        first, second = self.reactor.processes
        self.reactor.advance(7 + GRACE)
        assert second.signals[-1] == signal.SIGKILL
        assert first.signals == [signal.SIGHUP]
        second.end(killed_by=signal.SIGKILL)
        assert len(self.running()) == 1
        self.successResultOf(self.stop(service))
        assert not self.reactor.getDelayedCalls()

    def test_missing(self) -> None:
        """A reload starts those at once that wait to be replaced: it may have mended what ended them."""
        service = self.start("1")
        for _ in range(5):
            self.running()[0].end(status=1)
            self.reactor.advance(FIRST_PAUSE * 2**4)
        self.running()[0].end(status=1)
        self.reload()
        assert len(self.running()) == 1
        with capturedLogs() as events:
            self.running()[0].end(status=1)
        assert texts(events) == [f"worker 1 ended with status 1; replaced in {FIRST_PAUSE:g} s"]
        self.successResultOf(self.stop(service))
        assert not self.reactor.getDelayedCalls()

    def test_fewer_while_one_is_missing(self) -> None:
        """A worker that was to be replaced is not, when it is one too many now."""
        service = self.start()
        self.reactor.processes[1].end(status=1)
        self.configure("1")
        self.reload()
        self.reactor.advance(LAST_PAUSE)
        assert len(self.reactor.processes) == 2
        self.successResultOf(self.stop(service))

    def test_address(self) -> None:
        """Other addresses take a restart, and the log says so."""
        service = self.start()
        self.path.write_text(self.path.read_text().replace("/socket\n", "/other\n"))
        with capturedLogs() as events:
            self.reload()
        assert "socketmap_listen has changed: that takes a restart" in texts(events)
        self.reactor.processes[0].end(killed_by=signal.SIGKILL)
        self.reactor.advance(FIRST_PAUSE)
        new = self.reactor.processes[-1]
        assert new.argv == self.reactor.processes[0].argv
        assert new.descriptors == self.reactor.processes[0].descriptors
        self.successResultOf(self.stop(service))
        assert not (self.directory / "socket").exists()

    def test_again(self) -> None:
        """SIGHUP during a reload leads to one more, after it."""
        service = self.start("1")
        (process,) = self.reactor.processes
        self.hangup()
        self.reactor.run_threads()
        self.hangup()
        self.hangup()
        process.tell(b"reloaded\n")
        self.reactor.run_threads()
        assert process.signals == [signal.SIGHUP] * 2
        process.tell(b"reloaded\n")
        self.reactor.run_threads()
        assert process.signals == [signal.SIGHUP] * 2
        self.successResultOf(self.stop(service))

    def test_too_late(self) -> None:
        """A worker that does not read it in time is killed, which leads to one that does; the others go on."""
        service = self.start()
        first, second = self.reactor.processes
        self.hangup()
        self.reactor.run_threads()
        with capturedLogs() as events:
            self.reactor.advance(RELOAD_TIMEOUT)
        assert first.signals == [signal.SIGHUP, signal.SIGKILL]
        assert texts(events) == ["worker 1 has not read its configuration within 60 s; it is killed"]
        first.end(killed_by=signal.SIGKILL)
        assert second.signals == [signal.SIGHUP]
        second.tell(b"reloaded\n")
        self.successResultOf(self.stop(service))

    def test_ended_meanwhile(self) -> None:
        """A worker that ends while another one reloads is passed by; a service that ends starts nothing more."""
        service = self.start()
        first, second = self.reactor.processes
        self.hangup()
        self.reactor.run_threads()
        second.end(status=1)
        first.tell(b"something\nreloaded\n")
        assert second.signals == []
        assert len(self.running()) == 2
        self.running()[1].end(status=1)
        self.hangup()
        self.reactor.run_threads()
        stopped = self.stop(service)
        self.successResultOf(stopped)
        self.reactor.advance(LAST_PAUSE)
        assert len(self.reactor.processes) == 3

    def test_end_during_a_reload(self) -> None:
        """SIGTERM in the middle of a reload: no worker that is ending is asked to read its configuration."""
        service = self.start()
        first, second = self.reactor.processes
        self.hangup()
        self.reactor.run_threads()
        stopped = service.stopService()
        first.end()
        assert second.signals == [signal.SIGTERM]
        second.end()
        self.successResultOf(stopped)

    def test_hangup_at_the_end(self) -> None:
        """SIGHUP while the workers answer what is in flight neither ends the parent nor is told to them."""
        service = self.start("1")
        (process,) = self.reactor.processes
        stopped = service.stopService()
        self.hangup()
        self.reactor.run_threads()
        assert process.signals == [signal.SIGTERM]
        process.end()
        self.successResultOf(stopped)

    def test_stopped_meanwhile(self) -> None:
        """A configuration that is read when the service has ended is not used."""
        service = self.start("1")
        self.hangup()
        self.successResultOf(self.stop(service))
        self.reactor.run_threads()
        assert self.reactor.processes[0].signals == [signal.SIGTERM]

    def test_signal_to_nobody(self) -> None:
        """A signal to a process that has just ended does no harm."""
        service = self.start("1")
        (process,) = self.reactor.processes
        process.running = False
        stopped = service.stopService()
        process.end()
        self.successResultOf(stopped)
