"""A memcached that says what a test wants, when it wants."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs


@attrs.define
class Get:
    """A ``get`` to be answered.

    :ivar key: what is asked for.
    :ivar connection: which connection of the server's it came on, counted from 1.
    """

    key: bytes
    connection: int
    _server: _Server
    _handler: _Handler

    def send(self, data: bytes) -> None:
        self._handler.wfile.write(data)

    def wait(self, seconds: float) -> None:
        """Wait, or shorter: until the server is closed."""
        self._server.closing.wait(seconds)

    def hang(self) -> None:
        """Say nothing more until the client leaves or the server is closed."""
        self._handler.connection.settimeout(0.1)
        while not self._server.closing.is_set():
            with suppress(TimeoutError):
                if not self._handler.connection.recv(1000):
                    return


#: Answers a get, and says whether the connection goes on.
Script = Callable[[Get], bool]


class _Handler(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        number = self.server.count_connection()
        with suppress(ConnectionError):
            while line := self.rfile.readline():
                words = line.split()
                if words[0] == b"set":
                    self.rfile.read(int(words[4]) + 2)
                    self.wfile.write(b"STORED\r\n")
                    continue
                self.server.gets.append(words[1])
                if not self.server.script(Get(words[1], number, self.server, self)):
                    return


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, path: Path, script: Script) -> None:
        self.script = script
        self.gets: list[bytes] = []
        self.closing = threading.Event()
        self._connections = 0
        self._lock = threading.Lock()
        super().__init__(str(path), _Handler)

    def count_connection(self) -> int:
        with self._lock:
            self._connections += 1
            return self._connections


@attrs.frozen
class ScriptedMemcached:
    """A running one.

    :ivar address: as a ``.cf`` file wants it.
    :ivar gets: the keys that it was asked for, in order.
    """

    address: str
    gets: list[bytes]


@contextmanager
def scripted_memcached(path: Path, script: Script) -> Iterator[ScriptedMemcached]:
    """Serve on a UNIX socket; a ``set`` is always stored, and forgotten."""
    with _Server(path, script) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield ScriptedMemcached(f"unix:{path}", server.gets)
        finally:
            server.closing.set()
            server.shutdown()


def value(key: bytes, data: bytes) -> bytes:
    """Return a well-formed reply with a value."""
    return b"VALUE %b 0 %d\r\n%b\r\nEND\r\n" % (key, len(data), data)
