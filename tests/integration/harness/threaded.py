"""A server in threads of the test's own process."""

from __future__ import annotations

import itertools
import socket
import threading
from contextlib import suppress
from pathlib import Path


class ThreadedServer:
    """Listens on a UNIX socket, and has a thread for each connection."""

    def __init__(self, path: Path) -> None:
        """Listen; :meth:`start` lets connections be served."""
        self._closing = threading.Event()
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen(128)
        self._clients: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]

    def start(self) -> None:
        """Begin to serve."""
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
            for number in itertools.count(1):
                client, _ = self._listening.accept()
                self._clients.append(client)
                self._threads.append(threading.Thread(target=self._run, args=(client, number)))
                self._threads[-1].start()

    def _run(self, client: socket.socket, number: int) -> None:
        with suppress(OSError), client:
            self._serve(client, number)

    def _serve(self, client: socket.socket, number: int) -> None:
        """Serve one connection to its end.

        :param number: counted from 1.
        """
        raise NotImplementedError
