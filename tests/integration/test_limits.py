"""What clients together may take of the service: connections, descriptors, memory, time."""

from __future__ import annotations

import resource
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Thread

import pytest

from .harness.policy import PolicyClient
from .harness.processes import scratch_directory, wait_until
from .harness.service import Service
from .harness.socketmap import SocketmapClient, ask, request

LARGE = 99_000
MEGABYTE = 1_000_000
#: Others are answered within so many seconds, on a machine that is busy with other tests, too.
PROMPT = 0.5


def resident(service: Service) -> int:
    """Return how much memory a service has, in bytes."""
    (line,) = [line for line in Path(f"/proc/{service.pid}/status").read_text().splitlines() if line[:6] == "VmRSS:"]
    return int(line.split()[1]) * 1024


@contextmanager
def running(directory: Path, config: str, *, descriptors: int | None = None) -> Iterator[Service]:
    """Run the service with maps, and a policy that nobody has to ask.

    :param descriptors: how many file descriptors the process may have; it begins with 64.
    """
    large = directory / "large"
    large.write_text(f"key {'x' * LARGE}\n")
    config = f"tables = t=inline:{{key=value}} large=texthash:{large}\npolicies = greylist\n{config}"
    config += "greylist_table = memory:\n"
    listen, policy_listen = [f"unix:{directory}/maps"], [f"unix:{directory}/policies"]
    service = Service(directory, config, listen=listen, policy_listen=policy_listen)
    if descriptors is not None:
        set_limit = "import os, resource, sys; n = int(sys.argv[1]); "
        set_limit += "resource.setrlimit(resource.RLIMIT_NOFILE, (64, n)); os.execv(sys.argv[2], sys.argv[2:])"
        service.argv = [sys.executable, "-c", set_limit, str(descriptors), *service.argv]
    with service:
        yield service


@pytest.fixture(scope="module")
def shared() -> Iterator[Service]:
    with scratch_directory() as directory, running(directory, "") as service:
        yield service


def assert_prompt(service: Service) -> None:
    """A client with one question is served at once."""
    begun = time.monotonic()
    assert ask(service.addresses[0], "t") == b"OK value"
    assert time.monotonic() - begun < PROMPT


class TestClientLimit:
    def test_others_wait(self) -> None:
        """Above client_limit, at all listeners together, clients wait, and are served when another one leaves."""
        with (
            scratch_directory() as directory,
            running(directory, "client_limit = 3\n") as service,
            ExitStack() as stack,
        ):
            clients = [stack.enter_context(SocketmapClient(service.addresses[0])) for _ in range(2)]
            for client in clients:
                assert client.ask("t", b"key") == b"OK value"
            policy = stack.enter_context(PolicyClient(service.policy_addresses[0]))
            late = [stack.enter_context(SocketmapClient(service.addresses[0])) for _ in range(3)]
            for client in late:
                client.send("t", b"key")
            wait_until(lambda: "there are 3 clients, as many as may be" in service.log, "the limit is logged")
            late[0].socket.settimeout(0.2)
            with pytest.raises(TimeoutError):
                late[0].socket.recv(1)
            assert clients[0].ask("t", b"key") == b"OK value"
            policy.close()
            clients.pop().close()
            late[0].socket.settimeout(PROMPT)
            assert late[0].socket.recv(100) == b"8:OK value,"
            late[0].close()
            for client in late[1:]:
                assert client.receive() == b"OK value"
            assert service.log.count("as many as may be") == 1

    def test_descriptors(self) -> None:
        """The limit of descriptors is raised as far as it can be, and where that is too little more clients wait."""
        with scratch_directory() as directory, running(directory, "", descriptors=220) as service, ExitStack() as stack:
            assert "but the process may have 220 file descriptors only: 120 clients" in service.log
            clients = [stack.enter_context(SocketmapClient(service.addresses[0])) for _ in range(300)]
            for client in clients:
                client.send("t", b"key")
            for client in clients:
                assert client.receive() == b"OK value"
                client.close()

    def test_exhausted(self) -> None:
        """Where descriptors run out all the same, nobody is turned away, and those who are there are served."""
        with scratch_directory() as directory, running(directory, "") as service, ExitStack() as stack:
            first = stack.enter_context(SocketmapClient(service.addresses[0]))
            assert first.ask("t", b"key") == b"OK value"
            in_use = len(list(Path(f"/proc/{service.pid}/fd").iterdir()))
            resource.prlimit(service.pid, resource.RLIMIT_NOFILE, (in_use + 3, 20_000))
            clients = [stack.enter_context(SocketmapClient(service.addresses[0])) for _ in range(10)]
            for client in clients:
                client.send("t", b"key")
            wait_until(lambda: "Too many open files; others wait" in service.log, "it is logged")
            begun, used = time.monotonic(), processor_time(service)
            while time.monotonic() < begun + 1.5:
                assert first.ask("t", b"key") == b"OK value"
                time.sleep(0.05)
            assert processor_time(service) - used < 0.4
            assert service.log.count("others wait") == 1
            resource.prlimit(service.pid, resource.RLIMIT_NOFILE, (20_000, 20_000))
            for client in clients:
                assert client.receive() == b"OK value"


def processor_time(service: Service) -> float:
    """Return the seconds of processor time that a service has used."""
    fields = Path(f"/proc/{service.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


class TestProcessor:
    def test_busy_poll(self) -> None:
        """A process that stays awake for a moment sleeps after it, though its client stays connected."""
        with (
            scratch_directory() as directory,
            running(directory, "busy_poll = 1000\n") as service,
            SocketmapClient(service.addresses[0]) as client,
        ):
            assert client.ask("t", b"key") == b"OK value"
            used = processor_time(service)
            time.sleep(1)
            assert processor_time(service) - used < 0.3
            assert client.ask("t", b"key") == b"OK value"


class TestMemory:
    def test_idle_clients(self, shared: Service) -> None:
        """An idle client takes less than 6 kB."""
        count = 1000
        assert_prompt(shared)
        before = resident(shared)
        with ExitStack() as stack:
            clients = [stack.enter_context(SocketmapClient(shared.addresses[0])) for _ in range(count)]
            for client in clients:
                assert client.ask("t", b"key") == b"OK value"
            assert resident(shared) - before < count * 6000
            assert_prompt(shared)

    def test_large_replies_unread(self, shared: Service) -> None:
        """Clients that ask for the largest values and never read are held at a few megabytes each."""
        assert_prompt(shared)
        before = resident(shared)
        one = request("large", b"key")
        with ExitStack() as stack:
            for _ in range(5):
                client = stack.enter_context(SocketmapClient(shared.addresses[0]))
                client.socket.settimeout(0.2)
                with suppress(TimeoutError):
                    while True:
                        client.socket.sendall(one * 1000)
            assert_prompt(shared)
            assert resident(shared) - before < 5 * 12 * MEGABYTE

    def test_large_requests(self, shared: Service) -> None:
        """Requests of the largest size, one after the other without a pause, take little memory."""
        assert_prompt(shared)
        before = resident(shared)
        key = b"k" * (100_000 - len(b"t "))
        with SocketmapClient(shared.addresses[0]) as client:
            sender = Thread(target=client.send, args=("t", *[key] * 300))
            sender.start()
            for number in range(300):
                assert client.receive() == b"NOTFOUND "
                if number == 100:
                    assert_prompt(shared)
            sender.join()
        assert resident(shared) - before < 20 * MEGABYTE

    def test_endless_line(self, shared: Service) -> None:
        """A policy request of a line that does not end is not kept: the connection is closed."""
        before = resident(shared)
        for _ in range(20):
            with PolicyClient(shared.policy_addresses[0]) as client, suppress(ConnectionError):
                client.socket.sendall(b"sender=" + b"x" * MEGABYTE + b"\n\n")
                assert client.socket.recv(1) == b""
        assert resident(shared) - before < 2 * MEGABYTE

    def test_unfinished_requests(self, shared: Service) -> None:
        """The beginnings of large requests that many clients send are kept, and gone with the clients."""
        assert_prompt(shared)
        before = resident(shared)
        with ExitStack() as stack:
            for _ in range(100):
                client = stack.enter_context(SocketmapClient(shared.addresses[0]))
                client.socket.sendall(b"100000:t " + b"x" * 90_000)
            assert_prompt(shared)
            assert resident(shared) - before < 100 * 250_000
        assert_prompt(shared)


class TestPipelines:
    def test_others(self, shared: Service) -> None:
        """While clients send 20,000 requests at once others are answered promptly, and so are those, in order."""
        count = 20_000

        def receive(client: SocketmapClient) -> None:
            reply = b"8:OK value,"
            expected = reply * count
            assert client.read(len(expected)) == expected

        with ExitStack() as stack:
            clients = [stack.enter_context(SocketmapClient(shared.addresses[0])) for _ in range(2)]
            lone = stack.enter_context(SocketmapClient(shared.addresses[0]))
            wire = request("t", b"key") * count
            threads = [Thread(target=receive, args=(client,)) for client in clients]
            threads += [Thread(target=client.socket.sendall, args=(wire,)) for client in clients]
            for thread in threads:
                thread.start()
            times = []
            while any(thread.is_alive() for thread in threads):
                begun = time.monotonic()
                assert lone.ask("t", b"key") == b"OK value"
                times.append(time.monotonic() - begun)
                time.sleep(0.005)
            times.sort()
            assert times[len(times) // 2] < 0.05, times[-10:]
            assert times[-1] < PROMPT

    def test_byte_by_byte(self, shared: Service) -> None:
        """Requests that come byte by byte are answered all the same."""
        with SocketmapClient(shared.addresses[0]) as slow:
            slow.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
            for byte in request("t", b"key") * 5:
                slow.socket.sendall(bytes([byte]))
            for _ in range(5):
                assert slow.receive() == b"OK value"
