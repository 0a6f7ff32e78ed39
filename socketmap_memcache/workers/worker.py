"""The program of a worker: serves on sockets that its parent made, until the parent says so or is gone."""

from __future__ import annotations

import argparse
import gc
import os
import signal
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.error import ConnectionDone, ReactorNotRunning
from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger, globalLogBeginner
from twisted.python.failure import Failure
from zope.interface import implementer

from socketmap_memcache.busy_poll import BUSY_POLL
from socketmap_memcache.clock import use_steady_clock
from socketmap_memcache.config.service import ServiceConfig
from socketmap_memcache.errors import ConfigurationError
from socketmap_memcache.listeners.client_counts import ClientCounts
from socketmap_memcache.name_resolver import use_own_resolver
from socketmap_memcache.service import SocketmapMemcacheService
from socketmap_memcache.workers.log_relay import LinePipe, sending_observer
from socketmap_memcache.workers.process import EMPTY, FROM_PARENT, LOG, READY, RELOADED, RETIRE, RETURN, TO_PARENT


class WorkerService(SocketmapMemcacheService):
    """A service that tells its parent how it is."""

    def banner(self) -> list[str]:
        """Describe nothing: the parent has."""
        return []

    def _changed_for_good(self, new: ServiceConfig) -> list[str]:
        """Say nothing: the parent does."""
        return []

    @inlineCallbacks
    def reload(self) -> Generator[Deferred[Any], Any, None]:
        """Read the configuration again; see :class:`SocketmapMemcacheService`."""
        try:
            yield super().reload()
        finally:
            tell_parent(RELOADED)

    def told(self, message: bytes) -> None:
        """Do what the parent says."""
        if message == RETIRE:
            self._entrance.shut(lambda: tell_parent(EMPTY))
        elif message == RETURN:
            self._entrance.reopen()


@implementer(IReadDescriptor)
class ParentWatch:
    """Hears what the parent says; stops the reactor when it is gone: nobody would look after this process any more."""

    def __init__(self, reactor: Any, told: Callable[[bytes], object]) -> None:
        """:param told: gets each message."""
        self._reactor = reactor
        self._told = told
        self._held = b""

    def fileno(self) -> int:
        """Give the descriptor on which the parent writes."""
        return FROM_PARENT

    def logPrefix(self) -> str:
        """Give a name for the log."""
        return "parent"

    def doRead(self) -> Any:
        """Hear that there is something, or the end."""
        data = os.read(FROM_PARENT, 1000)
        if not data:
            return ConnectionDone()
        *messages, self._held = (self._held + data).split(b"\n")
        for message in messages:
            self._told(message)
        return None

    def connectionLost(self, reason: Failure) -> None:
        """Hear that the parent is gone, or that the reactor ends."""
        with suppress(ReactorNotRunning):
            self._reactor.stop()


def end_once() -> None:
    """Let SIGTERM count once, as the reactor does not: systemd may send it to all processes, and the parent does."""
    end: Any = signal.getsignal(signal.SIGTERM)

    def end_and_ignore(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        end(number, frame)

    signal.signal(signal.SIGTERM, end_and_ignore)


def tell_parent(message: bytes) -> None:
    """Tell the parent; it may be gone."""
    with suppress(OSError):
        os.write(TO_PARENT, message + b"\n")


def read_arguments(arguments: Sequence[str]) -> tuple[argparse.Namespace, dict[str, int]]:
    """Return what :class:`~socketmap_memcache.workers.process.WorkerProcess` has given, and descriptors by address."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True)
    parser.add_argument("--number", type=int, required=True)
    parser.add_argument("--counts", type=int, required=True)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--socket", action="append", default=[])
    parsed = parser.parse_args(arguments)
    sockets = {}
    for item in parsed.socket:
        descriptor, _, text = item.partition("=")
        sockets[text] = int(descriptor)
    return parsed, sockets


def main(arguments: Sequence[str]) -> int:
    """Run the worker; return its exit status."""
    parsed, sockets = read_arguments(arguments)
    # The terminal sends them to the parent, too, which then lets this process end in order, or reload when it can.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    globalLogBeginner.beginLoggingTo([sending_observer(LinePipe(LOG).write)])
    return _serve(parsed.config, parsed.set, sockets, ClientCounts(parsed.counts, parsed.number))


def _serve(path: str, overrides: Sequence[str], sockets: Mapping[str, int], counts: ClientCounts) -> int:
    from twisted.internet import reactor as installed

    reactor: Any = installed
    use_steady_clock(reactor)
    use_own_resolver(reactor)
    BUSY_POLL.use(reactor)
    try:
        service = WorkerService(path, overrides, reactor, sockets, counts)
    except ConfigurationError as error:
        for problem in error.problems:
            Logger().error("{problem}", problem=problem)
        return 1
    gc.collect()
    gc.freeze()  # see tap.py
    service.privilegedStartService()
    service.startService()
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    signal.signal(signal.SIGIO, signal.SIG_IGN)  # see __main__.py
    reactor.addReader(ParentWatch(reactor, service.told))
    reactor.callWhenRunning(end_once)
    reactor.callWhenRunning(tell_parent, READY)
    reactor.run()
    return 0
