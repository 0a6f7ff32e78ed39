"""From a configuration to a running service: start, reload, drain, stop."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterable, Mapping, Sequence
from types import FrameType
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, inlineCallbacks, maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from socketmap_memcache import descriptors
from socketmap_memcache.banner import banner
from socketmap_memcache.config.service import ServiceConfig, load
from socketmap_memcache.errors import ConfigurationError
from socketmap_memcache.listeners.endpoints import ListenAddress
from socketmap_memcache.listeners.entrance import Entrance
from socketmap_memcache.listeners.pipelined import Pipelined
from socketmap_memcache.listeners.policy import PolicyFactory
from socketmap_memcache.listeners.socketmap import SocketmapFactory
from socketmap_memcache.listeners.stream import StreamFactory
from socketmap_memcache.listeners.tcp_table import TcpTableFactory
from socketmap_memcache.memcache.pool import ClientPool
from socketmap_memcache.tables.registry import TableContext


class SocketmapMemcacheService(Service):
    """All that twistd starts and stops."""

    log = Logger()

    def __init__(
        self, path: str, overrides: Sequence[str], reactor: Any, sockets: Mapping[str, int] | None = None
    ) -> None:
        """Load the configuration.

        :param path: the service's file.
        :param overrides: ``name=value`` items that replace what the file says.
        :param sockets: addresses, as they are written in the file, for which there is a descriptor that listens.
        :raises ConfigurationError: with everything that is wrong.
        """
        self._path = path
        self._overrides = overrides
        self._reactor = reactor
        self._sockets = sockets or {}
        self._pool = ClientPool(reactor)
        self._kept: dict[str, Any] = {}
        self._config = self._load()
        self._factory = SocketmapFactory(self._tables(), reactor, self._config.client_idle_timeout)
        self._policy_factory = PolicyFactory(self._config.policies, reactor, self._config.client_idle_timeout)
        self._tcp_table_factories: list[TcpTableFactory] = []
        self._entrance = Entrance(reactor, self._config.client_limit)
        self._pipelined = Pipelined(self._config.request_limit)
        self._ports: list[IListeningPort] = []
        self._reloading = False
        self._reload_again = False
        self._former_handler: Any = None

    def _load(self) -> ServiceConfig:
        context = TableContext(self._pool, kept=self._kept)
        config = load(self._path, self._overrides, context, self._reactor, self._sockets)
        for warning in context.warnings:
            self.log.warn("{warning}", warning=warning)
        return config

    def _tables(self) -> dict[bytes, Any]:
        return {name.encode(): table for name, table in self._config.tables.items()}

    def _factories(self) -> list[StreamFactory]:
        return [self._factory, self._policy_factory, *self._tcp_table_factories]

    # Start.

    def privilegedStartService(self) -> None:
        """Listen, while the process still may: twistd gives up its privileges after this. From now on SIGHUP reloads.

        :raises CannotListenError: naming the address.
        """
        super().privilegedStartService()
        self._listen()

    def _listen(self) -> None:
        # First: whoever can connect may also send a signal, which would end a process that does not expect it.
        self._former_handler = signal.signal(signal.SIGHUP, self._hangup)
        self._limit_clients()
        for address in self._config.socketmap_listen:
            self._open(address, self._factory)
        self._tcp_table_factories.clear()
        for name, address in self._config.tcp_table_listen:
            tables, idle_timeout = self._factory.tables, self._config.client_idle_timeout
            factory = TcpTableFactory(name.encode(), tables, self._reactor, idle_timeout)
            self._tcp_table_factories.append(factory)
            self._open(address, factory)
        for address in self._config.policy_listen:
            self._open(address, self._policy_factory)

    def _open(self, address: ListenAddress, factory: StreamFactory) -> None:
        factory.entrance, factory.pipelined = self._entrance, self._pipelined
        self._ports.append(self._entrance.watch(address.listen(self._reactor, factory)))

    def _limit_clients(self) -> None:
        limit = descriptors.raise_limit()
        possible, wanted = descriptors.left_for_clients(limit), self._config.client_limit
        if possible < wanted:
            self.log.warn(
                "client_limit is {wanted}, but the process may have {limit} file descriptors only: {possible} clients "
                "can be served at a time (raise LimitNOFILE= in systemd, or ulimit -Hn)",
                wanted=wanted,
                limit=limit,
                possible=possible,
            )
        self._entrance.limit = min(possible, wanted)

    def startService(self) -> None:
        """Say what is served."""
        super().startService()
        if not self._ports:
            self._listen()
        for line in self.banner():
            self.log.info("{line}", line=line)

    def banner(self) -> list[str]:
        """Describe what is served, and how to try it."""
        return banner(self._config)

    # Reload.

    def _hangup(self, signum: int, frame: FrameType | None) -> None:
        self._reactor.callFromThread(self.reload)

    @inlineCallbacks
    def reload(self) -> Generator[Deferred[Any], Any, None]:
        """Read the configuration again, in a thread, and use it; one with errors is refused, and the old one stays.

        Connections are kept, and look-ups under way are finished by the tables that they began with.
        """
        if self._reloading:
            self._reload_again = True
            return
        self._reloading = True
        self._reload_again = False
        try:
            yield self._reload_once()
        finally:
            self._reloading = False
        if self._reload_again:
            yield self.reload()

    @inlineCallbacks
    def _reload_once(self) -> Generator[Deferred[Any], Any, None]:
        self._pool.refresh()  # host names are looked up again
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
        old, self._config = self._config, new
        self._factory.tables = tables = self._tables()
        for tcp_table_factory in self._tcp_table_factories:
            tcp_table_factory.tables = tables
        self._policy_factory.policies = new.policies
        for factory in self._factories():
            factory.idle_timeout = new.client_idle_timeout
        self._limit_clients()
        self._pipelined.limit = new.request_limit
        old.close()
        for name in self._changed_for_good(old, new):
            self.log.warn("{name} has changed: that takes a restart", name=name)
        served = [*new.tables, *(f"policy {policy.name}" for policy in new.policies.policies)]
        self.log.info("reloaded {path}: serving {served}", path=self._path, served=", ".join(served))

    def _changed_for_good(self, old: ServiceConfig, new: ServiceConfig) -> list[str]:
        """Give the parameters that have changed, and that only a restart puts into effect."""
        before = old.listen_parameters()
        changed = [name for name, value in new.listen_parameters().items() if value != before[name]]
        return changed if old.workers == new.workers else [*changed, "workers"]

    # Stop.

    @inlineCallbacks
    def stopService(self) -> Generator[Deferred[Any], Any, None]:
        """Answer what is in flight, for ``shutdown_timeout`` at most, then close everything."""
        super().stopService()
        self._entrance.close()
        ports, self._ports = self._ports, []
        yield DeferredList([maybeDeferred(port.stopListening) for port in ports])
        factories = self._factories()
        cut = self._reactor.callLater(self._config.shutdown_timeout, _abort, factories)
        yield DeferredList([factory.drain() for factory in factories])
        if cut.active():
            cut.cancel()
        self._config.close()
        if self._former_handler is not None:  # not before: it may end the process
            signal.signal(signal.SIGHUP, self._former_handler)
            self._former_handler = None


def _abort(factories: Iterable[StreamFactory]) -> None:
    for factory in factories:
        factory.abort()
