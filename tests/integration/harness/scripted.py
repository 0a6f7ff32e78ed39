"""A memcached that says what a test wants, when it wants."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from socketmap_memcache.memcache.probe import PROBE_KEY

from .threaded import ThreadedServer


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


class ScriptedMemcached(ThreadedServer):
    """What is served by :func:`scripted_memcached`.

    :ivar address: as a ``.cf`` file wants it.
    :ivar gets: the keys that it was asked for, in order.
    """

    def __init__(self, path: Path, script: Script) -> None:
        super().__init__(path)
        self.address = f"unix:{path}"
        self.gets: list[bytes] = []
        self._script = script

    def _serve(self, client: socket.socket, number: int) -> None:
        with client.makefile("rb") as commands:
            for line in commands:
                words = line.split()
                if words[0] == b"set":
                    commands.read(int(words[4]) + 2)
                    client.sendall(b"STORED\r\n")
                elif words[0] == b"mg":
                    client.sendall(b"ERROR\r\n")
                elif words[1] == PROBE_KEY:
                    client.sendall(b"NOT_FOUND\r\n")
                else:
                    self.gets.append(words[1])
                    if not self._script(Get(words[1], number, client, self._closing)):
                        return


@contextmanager
def scripted_memcached(path: Path, script: Script) -> Iterator[ScriptedMemcached]:
    """Serve on a UNIX socket; a ``set`` is always stored, and forgotten, and the client's probes are answered.

    It knows no meta commands, as memcached before 1.6.
    """
    server = ScriptedMemcached(path, script)
    server.start()
    try:
        yield server
    finally:
        server.close()


def value(key: bytes, data: bytes) -> bytes:
    """Return a well-formed reply with a value."""
    return b"VALUE %b 0 %d\r\n%b\r\nEND\r\n" % (key, len(data), data)
