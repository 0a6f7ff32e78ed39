"""A memcached that says what a test wants, when it wants."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from socketmap_memcache.memcache.link import PROBE_KEY


class Get:
    """A ``get`` to be answered.

    :ivar key: what is asked for.
    :ivar connection: which connection of the server's it came on, counted from 1.
    """

    def __init__(self, key: bytes, connection: int, client: socket.socket, closing: threading.Event) -> None:
        self.key = key
        self.connection = connection
        self._client = client
        self._closing = closing

    def send(self, data: bytes) -> None:
        self._client.sendall(data)

    def wait(self, seconds: float) -> None:
        """Wait, but no longer than the server lives."""
        self._closing.wait(seconds)

    def hang(self) -> None:
        """Say nothing more until the client leaves."""
        while self._client.recv(1000):
            pass


#: Answers a get, and says whether the connection goes on.
Script = Callable[[Get], bool]


class ScriptedMemcached:
    """What is served by :func:`scripted_memcached`.

    :ivar address: as a ``.cf`` file wants it.
    :ivar gets: the keys that it was asked for, in order.
    """

    def __init__(self, path: Path, script: Script) -> None:
        self.address = f"unix:{path}"
        self.gets: list[bytes] = []
        self._script = script
        self._closing = threading.Event()
        self._listening = socket.socket(socket.AF_UNIX)
        self._clients: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listening.bind(str(path))
        self._listening.listen(128)

    def start(self) -> None:
        self._start(self._accept)

    def close(self) -> None:
        """End all threads."""
        self._closing.set()
        for each in (self._listening, *self._clients):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)  # a thread that waits for it wakes up
        for thread in self._threads:
            thread.join()
        self._listening.close()

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        self._threads.append(threading.Thread(target=target, args=arguments))
        self._threads[-1].start()

    def _accept(self) -> None:
        with suppress(OSError):
            for number in itertools.count(1):
                client, _ = self._listening.accept()
                self._clients.append(client)
                self._start(self._serve, client, number)

    def _serve(self, client: socket.socket, number: int) -> None:
        with suppress(OSError), client, client.makefile("rb") as commands:
            for line in commands:
                words = line.split()
                if words[0] == b"set":
                    commands.read(int(words[4]) + 2)
                    client.sendall(b"STORED\r\n")
                    continue
                if words[1] == PROBE_KEY:
                    client.sendall(b"END\r\n")
                    continue
                self.gets.append(words[1])
                if not self._script(Get(words[1], number, client, self._closing)):
                    return


@contextmanager
def scripted_memcached(path: Path, script: Script) -> Iterator[ScriptedMemcached]:
    """Serve on a UNIX socket; a ``set`` is always stored, and forgotten, and the client's probes are answered."""
    server = ScriptedMemcached(path, script)
    server.start()
    try:
        yield server
    finally:
        server.close()


def value(key: bytes, data: bytes) -> bytes:
    """Return a well-formed reply with a value."""
    return b"VALUE %b 0 %d\r\n%b\r\nEND\r\n" % (key, len(data), data)
