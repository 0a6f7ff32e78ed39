"""Servers that speak memcached's protocol, each well or badly in its own way."""

from __future__ import annotations

import socketserver
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Answer = Callable[[bytes], bytes]


def echo(key: bytes) -> bytes:
    """Have two keys of three, with a value that shows the key: two clients agree only if they asked for the same."""
    if len(key) > 250:
        return b"CLIENT_ERROR line format\r\n"
    value = b"value of " + key
    return b"END\r\n" if zlib.crc32(key) % 3 == 0 else b"VALUE %b 0 %d\r\n%b\r\nEND\r\n" % (key, len(value), value)


BROKEN: dict[str, Answer] = {
    "error": lambda _: b"ERROR\r\n",
    "full": lambda _: b"SERVER_ERROR out of memory\r\n",
    "garbage": lambda _: b"220 mail.example.com ESMTP\r\n",
    "nothing": lambda _: b"",  # and the connection is closed
    "half": lambda key: b"VALUE %b 0 20\r\nonly this" % key,
    "unended": lambda key: b"VALUE %b 0 5\r\nvalue\r\nBROKEN\r\n" % key,
    "unterminated": lambda key: b"VALUE %b 0 5\r\nvalue, and more\r\nEND\r\n" % key,
    "negative": lambda key: b"VALUE %b 0 -1\r\n\r\nEND\r\n" % key,
    "huge": lambda key: b"VALUE %b 0 99999999999999999999\r\n\r\nEND\r\n" % key,
    "bare": lambda key: b"VALUE %b 0 5\nvalue\r\nEND\n" % key,
    "cas": lambda key: b"VALUE %b 0 5 12345\r\nvalue\r\nEND\r\n" % key,
    "nul": lambda key: b"VALUE %b 0 7\r\nval\x00ues\r\nEND\r\n" % key,
    "latin1": lambda key: b"VALUE %b 0 4\r\nv\xe4l!\r\nEND\r\n" % key,
    "empty": lambda key: b"VALUE %b 0 0\r\n\r\nEND\r\n" % key,
    "lower": lambda _: b"end\r\n",
    "blank": lambda _: b"END \r\n",
}


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        while line := self.rfile.readline():
            words = line.split()
            if words[0] == b"set":
                self.rfile.read(int(words[4]) + 2)
                self.wfile.write(b"STORED\r\n")
                continue
            if words[0] == b"delete":  # only the service's client begins with one
                self.wfile.write(b"NOT_FOUND\r\n")
                continue
            answer = self.server.answer(line[4:-2])  # type: ignore[attr-defined]
            self.wfile.write(answer)
            if b"\r\nEND\r\n" not in answer and not answer.startswith((b"END", b"CLIENT_ERROR")):
                return  # what is badly said is also badly ended


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Be silent: a client that has had enough leaves."""


@contextmanager
def serve(path: Path, answer: Answer) -> Iterator[str]:
    """Serve on a UNIX socket; gives the address as a ``.cf`` file writes it."""
    with _Server(str(path), _Handler) as server:
        server.answer = answer  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield f"unix:{path}"
        finally:
            server.shutdown()
