"""Several processes that serve the same sockets."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import cycle
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pytest

from socketmap_memcache.listeners.client_counts import ClientCounts

from .harness.launch import ACTIVATE, assert_clean, check, start_in_vain
from .harness.policy import PolicyClient
from .harness.processes import PATIENCE, connect, free_port, scratch_directory, wait_until
from .harness.service import Service
from .harness.socketmap import SocketmapClient, ask

if TYPE_CHECKING:
    from typing_extensions import Self

TABLES = "tables = t=static:1\n"

MAIL = {
    "request": "smtpd_access_policy",
    "protocol_state": "RCPT",
    "client_address": "192.0.2.1",
    "client_name": "a",
    "sender": "a@b",
    "recipient": "c@d",
}


@pytest.fixture
def scratch() -> Iterator[Path]:
    with scratch_directory() as directory:
        yield directory


@contextmanager
def serving(scratch: Path, config: str = TABLES, workers: int = 2, **options: object) -> Iterator[Service]:
    service = Service(scratch, f"workers = {workers}\n{config}", **options)  # type: ignore[arg-type]
    with service:
        wait_until(lambda: f"{workers} workers serve" in service.log, "all workers serve")
        yield service


@contextmanager
def activated(directory: Path, listening: socket.socket, domain: str) -> Iterator[Service]:
    """Run the service on a socket of systemd's."""
    directory.mkdir()
    service = Service(directory, f"workers = 2\n{TABLES}", listen=[f"systemd:domain={domain}:index=0"])
    service.argv = [sys.executable, "-c", ACTIVATE, str(listening.fileno()), *service.argv]
    service._pass_fds = [listening.fileno()]
    service.addresses.clear()
    with service:
        wait_until(lambda: "2 workers serve" in service.log, "all workers serve")
        yield service


def workers_of(service: Service) -> list[int]:
    """Give the process ids of the workers."""
    children = Path(f"/proc/{service.pid}/task/{service.pid}/children").read_text().split()
    return [int(child) for child in children if b"socketmap_memcache.workers" in _command(child)]


def set_workers(service: Service, number: int) -> None:
    """Reload with another number of workers."""
    done = f" in {number} workers"
    before = service.log.count(done)
    service.configure(f"workers = {number}\n{TABLES}")
    service.reload()
    wait_until(lambda: service.log.count(done) > before, "the reload")


def _command(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _written_to(fifo: Path) -> IO[bytes] | None:
    """Open a FIFO, if there is one who reads it."""
    with suppress(OSError):
        return os.fdopen(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK), "wb")
    return None


def _sockets(pid: int) -> int:
    """Give how many sockets a process has."""
    count = 0
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            count += str(descriptor.readlink()).startswith("socket:")
    return count


class Load:
    """Asks in a thread, again and again, and never asks the same twice: whatever goes wrong counts.

    :ivar answers: how many there were.
    :ivar wrong: what was no answer, or not the right one.
    """

    def __init__(self, address: str, kept: Sequence[SocketmapClient] = ()) -> None:
        """Make one that does not ask yet.

        :param kept: connections over which it asks, in turn; without them each look-up has a new one.
        """
        self._address = address
        self._kept = cycle(kept) if kept else None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.answers = 0
        self.wrong: list[object] = []

    def __enter__(self) -> Self:
        self._thread.start()
        wait_until(lambda: self.answers > 10, "answers")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def more(self) -> None:
        """Wait for more answers."""
        before = self.answers
        wait_until(lambda: self.answers > before + 50 or bool(self.wrong), "more answers")

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                answer = next(self._kept).ask("t", b"key") if self._kept else ask(self._address, "t")
            except (OSError, EOFError) as error:
                self.wrong.append(error)
            else:
                if answer != b"OK 1":
                    self.wrong.append(answer)
            self.answers += 1


class TestWorkers:
    def test_all_serve(self, scratch: Path) -> None:
        """All workers accept from the same sockets, TCP and UNIX; at the end nothing is left of them."""
        addresses = [f"unix:{scratch}/socket", f"inet:127.0.0.1:{free_port()}"]
        with serving(scratch, listen=addresses) as service:
            workers = workers_of(service)
            assert len(workers) == 2
            for stopped in workers:
                os.kill(stopped, signal.SIGSTOP)
                for address in addresses:
                    assert ask(address, "t") == b"OK 1"
                os.kill(stopped, signal.SIGCONT)
        assert_clean(service.log)
        assert not (scratch / "socket").exists()
        assert not any(_command(str(pid)) for pid in workers)

    def test_spread(self, scratch: Path) -> None:
        """A new client goes to the worker with the fewest, though another one is awake; also after one was replaced."""
        with serving(scratch) as service, Load(service.addresses[0]):
            os.kill(workers_of(service)[0], signal.SIGKILL)
            wait_until(lambda: service.log.count("2 workers serve") == 2, "another worker")
            before = [_sockets(worker) for worker in workers_of(service)]
            with ExitStack() as stack:
                for _ in range(20):
                    client = stack.enter_context(SocketmapClient(service.addresses[0]))
                    assert client.ask("t", b"key") == b"OK 1"
                after = [_sockets(worker) for worker in workers_of(service)]
        assert min(new - old for new, old in zip(after, before, strict=True)) >= 7

    def test_killed(self, scratch: Path) -> None:
        """A worker that is killed is replaced, and nobody who connects meanwhile is refused."""
        with serving(scratch) as service, Load(service.addresses[0]) as load:
            killed = workers_of(service)[0]
            os.kill(killed, signal.SIGKILL)
            wait_until(lambda: len(set(workers_of(service)) - {killed}) == 2, "another worker")
            load.more()
        assert len(load.wrong) <= 1  # its own client's, if it had one just then
        assert re.search(r"worker \d was killed by SIGKILL; replaced in 0.1 s", service.log)

    def test_none_can_be_started(self, scratch: Path) -> None:
        """While no worker can be started, clients hear so at once; with a file without faults all is well again."""
        with serving(scratch) as service:
            service.configure("workers = 2\ntables = nonsense\n")
            for worker in workers_of(service):
                os.kill(worker, signal.SIGKILL)
            wait_until(lambda: "no worker can be started" in service.log, "the refusal", 60)  # after five starts
            for _ in range(3):
                with connect(service.addresses[0]) as client:
                    assert client.recv(1) == b""
            service.configure(f"workers = 2\n{TABLES}")
            service.reload()
            wait_until(lambda: service.log.count("2 workers serve") == 2, "all workers serve")
            assert ask(service.addresses[0], "t") == b"OK 1"

    def test_reload(self, scratch: Path) -> None:
        """SIGHUP lets the workers read the configuration one after the other; no look-up fails."""
        with serving(scratch) as service, Load(service.addresses[0]) as load:
            service.configure("workers = 3\ntables = t=static:1 new=static:2\n")
            service.reload()
            wait_until(lambda: "in 3 workers" in service.log, "the reload")
            load.more()
            assert ask(service.addresses[0], "new") == b"OK 2"
            wait_until(lambda: len(workers_of(service)) == 3, "a third worker")
            service.configure("workers = 2\ntables = nonsense\n")
            service.reload()
            wait_until(lambda: "reload refused" in service.log, "the refusal")
            load.more()
        assert not load.wrong

    def test_fewer(self, scratch: Path) -> None:
        """SIGHUP with fewer workers: those too many serve the clients they have till the last leaves; none fails."""
        with serving(scratch, workers=3) as service, ExitStack() as stack:
            address = service.addresses[0]
            workers = workers_of(service)
            with ExitStack() as leaving:
                clients = [leaving.enter_context(SocketmapClient(address)) for _ in range(12)]
                with Load(address, clients) as kept, Load(address) as new:
                    set_workers(service, 1)
                    kept.more()
                    new.more()
                assert not kept.wrong
                assert not new.wrong
                before = [_sockets(worker) for worker in workers[1:]]
                for _ in range(6):
                    assert stack.enter_context(SocketmapClient(address)).ask("t", b"key") == b"OK 1"
                assert [_sockets(worker) for worker in workers[1:]] == before
                assert workers_of(service) == workers
                service.configure("workers = 1\ntables = t=static:2\n")
                service.reload()
                wait_until(lambda: service.log.count("in 1 workers") == 2, "the reload")
                assert {client.ask("t", b"key") for client in clients} == {b"OK 2"}
            wait_until(lambda: workers_of(service) == workers[:1], "the end of those that were too many")
            assert ask(address, "t") == b"OK 2"
        assert_clean(service.log)

    def test_fewer_and_more_again(self, scratch: Path) -> None:
        """Workers that still have clients when they are wanted again accept others again; those that ended do not."""
        with serving(scratch, workers=3) as service:
            address = service.addresses[0]
            workers = workers_of(service)
            with ExitStack() as stack:
                for number in 1, 3:
                    for _ in range(12):
                        assert stack.enter_context(SocketmapClient(address)).ask("t", b"key") == b"OK 1"
                    before = [_sockets(worker) for worker in workers]
                    set_workers(service, number)
                assert workers_of(service) == workers
                for _ in range(30):
                    assert stack.enter_context(SocketmapClient(address)).ask("t", b"key") == b"OK 1"
                after = [_sockets(worker) for worker in workers]
                assert min(new - old for new, old in zip(after[1:], before[1:], strict=True)) >= 5
                set_workers(service, 1)
            wait_until(lambda: workers_of(service) == workers[:1], "the end of those that were too many")
            set_workers(service, 3)
            wait_until(lambda: len(workers_of(service)) == 3, "new ones in their place")
        assert_clean(service.log)

    def test_too_many_and_stopped(self, scratch: Path) -> None:
        """SIGTERM ends those, too, that only serve the clients they have; one that is killed then is not replaced."""
        with serving(scratch, workers=3) as service, ExitStack() as stack:
            workers = workers_of(service)
            for _ in range(12):
                assert stack.enter_context(SocketmapClient(service.addresses[0])).ask("t", b"key") == b"OK 1"
            set_workers(service, 1)
            os.kill(workers[1], signal.SIGKILL)
            wait_until(lambda: "worker 2, one too many, was killed by SIGKILL" in service.log, "its end")
            assert workers_of(service) == [workers[0], workers[2]]
        assert not any(_command(str(pid)) for pid in workers)

    def test_parent_is_killed(self, scratch: Path) -> None:
        """When the parent is killed its workers end, too."""
        with serving(scratch) as service:
            workers = workers_of(service)
            service.kill()
            wait_until(lambda: not any(_command(str(pid)) for pid in workers), "the end of the workers")

    @pytest.mark.skipif(sys.platform != "linux", reason="SIGIO is ignored elsewhere")
    @pytest.mark.parametrize("starting", [False, True])
    def test_parent_is_killed_at_the_start(self, scratch: Path, starting: bool) -> None:
        """A worker whose parent is killed ends at once, however far it has come, and gives its sockets back."""
        fifo = scratch / "main.cf"
        os.mkfifo(fifo)
        counts = ClientCounts.make()
        options = ["--config", str(fifo), "--number=1", f"--counts={counts}"]
        argv = [sys.executable, "-m", "socketmap_memcache.workers", *options]
        with ExitStack() as stack:
            stack.callback(os.close, counts)
            worker = stack.enter_context(
                subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=[counts])
            )
            stack.callback(worker.kill)
            if starting:  # it hangs, longer than any that starts: nobody writes its configuration
                wait_until(
                    lambda: (written := _written_to(fifo)) and stack.enter_context(written),
                    "the worker reads its configuration",
                )
            assert worker.stdin is not None
            worker.stdin.close()
            worker.wait(PATIENCE)

    def test_parent_is_stopped(self, scratch: Path) -> None:
        """While the parent does not read what its workers log, they serve; it says later how many lines are lost."""
        config = f"policies = greylist\ngreylist_table = lmdb:{scratch}/greylist\n"
        policy = f"unix:{scratch}/policy"
        with serving(scratch, config, policy_listen=[policy]) as service:
            service.send_signal(signal.SIGSTOP)
            with PolicyClient(policy) as client, ExitStack() as stack:
                stack.callback(service.send_signal, signal.SIGCONT)
                mails = [{**MAIL, "sender": f"{number}@b", "recipient": "c" * 400} for number in range(3000)]
                for start in range(0, len(mails), 100):  # a line each
                    assert {answer[:5] for answer in client.ask_all(mails[start : start + 100])} == {b"DEFER"}
                service.send_signal(signal.SIGCONT)
                wait_until(lambda: "sender=50@b" in service.log, "the lines that were kept")
                # Again and again: as long as the parent has not read the rest, this line is left out, too.
                last = {**MAIL, "sender": "last@b"}
                wait_until(lambda: client.ask(last) and "sender=last@b" in service.log, "the last line")
            assert re.search(r"a worker says: \d+ lines of the log are lost", service.log)

    def test_in_flight(self, scratch: Path) -> None:
        """SIGTERM: what is in flight is answered before the end."""
        with ExitStack() as stack:
            slow = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            backup = f"socketmap:inet:127.0.0.1:{slow.getsockname()[1]}:x"
            with serving(scratch, f"tables = t={backup}\n") as service, connect(service.addresses[0]) as client:
                client.sendall(b"3:t k,")
                asked = stack.enter_context(slow.accept()[0])
                assert asked.recv(100) == b"3:x k,"
                service.send_signal(signal.SIGTERM)
                wait_until(lambda: service.log.count("Received SIGTERM") >= 3, "the end has begun")
                wait_until(lambda: not service.ready(), "nobody else is accepted")
                service.send_signal(signal.SIGHUP)  # which changes nothing any more
                asked.sendall(b"7:OK slow,")
                assert client.recv(100) == b"7:OK slow,"
                assert service.child.wait(PATIENCE) == -signal.SIGTERM

    def test_hangup_at_the_start(self, scratch: Path) -> None:
        """SIGHUP before the workers can take it ends none of them; they read the configuration when they can."""
        service = Service(scratch, f"workers = 2\n{TABLES}")
        service.ready = lambda: len(workers_of(service)) == 2  # type: ignore[method-assign]
        with service:
            service.reload()
            wait_until(lambda: "in 2 workers" in service.log, "the reload")
            assert service.log.count("workers serve") == 1
            assert ask(service.addresses[0], "t") == b"OK 1"
        assert_clean(service.log)

    def test_many_at_once(self, scratch: Path) -> None:
        """Of many clients that connect at once each worker gets some."""
        address = f"inet:127.0.0.1:{free_port()}"
        with serving(scratch, listen=[address]) as service, ExitStack() as stack:
            idle = [_sockets(pid) for pid in workers_of(service)]
            for _ in range(64):
                stack.enter_context(connect(address))
            wait_until(lambda: sum(map(_sockets, workers_of(service))) == sum(idle) + 64, "all are accepted")
            assert all(_sockets(pid) > before + 5 for pid, before in zip(workers_of(service), idle, strict=True))

    def test_daemon(self, scratch: Path) -> None:
        """As a daemon in another directory, with a relative path: the workers find the configuration, also again."""
        (scratch / "run").mkdir()
        service = Service(scratch, f"workers = 2\n{TABLES}")
        log, pidfile = scratch / "log", scratch / "run" / "pid"
        twistd = [*service.argv[:2], f"--pidfile={pidfile}", f"--logfile={log}", f"--rundir={scratch / 'run'}"]
        subprocess.run(
            [*twistd, "socketmap-memcache", "--config", "main.cf"], cwd=scratch, check=True, timeout=PATIENCE
        )
        wait_until(pidfile.exists, "the pidfile")
        pid = int(pidfile.read_text())
        try:
            wait_until(lambda: "2 workers serve" in log.read_text(), "all workers serve")
            os.kill(pid, signal.SIGHUP)
            wait_until(lambda: "in 2 workers" in log.read_text(), "the reload")
            assert ask(service.addresses[0], "t") == b"OK 1"
        finally:
            os.kill(pid, signal.SIGTERM)
            wait_until(lambda: not _command(str(pid)), "the end")
        assert_clean(log.read_text())
        assert not pidfile.exists()
        assert not (scratch / "socketmap.sock").exists()

    def test_greylist(self, scratch: Path) -> None:
        """All workers have one greylist in lmdb: what one has deferred passes at another."""
        config = f"policies = greylist\ngreylist_table = lmdb:{scratch}/greylist\ngreylist_delay = 1s\n"
        policy = f"unix:{scratch}/policy"
        with serving(scratch, config, policy_listen=[policy]) as service:
            first, second = workers_of(service)
            os.kill(second, signal.SIGSTOP)
            with PolicyClient(policy) as client:
                assert client.ask(MAIL).startswith(b"DEFER")
            os.kill(second, signal.SIGCONT)
            os.kill(first, signal.SIGSTOP)
            with PolicyClient(policy) as client:
                wait_until(lambda: client.ask(MAIL).startswith(b"PREPEND"), "the mail passes at the other worker")
            os.kill(first, signal.SIGCONT)

    @pytest.mark.parametrize("domain", ["UNIX", "INET"])
    def test_systemd(self, scratch: Path, domain: str) -> None:
        """A socket of systemd's is handed to the workers, may be shared by instances, and is left as it was."""
        with socket.socket(socket.AF_UNIX if domain == "UNIX" else socket.AF_INET) as listening:
            listening.bind(str(scratch / "systemd.sock") if domain == "UNIX" else ("127.0.0.1", 0))
            listening.listen()
            name = listening.getsockname()
            address = f"unix:{name}" if domain == "UNIX" else f"inet:{name[0]}:{name[1]}"
            with activated(scratch / "first", listening, domain) as first:
                with activated(scratch / "second", listening, domain) as second:
                    for _ in range(20):
                        assert ask(address, "t") == b"OK 1"
                assert ask(address, "t") == b"OK 1"
            assert domain != "UNIX" or Path(name).exists()
            assert_clean(first.log)
            assert_clean(second.log)

    def test_exhausted(self, scratch: Path) -> None:
        """Where the workers run out of descriptors nobody is turned away."""
        with serving(scratch) as service, ExitStack() as stack:
            for worker in workers_of(service):
                in_use = len(list(Path(f"/proc/{worker}/fd").iterdir()))
                resource.prlimit(worker, resource.RLIMIT_NOFILE, (in_use + 3, 20_000))
            clients = [stack.enter_context(SocketmapClient(service.addresses[0])) for _ in range(20)]
            for client in clients:
                client.send("t", b"key")
            wait_until(lambda: service.log.count("Too many open files; others wait") == 2, "it is logged")
            for worker in workers_of(service):
                resource.prlimit(worker, resource.RLIMIT_NOFILE, (20_000, 20_000))
            for client in clients:
                assert client.receive() == b"OK 1"

    def test_instances(self, scratch: Path) -> None:
        """With reuse_port, separate instances, also with workers, serve one port; when one ends the other goes on."""
        address = f"inet:127.0.0.1:{free_port()}"
        config = f"reuse_port = yes\n{TABLES}"
        (scratch / "other").mkdir()
        with Service(scratch, config, listen=[address]) as first:
            with Service(scratch / "other", f"workers = 2\n{config}", listen=[address]) as second:
                wait_until(lambda: "2 workers serve" in second.log, "all workers serve")
                for _ in range(20):
                    assert ask(address, "t") == b"OK 1"
            assert ask(address, "t") == b"OK 1"
        assert_clean(first.log)
        assert_clean(second.log)

    def test_refused(self, scratch: Path) -> None:
        """Sockets that cannot be shared, and a greylist that cannot, are errors."""
        config = scratch / "main.cf"
        config.write_text(
            f"workers = 0\npolicies = greylist\ngreylist_table = memory:\n{TABLES}"
            f"socketmap_listen = tcp:{free_port()}:interface=127.0.0.1\n"
        )
        for number, result in ((2, check(config, "--set", "workers=2")), (2, start_in_vain(config, "--set=workers=2"))):
            assert result.returncode == 1
            output = result.stdout + result.stderr
            assert "cannot be shared; write inet:host:port or unix:/path" in output
            assert f"each of the {number} workers would have a greylist of its own in memory" in output
