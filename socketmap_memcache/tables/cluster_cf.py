"""What a ``memcache:`` table's ``.cf`` file says of several servers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from socketmap_memcache.config.parameters import Parameters
from socketmap_memcache.memcache.interface import ICache
from socketmap_memcache.memcache.members import FailureRule
from socketmap_memcache.memcache.memory import MONTH
from socketmap_memcache.memcache.pool import ClientPool
from socketmap_memcache.memcache.security import Security
from socketmap_memcache.memcache.server_list import WeightedServer

_DEFAULT_FAILOVER_TTL = 60


def read_failure_rule(parameters: Parameters, servers: int | None) -> FailureRule:
    """Read ``memcache_failure`` (default: backup), ``failover_ttl`` (60 s) and ``replicas`` (1).

    :param servers: how many there are; ``None`` where they could not be read.
    """
    failure = parameters.text("memcache_failure", "backup")
    if failure not in {"backup", "next"}:
        parameters.error("memcache_failure", f"bad memcache_failure value {failure!r} (backup or next is needed)")
    stand_in = failure == "next"
    failover_ttl = int(parameters.time("failover_ttl", _DEFAULT_FAILOVER_TTL))
    if not 0 < failover_ttl <= MONTH:
        parameters.error("failover_ttl", f"failover_ttl = {failover_ttl} s is not between 1 s and 30 days")
    if parameters.line("failover_ttl") and not stand_in:
        parameters.warn("failover_ttl", "failover_ttl means nothing without memcache_failure = next")
    replicas = parameters.integer("replicas", 1, minimum=1)
    if servers is None:
        return FailureRule()
    if replicas > servers:
        parameters.error("replicas", f"replicas = {replicas} needs as many servers; memcache has {servers}")
    if stand_in and servers == 1:
        parameters.warn("memcache_failure", "memcache_failure = next means nothing with one server")
    elif stand_in and replicas == 1 and not parameters.text("backup", ""):
        parameters.warn(
            "memcache_failure",
            "without a backup, what is stored while a server is down is forgotten after failover_ttl; replicas = 2 "
            "keeps it",
        )
    return FailureRule(stand_in, failover_ttl, replicas)


def open_servers(
    servers: Sequence[WeightedServer],
    security: Security,
    rule: FailureRule,
    ttl: int,
    pool: ClientPool,
    sign: Callable[[ICache], ICache],
) -> ICache:
    """Open the cache that consists of these servers: a cluster, or, where there is one, its client.

    :param ttl: the ``ttl`` of the table.
    :param sign: put in front of each client.
    :raises ValueError: as :meth:`ClientPool.memcached`.
    """
    first, *others = [sign(pool.memcached(each.server, security)) for each in servers]
    if not others:
        return first
    from socketmap_memcache.memcache.cluster import Cluster
    from socketmap_memcache.memcache.ring import Ring

    members: list[Any] = [first, *others]
    return Cluster(members, Ring([(each.label, each.weight) for each in servers]), rule, ttl, pool)
