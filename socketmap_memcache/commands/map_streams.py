"""Standard input and output of ``socketmap-memcache map``, which may block, in threads."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure

from socketmap_memcache.commands.map_console import FatalError

STDIN, STDOUT = 0, 1

#: Bytes that are read at once.
BLOCK_SIZE = 64 * 1024

#: Bytes of a line, at most.
LINE_LIMIT = 1024 * 1024


class Source:
    """Blocks of bytes out of a file, a pipe or a terminal."""

    def __init__(self, descriptor: int, reactor: Any) -> None:
        """:param reactor: whose threads wait for the input."""
        self._descriptor = descriptor
        self._reactor = reactor
        self._stopped = False
        self._waiting: Deferred[bytes] | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether there is no more yet of what :meth:`read` was asked for."""
        return self._waiting is not None

    def read(self) -> Deferred[bytes]:
        """Read the next block.

        :return: fires with some bytes, or with none at the end; fails with :class:`OSError`.
        """
        block: Deferred[bytes] = Deferred()
        if self._stopped:
            block.callback(b"")
            return block
        self._waiting = block
        pool = self._reactor.getThreadPool()
        reading = deferToThreadPool(self._reactor, pool, os.read, self._descriptor, BLOCK_SIZE)
        reading.addBoth(self._hand_over)
        return block

    def stop(self) -> None:
        """End here, as if there was no more."""
        self._stopped = True
        self._hand_over(b"")

    def _hand_over(self, block: bytes | Failure) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return  # stopped meanwhile
        if isinstance(block, Failure):
            waiting.errback(block)
        else:
            waiting.callback(block)


class Sink:
    """A file descriptor to write to."""

    def __init__(self, descriptor: int, reactor: Any) -> None:
        """:param reactor: whose threads wait for the output to be taken."""
        self._descriptor = descriptor
        self._reactor = reactor

    def write(self, data: bytes) -> Deferred[None]:
        """Write all of it; fails with :class:`OSError`. One write at a time."""
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), self._write, data)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]


class Lines:
    """Splits blocks into lines. A last line need not have an end."""

    def __init__(self, source: Source) -> None:
        """:param source: is read by this from now on."""
        self._source = source
        self._rest = b""
        self.ended = False

    @inlineCallbacks
    def next(self) -> Generator[Deferred[bytes], bytes, list[bytes]]:
        """Fire with the lines of the next block, without their ends; there may be none before the end.

        :raises FatalError: a line is too long.
        """
        block = yield self._source.read()
        if not block:
            self.ended = True
            return [self._rest] if self._rest else []
        lines = block.split(b"\n")
        lines[0] = self._rest + lines[0]
        self._rest = lines.pop()
        if len(self._rest) > LINE_LIMIT:
            raise FatalError(f"standard input has a line of more than {LINE_LIMIT} bytes")
        return lines


def keys_of(lines: list[bytes]) -> list[bytes]:
    """Return what Postfix takes for the key on each line: what comes before a NUL."""
    return [line.partition(b"\0")[0] for line in lines] if b"\0" in b"".join(lines) else lines


def parts(items: list[Any], size: int) -> Iterator[list[Any]]:
    """Split a list into lists of some size."""
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]
