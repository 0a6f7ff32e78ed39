from __future__ import annotations

import signal
from typing import Any

from twisted.logger import capturedLogs

from socketmap_memcache.config.service import ServiceConfig, load
from socketmap_memcache.workers import parent as parent_module
from socketmap_memcache.workers.parent import FIRST_PAUSE, GRACE, LAST_PAUSE, RELOAD_TIMEOUT
from tests.unit.logs import texts

from .parent_tests import ParentTests


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

    def set_workers(self, number: str) -> None:
        self.configure(number)
        self.reload()

    def told(self) -> list[list[bytes]]:
        """Give what each process has been told, and has not been asked for before."""
        told = [process.told.copy() for process in self.reactor.processes]
        for process in self.reactor.processes:
            process.told.clear()
        return told

    def test_more(self) -> None:
        """With more workers some are started."""
        service = self.start()
        self.set_workers("3")
        assert [process.worker.number for process in self.running()] == [1, 2, 3]
        assert self.told() == [[], [], []]
        self.successResultOf(self.stop(service))

    def test_fewer(self) -> None:
        """With fewer workers those too many accept nobody, and end when their last clients have left."""
        service = self.start("3")
        with capturedLogs() as events:
            self.set_workers("1")
        assert texts(events)[:-1] == [
            f"worker {number} is one too many; it accepts no clients any more, and ends when the last has left"
            for number in (2, 3)
        ]
        assert self.told() == [[], [b"retire\n"], [b"retire\n"]]
        first, second, third = self.reactor.processes
        with capturedLogs() as events:
            third.tell(b"empty\n")
        assert texts(events) == ["worker 3 has no client any more; it ends"]
        assert [process.signals[1:] for process in (first, second, third)] == [[], [], [signal.SIGTERM]]
        third.tell(b"empty\n")
        third.end()
        self.reactor.advance(LAST_PAUSE)
        assert self.running() == [first, second]
        self.successResultOf(self.stop(service))
        assert not self.reactor.getDelayedCalls()

    def test_fewer_still(self) -> None:
        """One too many reads the configuration as all others do, and is told only once that it is."""
        service = self.start("3")
        for number in "2", "1":
            self.set_workers(number)
        assert [process.signals for process in self.reactor.processes] == [[signal.SIGHUP] * 2] * 3
        assert self.told() == [[], [b"retire\n"], [b"retire\n"]]
        self.successResultOf(self.stop(service))

    def test_wanted_again(self) -> None:
        """One too many that is wanted again, while it has clients, is told so, and stays."""
        service = self.start()
        self.set_workers("1")
        self.set_workers("2")
        first, second = self.reactor.processes
        assert self.told() == [[], [b"retire\n", b"return\n"]]
        second.tell(b"empty\n")  # which crossed what it was told
        assert second.signals == [signal.SIGHUP] * 2
        assert self.running() == [first, second]
        second.end(status=1)
        self.reactor.advance(FIRST_PAUSE)
        assert len(self.running()) == 2  # as one that has never been too many
        self.successResultOf(self.stop(service))

    def test_wanted_when_it_ends(self) -> None:
        """One that is ending when more are wanted again is not asked to reload, and is replaced when it has ended."""
        service = self.start()
        self.set_workers("1")
        second = self.reactor.processes[1]
        second.tell(b"empty\n")
        self.set_workers("2")
        assert second.signals == [signal.SIGHUP, signal.SIGTERM]
        second.end()
        self.get_ready()
        assert [process.worker.number for process in self.running()] == [1, 2]
        self.successResultOf(self.stop(service))

    def test_one_too_many_dies(self) -> None:
        """One too many that dies is not replaced; and where the others cannot be started, it serves nobody new."""
        service = self.start("3")
        self.set_workers("1")
        first, second, third = self.reactor.processes
        with capturedLogs() as events:
            second.end(killed_by=signal.SIGKILL)
        assert texts(events) == ["worker 2, one too many, was killed by SIGKILL"]
        self.reactor.advance(LAST_PAUSE)
        assert self.running() == [first, third]
        while not self.reactor.readers:
            for process in self.running():
                if process is not third:
                    process.end(status=1)
            self.reactor.advance(LAST_PAUSE)
        self.successResultOf(self.stop(service))

    def test_one_too_many_has_just_ended(self) -> None:
        """That one too many has ended is no error when it is told that it is, and then it is not replaced."""
        service = self.start()
        second = self.reactor.processes[1]
        self.configure("1")
        self.hangup()
        self.reactor.run_threads()
        self.reactor.processes[0].tell(b"reloaded\n")
        second.running = False
        second.tell(b"reloaded\n")
        second.end()
        self.reactor.advance(LAST_PAUSE)
        assert len(self.running()) == 1
        self.successResultOf(self.stop(service))

    def test_one_too_many_is_not_ready(self) -> None:
        """One too many that does not serve yet is told when it can hear it; one that ends before is not replaced."""
        service = self.start("3")
        first, *others = self.reactor.processes
        for process in others:
            process.end(status=1)
        self.configure("1")
        self.hangup()
        self.reactor.run_threads()
        self.reactor.advance(FIRST_PAUSE)
        first.tell(b"reloaded\n")
        second, third = self.reactor.processes[3:]
        assert (second.told, second.signals) == ([], [])
        second.tell(b"ready\n")
        assert second.told == [b"retire\n"]
        with capturedLogs() as events:
            third.end(status=1)
        assert texts(events) == ["worker 3, one too many, ended with status 1"]
        self.reactor.advance(LAST_PAUSE)
        assert self.running() == [first, second]
        self.successResultOf(self.stop(service))
        assert not self.reactor.getDelayedCalls()

    def test_only_one_too_many_serves(self) -> None:
        """While none of those that are wanted can be started, one too many goes on as it did."""
        service = self.start()
        first, second = self.reactor.processes
        first.end(status=1)
        self.set_workers("1")
        assert self.told() == [[], [], []]
        for _ in range(9):
            third = self.running()[-1]
            third.end(status=1)
            self.reactor.advance(LAST_PAUSE)
        assert not self.reactor.readers
        with capturedLogs() as events:
            self.get_ready()
        assert texts(events)[-1] == "1 workers serve"
        assert second.told == [b"retire\n"]
        second.tell(b"empty\n")
        second.end()
        assert len(self.running()) == 1
        self.successResultOf(self.stop(service))

    def test_only_one_too_many_serves_and_dies(self) -> None:
        """Where that one dies, too, clients are refused, unless another is started soon."""
        for failures, refused in ((4, False), (5, True)):
            service = self.start()
            first, second = self.running()
            first.end(status=1)
            self.set_workers("1")
            for count in range(failures):
                self.reactor.advance(FIRST_PAUSE * 2**count if count else 0)
                self.running()[-1].end(status=1)
            assert self.running() == [second]
            assert not self.reactor.readers
            second.end(status=1)
            assert bool(self.reactor.readers) is refused
            self.successResultOf(self.stop(service))
            assert not self.reactor.readers

    def test_wanted_again_where_others_cannot_be_started(self) -> None:
        """When one is taken back that had clients of its own only, nobody is refused any more."""
        service = self.start()
        self.set_workers("1")
        first = self.running()[0]
        while not self.reactor.readers:
            first.end(status=1)
            self.reactor.advance(LAST_PAUSE if self.reactor.readers else FIRST_PAUSE * 2**5)
            first = self.running()[-1]
        with capturedLogs() as events:
            self.configure("2")
            self.hangup()
            self.reactor.run_threads()
            for process in self.running():
                process.tell(b"reloaded\n")
            first.end(status=1)
            self.reactor.processes[1].tell(b"reloaded\n")
        assert "worker 2 accepts clients again" in texts(events)
        assert not self.reactor.readers
        self.successResultOf(self.stop(service))

    def test_one_too_many_does_not_end(self) -> None:
        """One too many that does not end when its clients have left is killed; those that are wanted are not."""
        service = self.start()
        self.set_workers("1")
        first, second = self.reactor.processes
        self.reactor.advance(2 * (7 + GRACE))  # as long as it has clients, that is right
        second.tell(b"empty\n")
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

    def test_missing_while_refused(self) -> None:
        """A reload that is refused changes nothing for one that waits to be replaced, again and again."""
        service = self.start("1")
        self.configure("1", more="tables = t=nonsense:1\n")
        self.running()[0].end(status=1)
        self.reload()
        assert self.running() == []
        for pause in (FIRST_PAUSE, 2 * FIRST_PAUSE):
            self.reactor.advance(pause)
            self.running()[0].end(status=1)
        self.configure("1")
        self.reactor.advance(4 * FIRST_PAUSE)
        assert len(self.running()) == 1
        self.successResultOf(self.stop(service))

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
