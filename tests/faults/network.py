"""A network, and a memcached behind it, that can be broken in many ways."""

from __future__ import annotations

import re
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from random import Random
from threading import Event, Thread

from tests.integration.harness.processes import connect, free_port

# A reply of memcached's; no value here has a line end.
_REPLY = re.compile(rb"(?:VALUE [^\n]*\n[^\n]*\n)*[^\n]+\n")

# To linger for no time: what is left is forgotten, and the other side is told so.
_RESET = struct.pack("ii", 1, 0)


class Cut(Exception):
    """The connection is to be closed after what was given."""


class Way:
    """One direction of one connection.

    :ivar held: what a fault keeps for later.
    :ivar resets: whether the end of the connection is a reset.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self.random = network.random
        self.held = b""
        self.resets = False

    def wait(self, seconds: float) -> bool:
        """Wait, but not beyond the end of the fault, and return whether that has come."""
        return self.network.mended.wait(seconds)


#: Says what becomes of a chunk of bytes on its way.
Fault = Callable[[Way, bytes], Iterator[bytes]]


def garbage(way: Way, chunk: bytes) -> Iterator[bytes]:
    """Replace it by any bytes."""
    yield way.random.choice([way.random.randbytes(len(chunk)), b"\r\n" * 20, b"VALUE ", chunk[::-1]])


def late(way: Way, chunk: bytes) -> Iterator[bytes]:
    """Let it come when nobody waits for it any more, but for the first: a server that answers probes is not down."""
    if way.held:
        way.wait(1.3)
    way.held = chunk
    yield chunk


def previous(way: Way, chunk: bytes) -> Iterator[bytes]:
    """Answer each question with the reply to the one before, and the first one with its own."""
    for reply in _REPLY.findall(chunk):
        yield way.held or reply
        way.held = reply


def cut(_: Way, chunk: bytes) -> Iterator[bytes]:
    """Hang up in the middle of the first value."""
    begin = chunk.find(b"VALUE ")
    if begin < 0:
        yield chunk
        return
    end = chunk.find(b"\n", begin)
    yield chunk[: end + 4]
    raise Cut


def lossy(way: Way, chunk: bytes) -> Iterator[bytes]:
    """Take some time, and that of TCP after a loss, which doubles with each in a row; now and then hang, or reset."""
    luck = way.random.random()
    if luck < 0.01:
        way.resets = True
        raise Cut
    pause = 0.2
    while luck < 0.03 or way.random.random() < 0.1:
        if way.wait(pause):
            break
        pause *= 2
    way.wait(0.02 * luck)
    yield chunk


class Network:
    """Lies between a memcached and its clients.

    :ivar address: where the clients find it.
    :ivar replies: what becomes of replies; ``None``: they come as they are.
    :ivar requests: the same.
    """

    def __init__(self, server: str, random: Random) -> None:
        """:param server: the address of memcached."""
        self.random = random
        self.mended = Event()
        self.mended.set()
        self.replies: Fault | None = None
        self.requests: Fault | None = None
        self._server = server
        self._place = ("127.0.0.1", free_port())
        self.address = f"inet:127.0.0.1:{self._place[1]}"
        self._sockets: list[socket.socket] = []
        self._listening: socket.socket | None = None
        self.open()

    def open(self) -> None:
        """Accept connections (again)."""
        self._listening = socket.create_server(self._place)
        Thread(target=self._accept, args=(self._listening,), daemon=True).start()

    def close(self) -> None:
        """Refuse connections, and end those that there are."""
        assert self._listening is not None
        for each in (self._listening, *self._sockets):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._sockets.clear()

    def be_broken(self, seconds: float, replies: Fault, requests: Fault | None = None) -> None:
        """Have a fault for a time."""
        self.mended.clear()
        self.replies, self.requests = replies, requests
        time.sleep(seconds)
        self.replies = self.requests = None
        self.mended.set()

    def _accept(self, listening: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listening.accept()
                try:
                    server = connect(self._server)
                except OSError:
                    client.close()
                    continue
                server.settimeout(None)
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._sockets += [client, server]
                Thread(target=self._carry, args=(client, server, "requests"), daemon=True).start()
                Thread(target=self._carry, args=(server, client, "replies"), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, what: str) -> None:
        way = Way(self)
        with suppress(OSError, Cut):
            while chunk := source.recv(65536):
                fault: Fault | None = getattr(self, what)
                if fault is None:
                    way.held = b""
                    target.sendall(chunk)
                    continue
                for part in fault(way, chunk):
                    target.sendall(part)
        for each in (source, target):
            with suppress(OSError):
                if way.resets:
                    each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                each.shutdown(socket.SHUT_RD)  # wakes the thread that reads, and sends nothing
        source.close()  # the other one is closed by its own thread
        with suppress(ValueError):
            self._sockets.remove(source)
