"""How the ``.cf`` file of a ``memcache:`` table spares the backup: leases, stale values, and marks of missing keys."""

from __future__ import annotations

from socketmap_memcache.config.parameters import Parameters
from socketmap_memcache.memcache.memory import MONTH
from socketmap_memcache.tables.memcache_settings import LeaseSettings

#: Seconds that look-ups may wait for another host, at most. Postfix gives up on a socketmap after 100.
_LONGEST_WAIT = 60


def read_leases(parameters: Parameters) -> LeaseSettings:
    """Read ``lease`` (default: no), ``lease_timeout`` (3s), ``stale_ttl`` (0) and ``negative_ttl`` (0).

    :return: what can have an effect; for the rest there is a warning.
    """
    lease = parameters.boolean("lease", False)
    lease_timeout = _seconds(parameters, "lease_timeout", 3, minimum=1, maximum=_LONGEST_WAIT)
    stale_ttl = _seconds(parameters, "stale_ttl", 0)
    negative_ttl = _seconds(parameters, "negative_ttl", 0)
    if not parameters.text("backup", ""):
        for name, is_set in (("lease", lease), ("negative_ttl", negative_ttl), ("stale_ttl", stale_ttl)):
            if is_set:
                parameters.warn(name, f"{name} has no effect without a backup")
        return LeaseSettings()
    if lease and parameters.text("memcache", "") == "memory:":
        parameters.warn("lease", "lease has no effect with memory:, which no other process shares")
        lease = False
    if stale_ttl and not lease:
        parameters.warn("stale_ttl", "stale_ttl has no effect without lease = yes")
        stale_ttl = 0
    if parameters.line("lease_timeout") and not lease:
        parameters.warn("lease_timeout", "lease_timeout has no effect without lease = yes")
    return LeaseSettings(lease, lease_timeout, stale_ttl, negative_ttl)


def _seconds(parameters: Parameters, name: str, default: int, minimum: int = 0, maximum: int = MONTH) -> int:
    seconds = int(parameters.time(name, default))
    if minimum <= seconds <= maximum:
        return seconds
    parameters.error(name, f"invalid {name} parameter value {seconds}s (from {minimum}s to {maximum}s is possible)")
    return default
