from __future__ import annotations

import socket

from twisted.logger import LogEvent, capturedLogs

from socketmap_memcache.errors import ConfigurationError
from socketmap_memcache.workers.process import ERRORS, LOG
from tests.unit.logs import texts

from .parent_tests import ParentTests


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
                f"--number={process.worker.number}",
                "--counts=4",
                "--set=shutdown_timeout=7s",
                f"--set=socketmap_listen=unix:{self.directory}/socket",
                "--set=tcp_table_listen=",
                "--set=policy_listen=",
                f"--socket=5=unix:{self.directory}/socket",
            ]
            listening = socket.socket(fileno=socket.dup(process.descriptors[5]))
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
        listen = f"policy_listen = unix:{self.directory}/policy"
        self.configure(more=f"policies = greylist\ngreylist_table = {table}\n{listen}\n")
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
        process.worker.childDataReceived(LOG, b'{"log_level": "info", "text": "hello"}\n')
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
            process.worker.childDataReceived(LOG, b'{"log_level": "in')
            process.worker.childDataReceived(ERRORS, b"Traceback\nImportE")
            process.worker.childDataReceived(LOG, b'fo", "text": "hello"}\n')
            process.worker.childDataReceived(ERRORS, b"rror")
            process.end(status=1)
        assert texts(published) == ["hello"]
        assert texts(events)[:2] == ["a worker says: Traceback", "a worker says: ImportError"]
        self.successResultOf(self.stop(service))
