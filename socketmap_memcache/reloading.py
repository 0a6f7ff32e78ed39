"""What a service does about its configuration at SIGHUP: reads it again, in a thread, and refuses one with errors."""

from __future__ import annotations

import signal
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Sequence
from types import FrameType
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, inlineCallbacks, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from socketmap_memcache.banner import banner
from socketmap_memcache.config.service import ServiceConfig
from socketmap_memcache.errors import CannotStart, ConfigurationError, Problem


class ReloadingService(Service, ABC):
    """A service with a configuration. A subclass loads it, listens where it says, and uses another one."""

    log: Logger
    _config: ServiceConfig

    def __init__(self, path: str, overrides: Sequence[str], reactor: Any) -> None:
        """Load nothing yet.

        :param path: the service's file.
        :param overrides: ``name=value`` items that replace what the file says.
        """
        self._path = path
        self._overrides = overrides
        self._reactor = reactor
        self._begun = False
        self._reloading = False
        self._reload_again = False
        self._former_handler: Any = None

    # The subclass' part.

    @abstractmethod
    def _load(self) -> ServiceConfig:
        """Read the configuration; called in a thread, too.

        :raises ConfigurationError: with everything that is wrong.
        """

    @abstractmethod
    def _listen(self) -> None:
        """Listen where the configuration says.

        :raises CannotListenError: naming the address.
        """

    @abstractmethod
    def _use(self, new: ServiceConfig) -> Deferred[None] | None:
        """Put another configuration into effect."""

    # Start.

    def privilegedStartService(self) -> None:
        """Listen, while the process still may: twistd gives up its privileges after this. From now on SIGHUP reloads.

        :raises CannotStart: naming the address.
        """
        super().privilegedStartService()
        self._begin()

    def startService(self) -> None:
        """Say what is served."""
        super().startService()
        self._begin()
        for line in self.banner():
            self.log.info("{line}", line=line)

    def banner(self) -> list[str]:
        """Describe what is served, and how to try it."""
        return banner(self._config)

    def _begin(self) -> None:
        if self._begun:
            return
        self._begun = True
        self._listen_parameters = self._config.listen_parameters()
        # First: whoever can connect may also send a signal, which would end a process that does not expect it.
        self._former_handler = signal.signal(signal.SIGHUP, self._hangup)
        try:
            self._listen()
        except CannotListenError as error:
            raise CannotStart(str(error)) from None

    def _warn(self, warnings: Iterable[Problem]) -> None:
        for warning in warnings:
            self.log.warn("{warning}", warning=warning)

    # Reload.

    def _hangup(self, signum: int, frame: FrameType | None) -> None:
        self._reactor.callFromThread(self.reload)

    @inlineCallbacks
    def reload(self) -> Generator[Deferred[Any], Any, None]:
        """Read the configuration again, in a thread, and use it; one with errors is refused, and the old one stays.

        Connections are kept, and look-ups under way are finished by the tables that they began with. One reload at a
        time: what is asked for during another is done after it, once.
        """
        if self._reloading:
            self._reload_again = True
            return
        self._reloading = True
        try:
            while True:
                self._reload_again = False
                yield self._reload_once()
                if not self._reload_again:
                    break
        finally:
            self._reloading = False

    @inlineCallbacks
    def _reload_once(self) -> Generator[Deferred[Any], Any, None]:
        try:
            new = yield deferToThreadPool(self._reactor, self._reactor.getThreadPool(), self._load)
        except ConfigurationError as error:
            for problem in error.problems:
                self.log.error("{problem}", problem=problem)
            self.log.error("reload refused: the configuration has errors; the one before goes on serving")
            return
        except Exception:  # noqa: BLE001 (whatever it is, it belongs in the log now)
            self.log.failure("reload failed in an unforeseen way; the configuration before goes on serving")
            return
        if not self.running:
            new.close()
            return
        for name in self._changed_for_good(new):
            self.log.warn("{name} has changed: that takes a restart", name=name)
        yield maybeDeferred(self._use, new)

    def _changed_for_good(self, new: ServiceConfig) -> list[str]:
        """Give the parameters that are not as they were at the start, and that only a restart puts into effect."""
        return [name for name, value in new.listen_parameters().items() if value != self._listen_parameters[name]]

    # Stop.

    def _end(self) -> None:
        """Let SIGHUP do what it did before; not before all is closed: it may end the process."""
        self._begun = False
        if self._former_handler is not None:
            signal.signal(signal.SIGHUP, self._former_handler)
            self._former_handler = None
