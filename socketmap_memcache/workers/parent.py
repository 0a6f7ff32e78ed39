"""The parent of several workers: holds the sockets on which they listen, and looks after the processes.

All workers accept from the same sockets, so that one that ends, or is replaced, leaves no connection behind in a queue
of its own.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Generator, Sequence
from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger, globalLogPublisher

from socketmap_memcache.config.service import ServiceConfig, load
from socketmap_memcache.listeners.client_counts import ClientCounts
from socketmap_memcache.listeners.endpoints import BoundAddress
from socketmap_memcache.memcache.pool import ClientPool
from socketmap_memcache.reloading import ReloadingService
from socketmap_memcache.tables.registry import TableContext
from socketmap_memcache.workers.process import WorkerProcess
from socketmap_memcache.workers.refuser import Refuser

#: Seconds before a worker that has ended is replaced; they double, up to the last, while workers end soon.
FIRST_PAUSE = 0.1
LAST_PAUSE = 30.0

#: Seconds of such a pause for which clients may wait; where no worker comes sooner, they are refused until one serves.
CLIENTS_PATIENCE = 1.0

#: Seconds of life after which a worker's end is not taken for a fault that the next one will have too.
SOON = 10.0

#: Seconds more than ``shutdown_timeout`` that a worker gets to end.
GRACE = 5.0

#: Seconds that a worker gets to read its configuration again.
RELOAD_TIMEOUT = 60.0


class WorkersService(ReloadingService):
    """All that twistd starts and stops, where there are workers."""

    log = Logger()

    def __init__(self, path: str, overrides: Sequence[str], reactor: Any) -> None:
        """Check the configuration.

        :param path: the service's file.
        :param overrides: ``name=value`` items that replace what the file says.
        :raises ConfigurationError: with everything that is wrong.
        """
        super().__init__(path, overrides, reactor)
        self._config = self._load()
        self._config.close()
        self._addresses = self._config.listening()
        self._sockets: dict[str, socket.socket] = {}
        self._workers: dict[int, WorkerProcess] = {}
        self._restarts: dict[int, IDelayedCall] = {}
        self._pauses: dict[int, float] = {}
        self._kills: dict[int, IDelayedCall] = {}
        self._refuser = Refuser(reactor)
        self._counts_descriptor = ClientCounts.make()
        self._counts = ClientCounts(self._counts_descriptor)
        self._ended: Deferred[None] | None = None

    def _load(self) -> ServiceConfig:
        """Read the configuration as the workers will; to be closed again.

        It makes no files: the workers could not open what the parent makes before it gives up its privileges.
        """
        context = TableContext(ClientPool(self._reactor), creates=False)
        config = load(self._path, self._overrides, context, self._reactor)
        self._warn(context.warnings)
        return config

    # Start.

    def _listen(self) -> None:
        for address in self._addresses:
            assert isinstance(address, BoundAddress)  # load has seen to it
            self._sockets[address.text] = address.bind()

    def startService(self) -> None:
        """Say what is served, and start the workers as soon as the reactor runs."""
        super().startService()
        # Not before: without the reactor's handlers a signal would end this process, and leave them behind.
        self._reactor.callWhenRunning(self._start_missing)

    def _start_missing(self) -> None:
        if not self.running:
            return
        for number in range(1, self._config.workers + 1):
            if number not in self._workers and number not in self._restarts:
                self._start(number)

    def _start(self, number: int) -> None:
        self._restarts.pop(number, None)
        worker = WorkerProcess(
            number,
            self._reactor.seconds(),
            globalLogPublisher,
            self._worker_ready,
            self._worker_empty,
            self._worker_ended,
        )
        self._workers[number] = worker
        sockets = {text: listening.fileno() for text, listening in self._sockets.items()}
        # Other addresses take a restart: a worker that is started later listens where the others do.
        overrides = [*self._overrides, *(f"{name}={value}" for name, value in self._listen_parameters.items())]
        try:
            worker.spawn(self._reactor, self._path, overrides, self._counts_descriptor, sockets)
        except OSError as error:
            self._worker_ended(worker, f"cannot be started: {error}")

    def _worker_ready(self) -> None:
        self._refuser.end()
        self._settle()
        count = self._serving()
        if count == self._config.workers:
            self.log.info("{count} workers serve", count=count)

    def _worker_empty(self, worker: WorkerProcess) -> None:
        if not worker.stopping:
            self.log.info("worker {number} has no client any more; it ends", number=worker.number)
            self._stop(worker)

    def _worker_ended(self, worker: WorkerProcess, how: str) -> None:
        del self._workers[worker.number]
        self._counts.forget(worker.number)
        if worker.stopping:
            late = self._kills.pop(worker.number)
            if late.active():
                late.cancel()
            self._start_missing()
            if not self._workers and self._ended is not None:
                self._ended.callback(None)
            return
        if worker.number > self._config.workers:
            self.log.error("worker {number}, one too many, {how}", number=worker.number, how=how)
        else:
            self._replace(worker, how)
        self._refuse_if_needed()

    def _replace(self, worker: WorkerProcess, how: str) -> None:
        lived = self._reactor.seconds() - worker.started
        pause = self._pauses.get(worker.number, FIRST_PAUSE) if 0 <= lived < SOON else FIRST_PAUSE
        self._pauses[worker.number] = min(pause * 2, LAST_PAUSE)
        self.log.error("worker {number} {how}; replaced in {pause:g} s", number=worker.number, how=how, pause=pause)
        self._restarts[worker.number] = self._reactor.callLater(pause, self._start, worker.number)

    def _refuse_if_needed(self) -> None:
        """Refuse clients where nobody accepts any, and nobody will soon."""
        patience = self._reactor.seconds() + CLIENTS_PATIENCE
        soon = any(restart.getTime() <= patience for restart in self._restarts.values())
        if soon or any(worker.accepts for worker in self._workers.values()):
            return
        if self._refuser.begin(self._sockets.values()):
            self.log.error("no worker can be started; clients are refused until one serves")

    # Reload.

    @inlineCallbacks
    def _use(self, new: ServiceConfig) -> Generator[Deferred[Any], Any, None]:
        """Let the workers use it, one after the other."""
        new.close()
        for number in sorted(self._workers):
            worker = self._workers.get(number)
            if worker is not None and not worker.stopping:
                yield self._reload_worker(worker)
        if not self.running:
            return
        self._config = new
        self._settle()
        # Those that are missing are started at once: what ended them may be mended now.
        self._cancel_restarts()
        self._pauses.clear()
        self._start_missing()
        self.log.info("reloaded {path} in {count} workers", path=self._path, count=new.workers)

    def _serving(self) -> int:
        """Count those that serve, without any that is one too many."""
        wanted = [worker for worker in self._workers.values() if worker.number <= self._config.workers]
        return sum(worker.ready and not worker.stopping for worker in wanted)

    def _settle(self) -> None:
        """Let those that are too many accept nobody, and end when their clients have left; and others accept again.

        Where none of those that are wanted serves yet, or can be started, the others go on.
        """
        for worker in self._workers.values():
            too_many = worker.number > self._config.workers
            if worker.stopping or too_many == worker.retired:
                continue
            if not too_many:
                self.log.info("worker {number} accepts clients again", number=worker.number)
                worker.take_back()
                self._refuser.end()
            elif worker.ready and self._serving():
                text = (
                    "worker {number} is one too many; it accepts no clients any more, and ends when the last has left"
                )
                self.log.info(text, number=worker.number)
                worker.retire()

    @inlineCallbacks
    def _reload_worker(self, worker: WorkerProcess) -> Generator[Deferred[Any], Any, None]:
        late = self._reactor.callLater(RELOAD_TIMEOUT, self._too_late, worker)
        yield worker.reload()
        if late.active():
            late.cancel()

    def _too_late(self, worker: WorkerProcess) -> None:
        text = "worker {number} has not read its configuration within {limit:g} s; it is killed"
        self.log.error(text, number=worker.number, limit=RELOAD_TIMEOUT)
        worker.signal(signal.SIGKILL)

    # Stop.

    @inlineCallbacks
    def stopService(self) -> Generator[Deferred[Any], Any, None]:
        """Let the workers answer what is in flight, for ``shutdown_timeout`` at most, then close everything."""
        super().stopService()
        self._cancel_restarts()
        self._refuser.end()
        for worker in self._workers.values():
            self._stop(worker)
        # Who connects now is refused, as by the workers, and another parent may listen.
        for address in self._addresses:
            if isinstance(address, BoundAddress) and address.text in self._sockets:
                address.unbind(self._sockets.pop(address.text))
        yield self._all_ended()
        self._end()

    def _cancel_restarts(self) -> None:
        for restart in self._restarts.values():
            restart.cancel()
        self._restarts.clear()

    def _stop(self, worker: WorkerProcess) -> None:
        if not worker.stopping:
            patience = self._config.shutdown_timeout + GRACE
            self._kills[worker.number] = self._reactor.callLater(patience, self._kill, worker)
            worker.stop()

    def _all_ended(self) -> Deferred[None]:
        if not self._workers:
            return succeed(None)
        self._ended = Deferred()
        return self._ended

    def _kill(self, worker: WorkerProcess) -> None:
        self.log.error("worker {number} does not end; it is killed", number=worker.number)
        worker.signal(signal.SIGKILL)
