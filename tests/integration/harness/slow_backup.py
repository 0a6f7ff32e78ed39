"""A backup that is dear: a socketmap server that takes its time, counts, and knows who asks."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class SlowBackup:
    """What is served by :func:`slow_backup`.

    :ivar table: what a ``.cf`` file has as its backup.
    :ivar value: the answer to each look-up; ``None`` for "missing".
    :ivar askers: the process that asked, for each look-up.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        self.table = f"socketmap:unix:{path}:slow"
        self.value: bytes | None = b"kept"
        self.askers: list[int] = []
        self._seconds = seconds
        self._closing = threading.Event()
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen(128)
        self._clients: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        """End all threads."""
        self._closing.set()
        for each in (self._listening, *self._clients):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)  # a thread that waits for it wakes up
        for thread in self._threads:
            thread.join()
        self._listening.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                self._clients.append(client)
                self._threads.append(threading.Thread(target=self._serve, args=(client,)))
                self._threads[-1].start()

    def _serve(self, client: socket.socket) -> None:
        credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        asker = struct.unpack("3i", credentials)[0]
        with suppress(OSError), client, client.makefile("rb") as requests:
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
    try:
        yield backup
    finally:
        backup.close()
