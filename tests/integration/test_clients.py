"""Many clients, and bad ones: what each may do to the service and to the others."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from .harness.processes import PATIENCE, free_port, scratch_directory
from .harness.service import Service
from .harness.socketmap import SocketmapClient, ask, request


@pytest.fixture(scope="module")
def shared() -> Iterator[Service]:
    with scratch_directory() as directory:
        listen = [f"unix:{directory}/socketmap.sock", f"inet:127.0.0.1:{free_port()}"]
        large = "x" * 2000
        with Service(directory, f"tables = t=inline:{{key=value}}, large=static:{large}\n", listen=listen) as service:
            yield service


class TestClients:
    @pytest.mark.parametrize(
        "garbage, reason",
        [
            (b"GET / HTTP/1.0\r\n\r\n", "does not begin with its length"),
            (b"05:t key,", "leading zero"),
            (b"5:t key!", "does not end in a comma"),
            (b"100001:", "above the limit of 100000"),
            (b"99999999999999999999:", "more than 6 digits"),
        ],
    )
    def test_malformed(self, shared: Service, garbage: bytes, reason: str) -> None:
        """Garbage closes that connection, after what came before it is answered, with one line in the log."""
        for address in shared.addresses:
            before = len(shared.log)
            with SocketmapClient(address) as bad, SocketmapClient(address) as good:
                bad.socket.sendall(request("t", b"key") + garbage)
                assert bad.receive() == b"OK value"
                assert bad.closed()
                assert good.ask("t", b"key") == b"OK value"
            lines = shared.log[before:].splitlines()
            assert [reason in line for line in lines] == [True], lines

    @pytest.mark.parametrize("payload, reason", [(b"no-blank", b"no blank"), (b" key", b"no map name")])
    def test_bad_request(self, shared: Service, payload: bytes, reason: bytes) -> None:
        """A request that is not one is answered PERM with the reason, and the connection goes on."""
        with SocketmapClient(shared.addresses[0]) as client:
            client.socket.sendall(b"%d:%b," % (len(payload), payload))
            answer = client.receive()
            assert answer.startswith(b"PERM ")
            assert reason in answer
            assert client.ask("t", b"key") == b"OK value"

    def test_unknown_map(self, shared: Service) -> None:
        """A map that is not served is answered PERM with its name, and logged once for all connections."""
        for _ in range(2):
            with SocketmapClient(shared.addresses[0]) as client:
                for answer in client.ask_all("missing", [b"a", b"b"]):
                    assert answer.startswith(b"PERM map 'missing' is not served here")
        assert len([line for line in shared.log.splitlines() if "'missing'" in line]) == 1

    def test_many(self, shared: Service) -> None:
        """Hundreds of clients are served at the same time."""
        for address in shared.addresses:
            clients = [SocketmapClient(address) for _ in range(200)]
            for client in clients:
                client.send("t", b"key", b"none")
            for client in clients:
                assert [client.receive(), client.receive()] == [b"OK value", b"NOTFOUND "]
                client.close()

    def test_bytes_one_by_one(self, shared: Service) -> None:
        """Requests that come byte by byte are answered."""
        with SocketmapClient(shared.addresses[1]) as client:
            client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in request("t", b"key"):
                client.socket.sendall(bytes([byte]))
            assert client.receive() == b"OK value"

    def test_leaves_early(self, shared: Service) -> None:
        """Clients that ask and leave without the answer disturb nobody, and are no news."""
        before = len(shared.log)
        for _ in range(20):
            for address in shared.addresses:
                with SocketmapClient(address) as client:
                    client.send("large", *[b"key"] * 100)
                    # Reset, rather than an orderly end.
                    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        assert ask(shared.addresses[0], "t") == b"OK value"
        assert shared.log[before:] == ""

    @pytest.mark.parametrize("number", [0, 1], ids=["unix", "inet"])
    def test_never_reads(self, shared: Service, number: int) -> None:
        """A client that asks and asks and never reads costs little memory, and others are served."""
        memory = resident(shared.pid)
        one = request("large", b"key")
        sent = 0
        with SocketmapClient(shared.addresses[number]) as greedy:
            greedy.socket.settimeout(0.5)
            with suppress(TimeoutError):
                while sent < 20_000_000:
                    sent += greedy.socket.send(one * 1000)
            assert sent < 20_000_000
            begun = time.monotonic()
            assert ask(shared.addresses[0], "t") == b"OK value"
            assert time.monotonic() - begun < 0.5
            assert resident(shared.pid) - memory < 20_000_000
            # It may think better of it.
            greedy.socket.settimeout(PATIENCE)
            reply = b"2003:OK %b," % (b"x" * 2000)
            for _ in range(min(sent // len(one), 20_000)):
                assert greedy.read(len(reply)) == reply
        assert ask(shared.addresses[0], "t") == b"OK value"


def resident(pid: int) -> int:
    """Return how much memory a process has, in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
