"""``hosts`` and what belongs to them in the ``.cf`` file of a ``pgsql:`` table, and how to connect to one."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from socket import SOCK_STREAM, getaddrinfo

from psycopg import Error, pq

from socketmap_memcache.config.parameters import Parameters
from socketmap_memcache.config.syntax import excerpt, read_file
from socketmap_memcache.errors import ConfigurationError
from socketmap_memcache.memcache.server import is_address
from socketmap_memcache.tables.pgsql_connection import Connection, ConnectionFailure, StatementError
from socketmap_memcache.tables.pgsql_hosts import Host

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
# The part of the time limit after which the server ends a statement: a slow one is no reason to take it for dead.
_SERVER_SHARE = 0.8

_UNIX, _INET, _URI = range(3)  # in this order Postfix tries them


def read_hosts(parameters: Parameters, path: str, owned: bool) -> list[Host]:
    """Read ``hosts`` (default: localhost), ``user``, ``password`` or ``password_file``, ``dbname`` and ``encoding``.

    A URI has its own user, password and database.

    :param path: of the ``.cf`` file.
    :param owned: whether the hosts have a table of this service: then only one that can be written to will do, and the
        encoding is UTF-8.
    """
    login = {"dbname": parameters.text("dbname", ""), "user": parameters.text("user", "")}
    login["password"] = _password(parameters)
    common = {"client_encoding": "UTF8" if owned else parameters.text("encoding", "UTF8")}
    if not common["client_encoding"]:
        parameters.error("encoding", "the parameter encoding must not be empty")
    if owned and parameters.line("encoding"):
        parameters.error("encoding", "encoding has no meaning together with store_table: that is in UTF-8")
    if owned:
        common["target_session_attrs"] = "read-write"
    words = parameters.words("hosts", "") or ["localhost"]
    hosts: list[Host] = []
    secret = bool(parameters.text("password", ""))
    for number, word in enumerate(words, 1):
        try:
            host = _host(word, login, common, ranked=not owned)
        except ValueError as error:
            parameters.error("hosts", f"host {number}: {error}")
            continue
        secret = secret or (_SCHEME.match(word) is not None and b"password=" in host.conninfo)
        if host not in hosts:
            hosts.append(host)
    if not login["dbname"] and any(_SCHEME.match(word) is None for word in words):
        parameters.error("dbname", "the parameter dbname is needed, and must not be empty")
    if secret and os.stat(path).st_mode & stat.S_IROTH:  # noqa: PTH116
        where = "password" if parameters.line("password") else "hosts"
        parameters.warn(where, f"every user can read the password in this file; run: chmod o= {path}")
    return hosts


def connect(
    conninfo: bytes, deadline: float, *, seconds: Callable[[], float], timeout: float, owned: bool
) -> Connection:
    """Connect to a server.

    :param timeout: seconds that a server may take for an operation; it ends a statement a little earlier.
    :param owned: whether it is for a table of this service, which has to be in UTF-8.
    :raises ConnectionFailure: with the reason.
    """
    connection = Connection.open(with_addresses(conninfo), deadline, seconds)
    try:
        if owned and connection.server_encoding != "UTF8":
            raise ConnectionFailure(f"the encoding of the database is {connection.server_encoding}, it has to be UTF8")
        answer = connection.ask(b"SET statement_timeout = %d" % max(1, timeout * _SERVER_SHARE * 1000), deadline)
        if isinstance(answer, StatementError):
            raise ConnectionFailure(answer.message)
    except ConnectionFailure:
        connection.close()
        raise
    return connection


def with_addresses(conninfo: bytes) -> bytes:
    """Give the same connection with the addresses of its hosts, ``hostaddr``; a host is there once for each of them.

    libpq would look up the names itself, and psycopg's C part keeps Python's lock meanwhile: the reactor would stand
    still. Here only the thread waits. The names are kept, as certificates are for them.

    :raises ConnectionFailure: no host has an address.
    """
    values = _parse_conninfo(conninfo.decode(errors="surrogateescape"))
    hosts = values.get("host", "").split(",")
    if "hostaddr" in values or not any(_has_name(host) for host in hosts):
        return conninfo
    ports = values.get("port", "").split(",")
    ports *= len(hosts) if len(ports) == 1 else 1
    if len(ports) != len(hosts):
        return conninfo  # libpq says what is wrong
    places: list[tuple[str, str, str]] = []
    reason = ""
    for host, port in zip(hosts, ports, strict=True):
        if not _has_name(host):
            places.append((host, "", port))
            continue
        try:
            found = getaddrinfo(host, None, type=SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            reason = reason or f"could not translate host name {host} to address: {_words(error)}"
        else:
            places += [(host, str(place[0]), port) for *_, place in found]
    if not places:
        raise ConnectionFailure(reason)
    names = ("host", "hostaddr", "port")
    values |= {name: ",".join(items) for name, items in zip(names, zip(*places, strict=True), strict=True)}
    return _conninfo(values)


def _has_name(host: str) -> bool:
    """Say whether it has to be looked up: it is neither empty, nor a socket's directory, nor an address."""
    return bool(host) and not host.startswith(("/", "@")) and not is_address(host)


def _words(error: OSError | UnicodeError) -> str:
    return (error.strerror if isinstance(error, OSError) else "") or str(error)


def _password(parameters: Parameters) -> str:
    password = parameters.text("password", "")
    path = parameters.text("password_file", "")
    if not path:
        return password
    if password:
        parameters.error("password_file", "write either password or password_file")
    try:
        data = read_file(path)
        if os.stat(path).st_mode & stat.S_IRWXO:  # noqa: PTH116
            parameters.error("password_file", f"every user may use this password; run: chmod o= {path}")
        return data.removesuffix(b"\n").decode(errors="surrogateescape")
    except ConfigurationError as error:
        parameters.adopt("password_file", error.problems)
        return ""


def _host(word: str, login: dict[str, str], common: dict[str, str], ranked: bool) -> Host:
    """Read an item of ``hosts`` as Postfix does.

    :param login: what a URI does not get; empty values are left out.
    :param common: what all get.
    :raises ValueError: it cannot be used; the reason has no part of a URI, which may have a password.
    """
    scheme = _SCHEME.match(word)
    if scheme:
        if scheme[1] not in {"postgres", "postgresql"}:
            raise ValueError(f"a URI begins with postgresql://, not with {excerpt(scheme[0])}")
        given = _parse_conninfo(word)
        values = {**common, **given, "client_encoding": common["client_encoding"]}
        place = values.get("host") or values.get("hostaddr") or "localhost"
        name = f"{place}:{values['port']}" if "port" in values else place
        rank = _URI
    else:
        name = word.removeprefix("unix:") if word.startswith("unix:") else word.removeprefix("inet:")
        values = {**common, **{key: value for key, value in login.items() if value}, "host": name}
        rank = _UNIX
        if not name.startswith("/"):
            rank = _INET
            host, colon, port = name.rpartition(":")
            if colon and not name.endswith("]"):
                values |= {"host": host, "port": port}
            values["host"] = values["host"].removeprefix("[").removesuffix("]")
            if not values["host"] or not values.get("port", "1").isdecimal():
                raise ValueError(f"{excerpt(word)}: write inet:host:port, unix:/directory, or a URI (postgresql://...)")
    values.setdefault("fallback_application_name", "socketmap-memcache")
    return Host(name, rank if ranked else 0, _conninfo(values))


def _parse_conninfo(text: str) -> dict[str, str]:
    try:
        options = pq.Conninfo.parse(text.encode(errors="surrogateescape"))
    except Error:
        raise ValueError("this is not a URI that libpq understands, or it has an unknown parameter") from None
    return {
        option.keyword.decode(): option.val.decode(errors="surrogateescape")
        for option in options
        if option.val is not None
    }


def _conninfo(values: dict[str, str]) -> bytes:
    items = []
    for name, value in values.items():
        quoted = value.replace("\\", "\\\\").replace("'", "\\'")
        items.append(f"{name}='{quoted}'")
    return " ".join(items).encode(errors="surrogateescape")
