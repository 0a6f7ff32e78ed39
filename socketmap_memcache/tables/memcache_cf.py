"""The ``.cf`` files of ``memcache:`` tables, memcache_table(5)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from socketmap_memcache.config.parameters import Parameters
from socketmap_memcache.errors import ConfigurationError
from socketmap_memcache.memcache.client import PATIENCE
from socketmap_memcache.memcache.interface import ICache, Limits
from socketmap_memcache.memcache.pool import ClientPool
from socketmap_memcache.memcache.server_list import parse_server_list
from socketmap_memcache.tables.cache_layers import Layer, read_layers
from socketmap_memcache.tables.cluster_cf import open_servers, read_failure_rule
from socketmap_memcache.tables.interface import ITable
from socketmap_memcache.tables.key_format import KeyFormat
from socketmap_memcache.tables.lease_cf import read_leases
from socketmap_memcache.tables.memcache import MemcacheTable
from socketmap_memcache.tables.memcache_settings import Settings
from socketmap_memcache.tables.options import (
    finish,
    open_with_options,
    read_cf,
    read_match_list,
    read_partial_keys,
    with_partial_keys,
)
from socketmap_memcache.tables.registry import TableContext
from socketmap_memcache.tables.security_cf import read_security


def open_memcache(name: str, context: TableContext, create: bool = False) -> ITable:
    """Open the table that a ``.cf`` file describes.

    Beside the parameters of memcache_table(5) the file may have ``fold_keys`` (default: yes), those of
    :func:`read_partial_keys`, and with ``memcache = memory:`` there is ``memory_size_limit`` (default: 64 MiB).

    :param name: the file; as with Postfix, its name begins with ``/`` or ``.``.
    :param create: whether to make the file of the backup if it does not exist, where its type can.
    :raises ConfigurationError: for whatever Postfix would stop with or that can never work.
    """
    parameters = read_cf("memcache", name)
    settings = _settings(parameters, context)
    open_cache = _cache(parameters, settings.ttl, context.clients)
    layers = read_layers(parameters, name, context.clients)
    backup = _backup(parameters, context, create)
    partial_keys = read_partial_keys(parameters, context)
    parameters.unknown(fatal=False)
    finish(parameters, context, settings.domain, backup, partial_keys)
    table = MemcacheTable(f"memcache:{name}", settings, layers.keep(open_cache(layers.sign)), backup, context.clients)
    if parameters.text("memcache", "") == "memory:":
        context.apart.append(table.name)
    return with_partial_keys(table, partial_keys)


def _settings(parameters: Parameters, context: TableContext) -> Settings:
    timeout = parameters.integer("timeout", 2, minimum=0)
    flags = parameters.integer("flags", 0)
    if flags < 0:
        parameters.warn("flags", f"flags = {flags}: memcached refuses flags below 0, and takes the value for a command")
    backed = bool(parameters.text("backup", ""))
    return Settings(
        flags=flags,
        ttl=parameters.integer("ttl", 3600),
        key_format=_key_format(parameters),
        key_digest=_key_digest(parameters),
        domain=read_match_list(parameters, "domain", context),
        fold_keys=parameters.boolean("fold_keys", True) and context.fold_keys,
        limits=Limits(
            # 0 means "no limit"; but Postfix itself gives up on a socketmap after 100 seconds.
            timeout=timeout or PATIENCE,
            max_try=parameters.integer("max_try", 2, minimum=1),
            retry_pause=parameters.integer("retry_pause", 1, minimum=1),
            line_size_limit=parameters.integer("line_size_limit", 1024, minimum=1),
            data_size_limit=parameters.integer("data_size_limit", 10240, minimum=1),
            backed=backed,
            fenced=not backed,
        ),
        leases=read_leases(parameters),
    )


def _key_format(parameters: Parameters) -> KeyFormat:
    try:
        key_format = KeyFormat.parse(parameters.text("key_format", "%s"))
    except ValueError as error:
        parameters.error("key_format", str(error))
        return KeyFormat.parse("%s")
    if not key_format.template:
        parameters.warn("key_format", "an empty key_format disables all look-ups")
    elif any(byte in b" \t\r\n\v\f" for byte in key_format.template) and not parameters.text("key_digest", ""):
        parameters.warn("key_format", "a key_format with white space disables all look-ups")
    return key_format


def _key_digest(parameters: Parameters) -> str:
    name = parameters.text("key_digest", "").lower()
    try:
        if not name or hashlib.new(name, usedforsecurity=False).hexdigest():  # that of "null" is empty, and so no key
            return name
    except (ValueError, TypeError):  # TypeError: a digest without a length of its own
        pass
    parameters.error("key_digest", f"key digest {name} is not available (sha256 is, for example)")
    return ""


def _cache(parameters: Parameters, ttl: int, pool: ClientPool) -> Callable[[Layer], ICache]:
    """Give a function that opens the cache, to be called when the rest of the file has turned out to be good.

    It takes what is to be put in front of each server.
    """
    spec = parameters.text("memcache", "inet:localhost:11211")
    size_limit = parameters.integer("memory_size_limit", 64 * 1024 * 1024, minimum=1)
    if spec == "memory:":
        read_security(parameters, ())
        read_failure_rule(parameters, servers=1)
        return lambda sign: sign(pool.memory(spec, size_limit))
    try:
        servers = parse_server_list(spec)
    except ValueError as error:
        parameters.error("memcache", str(error))
        read_security(parameters, None)
        read_failure_rule(parameters, None)
        return lambda sign: sign(pool.memory(spec, size_limit))
    security = read_security(parameters, [each.server for each in servers])
    rule = read_failure_rule(parameters, len(servers))
    return lambda sign: open_servers(servers, security, rule, ttl, pool, sign)


def _backup(parameters: Parameters, context: TableContext, create: bool) -> ITable | None:
    spec = parameters.text("backup", "")
    if not spec:
        return None
    try:
        return open_with_options(spec, context, create)
    except ConfigurationError as error:
        parameters.adopt("backup", error.problems)
        return None
