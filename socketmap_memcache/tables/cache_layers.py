"""What a ``memcache:`` table's ``.cf`` file puts in front of memcached: signatures, and a cache in the process."""

from __future__ import annotations

from collections.abc import Callable
from os.path import abspath

import attrs

from socketmap_memcache.clock import time_of_day
from socketmap_memcache.config.parameters import Parameters
from socketmap_memcache.errors import ConfigurationError
from socketmap_memcache.memcache.interface import ICache
from socketmap_memcache.memcache.memory import MONTH
from socketmap_memcache.memcache.pool import ClientPool

#: Puts something in front of a cache, or gives it back as it is; what comes of it holds that cache.
Layer = Callable[[ICache], ICache]


@attrs.frozen
class Layers:
    """What there is.

    :ivar sign: for each server.
    :ivar keep: for all servers of the table as one cache.
    """

    sign: Layer
    keep: Layer


def read_layers(parameters: Parameters, name: str, pool: ClientPool) -> Layers:
    """Read ``signing_key_file``, ``signing_name``, ``local_ttl`` (default: 0) and ``local_size_limit`` (16 MiB).

    :param name: the ``.cf`` file. Where ``signing_name`` is not set it is ``memcache:`` with the whole path of this
        file: the same on hosts that have the same files, and not the same for two tables of a host.
    """
    return Layers(_read_signing(parameters, name, pool), _read_local(parameters, pool))


def _read_signing(parameters: Parameters, name: str, pool: ClientPool) -> Layer:
    path = parameters.text("signing_key_file", "")
    signing_name = parameters.text("signing_name", "")
    if not path:
        if signing_name:
            parameters.warn("signing_name", "signing_name means nothing without signing_key_file")
        return _nothing
    from socketmap_memcache.memcache.signature import Signature
    from socketmap_memcache.memcache.signed import SignedCache
    from socketmap_memcache.memcache.signing_keys import read_signing_keys

    try:
        keys = read_signing_keys(path)
    except ConfigurationError as error:
        parameters.adopt("signing_key_file", error.problems)
        return _nothing
    # Not os.path.realpath: where the links of hosts differ, or of one host from day to day, names must not.
    table = (signing_name or f"memcache:{abspath(name)}").encode(errors="surrogateescape")  # noqa: PTH100
    signature = Signature(keys, table, time_of_day(pool.reactor))
    return lambda cache: SignedCache(cache, signature, f"memcache:{name}", pool)


def _read_local(parameters: Parameters, pool: ClientPool) -> Layer:
    ttl = int(parameters.time("local_ttl", 0))
    size_limit = parameters.integer("local_size_limit", 16 * 1024 * 1024, minimum=1)
    if ttl > MONTH:
        parameters.error("local_ttl", f"local_ttl = {ttl} s is more than 30 days")
    if not ttl:
        if parameters.line("local_size_limit"):
            parameters.warn("local_size_limit", "local_size_limit means nothing without local_ttl")
        return _nothing
    from socketmap_memcache.memcache.local import LocalCache

    return lambda cache: LocalCache(cache, ttl, size_limit, pool)


def _nothing(cache: ICache) -> ICache:
    return cache
