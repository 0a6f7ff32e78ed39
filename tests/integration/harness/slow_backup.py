"""A backup that is dear: a socketmap server that takes its time, counts, and knows who asks."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .threaded import ThreadedServer


class SlowBackup(ThreadedServer):
    """What is served by :func:`slow_backup`.

    :ivar table: what a ``.cf`` file has as its backup.
    :ivar value: the answer to each look-up; ``None`` for "missing".
    :ivar askers: the process that asked, for each look-up.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        super().__init__(path)
        self.table = f"socketmap:unix:{path}:slow"
        self.value: bytes | None = b"kept"
        self.askers: list[int] = []
        self._seconds = seconds

    def _serve(self, client: socket.socket, number: int) -> None:
        credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        asker = struct.unpack("3i", credentials)[0]
        with client.makefile("rb") as requests:
            while length := requests.read(1):
                while (character := requests.read(1)) != b":":
                    length += character
                requests.read(int(length) + 1)
                self.askers.append(asker)
                value = self.value  # as it is now
                self._closing.wait(self._seconds)
                reply = b"NOTFOUND " if value is None else b"OK " + value
                client.sendall(b"%d:%b," % (len(reply), reply))


@contextmanager
def slow_backup(path: Path, seconds: float = 0.3) -> Iterator[SlowBackup]:
    """Serve on a UNIX socket; each look-up takes ``seconds``."""
    backup = SlowBackup(path, seconds)
    backup.start()
    try:
        yield backup
    finally:
        backup.close()
