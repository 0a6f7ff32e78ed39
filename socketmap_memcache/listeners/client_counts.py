"""How many clients each worker has, so that a new one goes to a worker that has few."""

from __future__ import annotations

import os
from mmap import mmap
from tempfile import TemporaryFile

#: The greatest number of a worker.
LAST_NUMBER = 511

_SIZE = (LAST_NUMBER + 1) * 4
# More clients than any worker has: where there is no worker, or one that accepts nobody.
_NOBODY = 2**32 - 1


class ClientCounts:
    """A number for each worker, in memory that all of them share.

    The kernel tells all workers when a client connects. The first to come is the one that is awake already, because it
    has the most to do; without this it would get that client, too, and in the end all of them.
    """

    def __init__(self, descriptor: int, number: int = 0) -> None:
        """Share the memory with the others.

        :param descriptor: as :meth:`make` has given it; it stays the caller's to close.
        :param number: that of this worker, 1 to ``LAST_NUMBER``; 0 for the parent, which accepts nobody.
        """
        self._counts = memoryview(mmap(descriptor, _SIZE)).cast("I")
        self._number = number

    @staticmethod
    def make() -> int:
        """Return the descriptor of memory where no worker is yet."""
        if hasattr(os, "memfd_create"):  # else (BSD) there has to be a directory for it
            descriptor = os.memfd_create("client counts")
        else:
            with TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        os.write(descriptor, b"\xff" * _SIZE)  # nobody, in all places
        return descriptor

    def tell(self, clients: int) -> None:
        """Let the others know how many clients this worker has."""
        self._counts[self._number] = clients

    def forget(self, number: int) -> None:
        """Let nobody wait for a worker: it accepts no clients any more."""
        self._counts[number] = _NOBODY

    def leave(self) -> None:
        """Let nobody wait for this worker."""
        self.forget(self._number)

    def others_have_fewer(self, clients: int) -> bool:
        """Say whether a worker has less than about seven eighths of the ``clients`` that this one has."""
        return clients - clients // 8 > min(self._counts.tolist())
