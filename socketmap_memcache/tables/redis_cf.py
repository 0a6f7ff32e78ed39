"""The ``.cf`` files of ``redis:`` tables."""

from __future__ import annotations

from socketmap_memcache.config.parameters import Parameters
from socketmap_memcache.memcache.security import read_secret
from socketmap_memcache.memcache.server import Server
from socketmap_memcache.tables.interface import ITable
from socketmap_memcache.tables.options import finish, read_cf, read_match_list, read_partial_keys, with_partial_keys
from socketmap_memcache.tables.redis import RedisTable
from socketmap_memcache.tables.redis_client import RedisClient
from socketmap_memcache.tables.redis_servers import Hosts, Login, Sentinels
from socketmap_memcache.tables.registry import TableContext
from socketmap_memcache.tables.security_cf import read_tls

DEFAULT_HOST = "inet:localhost:6379"
DEFAULT_PREFIX = "socketmap:"

#: Seconds between probes of servers that are down, at most.
RETRY_INTERVAL = 5


def open_redis(name: str, context: TableContext) -> ITable:
    """Open the table that a ``.cf`` file describes; docs/redis.rst has its parameters.

    Nothing connects before the table is used.

    :param name: the file; its name begins with ``/`` or ``.``.
    :raises ConfigurationError: an unknown parameter, or a value that can never work.
    """
    parameters = read_cf("redis", name)
    full_name = f"redis:{name}"
    servers = _servers(parameters, "hosts", DEFAULT_HOST)
    sentinels = _servers(parameters, "sentinels", "")
    master = parameters.text("sentinel_name", "")
    login = _login(parameters, "username", "password_file", parameters.integer("db", 0, minimum=0))
    of_sentinels = _login(parameters, "sentinel_username", "sentinel_password_file")
    security = read_tls(parameters, sentinels or servers, "sentinels" if sentinels else "hosts")
    timeout = parameters.time("timeout", context.timeout)
    retry_interval = parameters.time("retry_interval", RETRY_INTERVAL)
    prefix = parameters.text("prefix", DEFAULT_PREFIX).encode(errors="surrogateescape")
    ttl = int(parameters.time("ttl", 0)) or None
    fold_keys = parameters.boolean("fold_keys", True) and context.fold_keys
    domain = read_match_list(parameters, "domain", context)
    partial_keys = read_partial_keys(parameters, context)
    _check(parameters, sentinels, master, timeout, retry_interval)
    parameters.unknown(fatal=True)
    finish(parameters, context, domain, partial_keys)
    places: Hosts | Sentinels
    if sentinels:
        places = Sentinels(sentinels, master, login, of_sentinels, context.reactor, security)
    else:
        places = Hosts(servers, login, context.reactor, len(servers) > 1, security)
    masters_only = bool(sentinels) or len(servers) > 1
    client = RedisClient(full_name, places.connect, context.reactor, timeout, retry_interval, masters_only)
    table = RedisTable(full_name, client, context.reactor.seconds, prefix, ttl, domain, fold_keys)
    return with_partial_keys(table, partial_keys)


def _servers(parameters: Parameters, name: str, default: str) -> list[Server]:
    servers: list[Server] = []
    for word in parameters.words(name, default):
        try:
            server = Server.parse(word)
        except ValueError as error:
            parameters.error(name, str(error))
            continue
        if server in servers:
            parameters.error(name, f"{word!r} is there twice")
        else:
            servers.append(server)
    return servers


def _login(parameters: Parameters, username: str, password_file: str, db: int = 0) -> Login:
    user = parameters.text(username, "").encode(errors="surrogateescape")
    path = parameters.text(password_file, "")
    password = b""
    if path:
        try:
            password = read_secret(path)
        except ValueError as error:
            parameters.error(password_file, str(error))
        else:
            if not password:
                parameters.error(password_file, f"{path}: there is no password in its first line")
    elif user:
        parameters.error(username, f"{username} needs {password_file}")
    return Login(user, password, db)


def _check(parameters: Parameters, sentinels: list[Server], master: str, timeout: float, retry_interval: float) -> None:
    """Note what cannot go together."""
    for name, seconds in (("timeout", timeout), ("retry_interval", retry_interval)):
        if not seconds:
            parameters.error(name, f"{name} = 0: at least a second is needed")
    if sentinels and not master:
        parameters.error("sentinels", "sentinels need sentinel_name, the name of the master in their configuration")
    if sentinels and parameters.line("hosts"):
        parameters.error("hosts", "hosts and sentinels: the sentinels know the hosts; only one of the two is possible")
    if not sentinels:
        for name in ("sentinel_name", "sentinel_password_file"):
            if parameters.text(name, ""):
                parameters.error(name, f"{name} needs sentinels")
        if not parameters.words("hosts", DEFAULT_HOST):
            parameters.error("hosts", "hosts is empty")
