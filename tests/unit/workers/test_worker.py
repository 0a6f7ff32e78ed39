from __future__ import annotations

import os
import signal
from pathlib import Path
from select import select
from tempfile import TemporaryDirectory

from twisted.internet.defer import fail
from twisted.internet.error import ConnectionDone, ReactorNotRunning
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from socketmap_memcache.service import SocketmapMemcacheService
from socketmap_memcache.workers import worker
from socketmap_memcache.workers.worker import ParentWatch, WorkerService, end_once, read_arguments, tell_parent


class Reactor:
    def __init__(self) -> None:
        self.running = True

    def stop(self) -> None:
        if not self.running:
            raise ReactorNotRunning
        self.running = False


class TestWorker(SynchronousTestCase):
    def pipe(self) -> tuple[int, int]:
        reading, writing = os.pipe()
        self.addCleanup(os.close, reading)
        return reading, writing

    def test_arguments(self) -> None:
        """A worker gets the file, its number, the items that replace what it says, and where it listens already."""
        given = ["--config", "/x", "--number=3", "--counts=4", "--set=a=b=c", "--set=d="]
        parsed, sockets = read_arguments([*given, "--socket=5=unix:/s", "--socket=6=inet:h:1"])
        assert vars(parsed).items() >= {"config": "/x", "number": 3, "counts": 4, "set": ["a=b=c", "d="]}.items()
        assert sockets == {"unix:/s": 5, "inet:h:1": 6}

    def test_parent(self) -> None:
        """A worker hears what its parent says, in any chunks, and ends when the parent does."""
        reading, writing = self.pipe()
        self.patch(worker, "FROM_PARENT", reading)
        reactor = Reactor()
        told: list[bytes] = []
        watch = ParentWatch(reactor, told.append)
        verifyObject(IReadDescriptor, watch)
        assert (watch.fileno(), watch.logPrefix()) == (reading, "parent")
        for data, messages in ((b"reti", []), (b"re\nreturn\nx", [b"retire", b"return"])):
            os.write(writing, data)
            assert watch.doRead() is None
            assert told == messages
        os.close(writing)
        end = watch.doRead()
        assert isinstance(end, ConnectionDone)
        for _ in range(2):  # the end of the parent, and that of the reactor
            watch.connectionLost(Failure(end))
            assert not reactor.running

    def test_told_twice_to_end(self) -> None:
        """SIGTERM counts once: systemd sends it to all processes, and so does the parent."""
        ended: list[int] = []
        before = signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))
        self.addCleanup(signal.signal, signal.SIGTERM, before)
        end_once()
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
        assert ended == [signal.SIGTERM]

    def service(self) -> WorkerService:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        path = Path(directory.name, "main.cf")
        path.write_text("tables = t=static:1\n")
        return WorkerService(str(path), [], MemoryReactorClock(), {})

    def test_retired(self) -> None:
        """Told to retire, a worker accepts nobody, and tells when nobody is there, until it is told to return."""
        reading, writing = self.pipe()
        self.addCleanup(os.close, writing)
        self.patch(worker, "TO_PARENT", writing)
        service = self.service()
        service._entrance.came()
        service.told(b"retire")
        assert [service._entrance.may_accept(), select([reading], [], [], 0)[0]] == [False, []]
        service._entrance.left()
        assert os.read(reading, 100) == b"empty\n"
        service.told(b"return")
        assert service._entrance.may_accept()
        service.told(b"something else")
        assert service._entrance.may_accept()

    def test_reload_fails(self) -> None:
        """The parent hears of a reload that has failed in an unforeseen way, too, or it would kill the worker."""
        reading, writing = self.pipe()
        self.addCleanup(os.close, writing)
        self.patch(worker, "TO_PARENT", writing)
        self.patch(SocketmapMemcacheService, "reload", lambda _: fail(ZeroDivisionError("a bug")))
        self.failureResultOf(self.service().reload(), ZeroDivisionError)
        os.set_blocking(reading, False)
        assert os.read(reading, 100) == b"reloaded\n"

    def test_tell(self) -> None:
        """What the parent is told is a line each; that there is none any more is no error."""
        reading, writing = self.pipe()
        self.patch(worker, "TO_PARENT", writing)
        tell_parent(b"ready")
        assert os.read(reading, 100) == b"ready\n"
        os.close(writing)
        tell_parent(b"ready")
