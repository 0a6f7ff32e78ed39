"""One worker, seen from its parent."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IProcessTransport
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import LogEvent
from twisted.python.failure import Failure

import socketmap_memcache
from socketmap_memcache.workers.log_relay import LogReader

#: The descriptors of a worker: what it hears of its parent, also the end, its log, what Python says that cannot log,
#: what it tells its parent, and how many clients each worker has.
FROM_PARENT, LOG, ERRORS, TO_PARENT, COUNTS = 0, 1, 2, 3, 4

#: The first descriptor of those on which a worker is to listen.
FIRST_SOCKET = 5

#: What a worker is told: to accept nobody any more, or somebody again.
RETIRE, RETURN = b"retire", b"return"

#: What a worker tells: that it serves, has read its configuration again, or is retired and has no client any more.
READY, RELOADED, EMPTY = b"ready", b"reloaded", b"empty"


class WorkerProcess(ProcessProtocol):
    """A worker's process.

    :ivar number: its place among the workers, from 1.
    :ivar started: when it was started, in reactor seconds.
    :ivar ready: whether it has said that it serves.
    :ivar retired: whether it accepts nobody any more, but serves those it has.
    :ivar stopping: whether it was told to end.
    """

    transport: IProcessTransport

    def __init__(
        self,
        number: int,
        started: float,
        publish: Callable[[LogEvent], object],
        on_ready: Callable[[], object],
        on_empty: Callable[[WorkerProcess], object],
        on_end: Callable[[WorkerProcess, str], object],
    ) -> None:
        """Make one that does not run yet.

        :param publish: gets the events that it logs.
        :param on_ready: called when it serves.
        :param on_empty: called when it has no client any more, and does not accept any.
        :param on_end: called when the process has ended, with how that was.
        """
        self.number = number
        self.started = started
        self.ready = False
        self.retired = False
        self.stopping = False
        self._log_readers = {LOG: LogReader(publish), ERRORS: LogReader(publish)}
        self._on_ready = on_ready
        self._on_empty = on_empty
        self._on_end = on_end
        self._told = b""
        self._reload: Deferred[None] | None = None

    def spawn(self, reactor: Any, path: str, overrides: Sequence[str], counts: int, sockets: Mapping[str, int]) -> None:
        """Start the process.

        :param path: the service's file.
        :param overrides: the items of ``--set``.
        :param counts: the descriptor of :class:`~socketmap_memcache.listeners.client_counts.ClientCounts`.
        :param sockets: addresses, as they are written in the file, and the descriptors that listen there.
        :raises OSError: the system does not start it.
        """
        argv = [
            sys.executable,
            "-m",
            "socketmap_memcache.workers",
            "--config",
            path,
            f"--number={self.number}",
            f"--counts={COUNTS}",
        ]
        argv += [f"--set={override}" for override in overrides]
        descriptors: dict[int, int | str] = {FROM_PARENT: "w", LOG: "r", ERRORS: "r", TO_PARENT: "r", COUNTS: counts}
        for place, (text, descriptor) in enumerate(sockets.items(), FIRST_SOCKET):
            argv.append(f"--socket={place}={text}")
            descriptors[place] = descriptor
        # The package need not be installed: twistd looks for it where it was started, too.
        package = str(Path(socketmap_memcache.__file__).parents[1])
        search = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(search)}
        reactor.spawnProcess(self, sys.executable, argv, environment, childFDs=descriptors)

    @property
    def accepts(self) -> bool:
        """Whether it accepts clients, or will when it is ready."""
        return not (self.retired or self.stopping)

    def reload(self) -> Deferred[None]:
        """Let it read the configuration again, as soon as it can take a signal; fires when it has, or has ended."""
        reloaded: Deferred[None] = Deferred()
        self._reload = reloaded
        if self.ready:
            self.signal(signal.SIGHUP)
        return reloaded

    def retire(self) -> None:
        """Let it accept nobody any more; it has to be ready."""
        self.retired = True
        self._tell(RETIRE)

    def take_back(self) -> None:
        """Let it accept clients again."""
        self.retired = False
        self._tell(RETURN)

    def stop(self) -> None:
        """Let it answer what is under way, and end."""
        self.stopping = True
        self.signal(signal.SIGTERM)

    def signal(self, number: int) -> None:
        """Send a signal, if the process still is there."""
        with suppress(ProcessExitedAlready):
            self.transport.signalProcess(number)

    def _tell(self, message: bytes) -> None:
        with suppress(KeyError):  # it has closed its end: it has just ended
            self.transport.writeToChild(FROM_PARENT, message + b"\n")

    # The process' side.

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """Take what it has written."""
        if childFD in self._log_readers:
            self._log_readers[childFD].feed(data)
            return
        *lines, self._told = (self._told + data).split(b"\n")
        for line in lines:
            if line == READY:
                self._readied()
            elif line == RELOADED:
                self._reloaded()
            elif line == EMPTY and self.retired:  # it may have been taken back meanwhile
                self._on_empty(self)

    def processEnded(self, reason: Failure) -> None:
        """Hear that it has ended, and that all that it wrote has been read."""
        for reader in self._log_readers.values():
            reader.end()
        self._reloaded()
        self._on_end(self, _how(reason))

    def _readied(self) -> None:
        self.ready = True
        self._on_ready()
        if self._reload is not None:
            self.signal(signal.SIGHUP)

    def _reloaded(self) -> None:
        reload, self._reload = self._reload, None
        if reload is not None:
            reload.callback(None)


def _how(reason: Failure) -> str:
    number = getattr(reason.value, "signal", None)
    if number:
        with suppress(ValueError):  # those for real time have no names
            return f"was killed by {signal.Signals(number).name}"
        return f"was killed by signal {number}"
    return f"ended with status {getattr(reason.value, 'exitCode', None)}"
