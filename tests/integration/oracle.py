"""An installed Postfix, which says what the right answer is.

Its ``memcache:`` tables ask a memcached of these tests, which has nothing and remembers what it was asked.
"""

from __future__ import annotations

import itertools
import os
import socketserver
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import attrs

from socketmap_memcache.tables.registry import TableContext

from .harness.postfix import Postfix
from .harness.processes import find_program

if TYPE_CHECKING:
    from socketmap_memcache.memcache.pool import ClientPool


AT_ONCE = 16  # Postfix pauses for a second before it gives up: many cases only wait
ODD_KEYS = [
    *("", "@", "@@", "a", "A@", "@b", "@B.example", "a@b", "a@b@c.example", "@a@b", "a@@b", ".", "a@.", "a@..", "a."),
    *("u@dom.", "u@.dom", "u@a..b", "u@[1.2.3.4]", "u@[IPv6:::1]", "Loc+Ext@Sub.Example.COM", "a b@c.d", "a@b c.d"),
    *('"a b"@c.d', "a\\@b", "u@9.8.7.6.5.4.3.2.1", "u@a.b.c.d", "\u00dc@B\u00dccher.DE", "u@stra\u00dfe.de", " ", "%"),
    *("u@\u0130.tr", "u@\u03a3\u03c2.gr", "u@\ufb01.x", "k" * 240 + "@long.example", "%s@%d", "u@example.com,x", "#@#"),
]
ODD_BYTES = [key.encode() for key in ODD_KEYS] + [b"\xff", b"a@\xff.b", b"\xed\xa0\x80@a.b"]
T = TypeVar("T")


def at_once(run: Callable[[T], None], cases: Iterable[T]) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(run, cases))


def context() -> TableContext:
    return TableContext(clients=cast("ClientPool", None))


class RecordingMemcached(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True

    def __init__(self, path: str) -> None:
        super().__init__(path, RecordingHandler)
        self.requests: list[bytes] = []


class RecordingHandler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        server = cast("RecordingMemcached", self.server)
        for request in self.rfile:
            server.requests.append(request.rstrip(b"\r\n"))
            if request.startswith(b"set "):
                self.rfile.read(int(request.split()[4]) + 2)
                self.wfile.write(b"STORED\r\n")
            else:
                self.wfile.write(b"END\r\n")


@attrs.define
class Oracle:
    """An installed Postfix, and a folder for the files of all cases."""

    postfix: Postfix
    folder: Path
    _numbers: Iterator[int] = attrs.Factory(itertools.count)

    @property
    def reads_utf8(self) -> bool:
        """Whether tables made of text fold and check it when they read it. Since 3.11 they only know ASCII then."""
        major, minor = self.postfix.postconf("-d", "-h", "mail_version").split(".")[:2]
        return (int(major), int(minor.partition("-")[0])) < (3, 11)

    def write(self, content: str | bytes, name: str = "") -> str:
        """Write a file that is old enough for Postfix to read it once, and return its path."""
        path = self.folder / (name or f"file{next(self._numbers)}")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode(errors="surrogateescape"))
        os.utime(path, (1_000_000_000, 1_000_000_000))
        return str(path)

    def postmap(self, table: str, keys: Sequence[bytes]) -> tuple[dict[bytes, bytes], str]:
        """Return what a table has, and what postmap complains about; keys must not contain tabs or newlines."""
        assert len(keys) == len(set(keys))
        name = table.encode(errors="surrogateescape")
        done = self.postfix.postmap("-q", "-", name, stdin=b"".join(key + b"\n" for key in keys))
        found = [line.partition(b"\t") for line in done.stdout.split(b"\n") if line]
        return {key: value for key, _, value in found}, done.stderr.decode(errors="replace")

    def requests(self, cf: str, keys: list[bytes]) -> tuple[list[bytes], str]:
        """Return what a ``memcache:`` table asks its server, and what postmap complains about."""
        socket = str(self.folder / f"socket{next(self._numbers)}")
        path = self.write(f"{cf}\nmemcache = unix:{socket}\n")
        with RecordingMemcached(socket) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            _, complaints = self.postmap(f"memcache:{path}", keys)
            server.shutdown()
            thread.join()
        return server.requests, complaints

    def postconf(self, main_cf: bytes) -> str:
        """Return what postconf complains about; that includes all entries, because their names are not Postfix's."""
        folder = f"conf{next(self._numbers)}"
        self.write(b"", f"{folder}/master.cf")
        path = Path(self.write(main_cf, f"{folder}/main.cf"))
        argv = [find_program("postconf"), "-c", str(path.parent), "-n"]
        done = subprocess.run(argv, capture_output=True, check=False, timeout=60)
        return done.stderr.decode(errors="replace").replace(str(path), "main.cf")
