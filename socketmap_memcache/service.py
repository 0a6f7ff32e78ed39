"""From a configuration to a running service: start, reload, drain, stop."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, inlineCallbacks, maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger

from socketmap_memcache import descriptors
from socketmap_memcache.busy_poll import BUSY_POLL
from socketmap_memcache.config.service import ServiceConfig, load
from socketmap_memcache.listeners.client_counts import ClientCounts
from socketmap_memcache.listeners.endpoints import ListenAddress
from socketmap_memcache.listeners.entrance import Entrance
from socketmap_memcache.listeners.pipelined import Pipelined
from socketmap_memcache.listeners.policy import PolicyFactory
from socketmap_memcache.listeners.socketmap import SocketmapFactory
from socketmap_memcache.listeners.stream import StreamFactory
from socketmap_memcache.listeners.tcp_table import TcpTableFactory
from socketmap_memcache.memcache.pool import ClientPool
from socketmap_memcache.reloading import ReloadingService
from socketmap_memcache.tables.registry import TableContext


class SocketmapMemcacheService(ReloadingService):
    """All that twistd starts and stops."""

    log = Logger()

    def __init__(
        self,
        path: str,
        overrides: Sequence[str],
        reactor: Any,
        sockets: Mapping[str, int] | None = None,
        counts: ClientCounts | None = None,
    ) -> None:
        """Load the configuration.

        :param path: the service's file.
        :param overrides: ``name=value`` items that replace what the file says.
        :param sockets: addresses, as they are written in the file, for which there is a descriptor that listens.
        :param counts: how many clients each of the workers has of which this is one.
        :raises ConfigurationError: with everything that is wrong.
        """
        super().__init__(path, overrides, reactor)
        self._sockets = sockets or {}
        self._pool = ClientPool(reactor)
        self._kept: dict[str, Any] = {}
        self._config = self._load()
        self._factory = SocketmapFactory(self._tables(), reactor, self._config.client_idle_timeout)
        self._policy_factory = PolicyFactory(self._config.policies, reactor, self._config.client_idle_timeout)
        self._tcp_table_factories: list[TcpTableFactory] = []
        self._entrance = Entrance(reactor, self._config.client_limit, counts)
        self._pipelined = Pipelined(self._config.request_limit)
        self._workers_at_start = self._config.workers
        self._ports: list[IListeningPort] = []

    def _load(self) -> ServiceConfig:
        self._pool.refresh()  # host names are looked up again
        context = TableContext(self._pool, kept=self._kept)
        config = load(self._path, self._overrides, context, self._reactor, self._sockets)
        self._warn(context.warnings)
        return config

    def _tables(self) -> dict[bytes, Any]:
        return {name.encode(): table for name, table in self._config.tables.items()}

    def _factories(self) -> list[StreamFactory]:
        return [self._factory, self._policy_factory, *self._tcp_table_factories]

    # Start.

    def _listen(self) -> None:
        BUSY_POLL.seconds = self._config.busy_poll
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

    # Reload.

    def _use(self, new: ServiceConfig) -> None:
        old, self._config = self._config, new
        self._factory.tables = tables = self._tables()
        for tcp_table_factory in self._tcp_table_factories:
            tcp_table_factory.tables = tables
        self._policy_factory.policies = new.policies
        for factory in self._factories():
            factory.idle_timeout = new.client_idle_timeout
        BUSY_POLL.seconds = new.busy_poll
        self._limit_clients()
        self._pipelined.limit = new.request_limit
        old.close()
        served = [*new.tables, *(f"policy {policy.name}" for policy in new.policies.policies)]
        self.log.info("reloaded {path}: serving {served}", path=self._path, served=", ".join(served))

    def _changed_for_good(self, new: ServiceConfig) -> list[str]:
        changed = super()._changed_for_good(new)
        return changed if new.workers == self._workers_at_start else [*changed, "workers"]

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
        self._end()


def _abort(factories: Iterable[StreamFactory]) -> None:
    for factory in factories:
        factory.abort()
