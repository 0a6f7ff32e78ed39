"""The parameters of a ``.cf`` file that are about TLS and authentication."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import attrs

from socketmap_memcache.config.parameters import Parameters
from socketmap_memcache.memcache.security import PLAIN, Security, check_username, read_key, read_password, read_pem
from socketmap_memcache.memcache.server import Server

T = TypeVar("T")

_TLS_PARAMETERS = ("tls_ca_file", "tls_cert_file", "tls_key_file", "tls_server_name")

#: All that is read here.
PARAMETERS = (*_TLS_PARAMETERS, "username", "password_file")


def read_security(parameters: Parameters, servers: Sequence[Server] | None) -> Security:
    """Read ``tls_ca_file``, ``tls_cert_file``, ``tls_key_file``, ``tls_server_name``, ``username``, ``password_file``.

    Files are read, and whatever is wrong with them, or between the parameters, is noted as an error.

    :param servers: those of ``memcache``; empty for ``memcache = memory:``; ``None`` where they could not be read: then
        nothing else is noted.
    :return: what is the same for all servers of the file; of no use where an error has been noted.
    """
    texts = {name: parameters.text(name, "") for name in PARAMETERS}
    if not servers:
        for name, text in texts.items():
            if text and servers is not None:
                parameters.error(name, f"{name} is for the connection to a memcached; here is none")
        return PLAIN
    username, password = _read_login(parameters, texts["username"], texts["password_file"])
    return attrs.evolve(read_tls(parameters, servers), username=username, password=password)


def read_tls(parameters: Parameters, servers: Sequence[Server], where: str = "memcache") -> Security:
    """Read the parameters that are about TLS.

    :param servers: those that the parameter ``where`` names.
    """
    texts = {name: parameters.text(name, "") for name in _TLS_PARAMETERS}
    tls_servers = [server for server in servers if server.tls]
    if tls_servers:
        ca, certificate, key = _read_tls(parameters, texts, tls_servers, where)
        return Security(ca, certificate, key, texts["tls_server_name"])
    for name in _TLS_PARAMETERS:
        if texts[name]:
            parameters.error(name, f"{name} is of no use: {where} names no server as tls:host:port")
    return PLAIN


def _read_login(parameters: Parameters, name: str, path: str) -> tuple[bytes, bytes]:
    username = name.encode(errors="surrogateescape")
    if name:
        _attempt(parameters, "username", check_username, username)
    if name and not path:
        parameters.error("username", "username needs a password_file, whose first line is the password")
    if path and not name:
        parameters.error("password_file", "password_file needs a username")
    password = _attempt(parameters, "password_file", read_password, path) if path else None
    return username, password or b""


def _read_tls(
    parameters: Parameters, texts: dict[str, str], servers: Sequence[Server], where: str
) -> tuple[bytes, bytes, bytes]:
    try:
        from socketmap_memcache.memcache.tls import check_ca, check_certificate, check_name, check_pair, load_key
    except ImportError as error:
        missing = f"tls: needs pyOpenSSL and service-identity ({error})"
        parameters.error(where, f"{missing}: pip install 'socketmap-memcache[tls]'")
        return b"", b"", b""
    for name in dict.fromkeys([texts["tls_server_name"]] if texts["tls_server_name"] else [s.host for s in servers]):
        _attempt(parameters, "tls_server_name" if texts["tls_server_name"] else where, check_name, name)
    ca = _read(parameters, "tls_ca_file", texts, read_pem, check_ca)
    certificate = _read(parameters, "tls_cert_file", texts, read_pem, check_certificate)
    key = _read(parameters, "tls_key_file", texts, read_key, load_key)
    if certificate and key:
        _attempt(parameters, "tls_key_file", check_pair, certificate, key)
    for name, other in (("tls_cert_file", "tls_key_file"), ("tls_key_file", "tls_cert_file")):
        if texts[name] and not texts[other]:
            parameters.error(name, f"{name} needs a {other}")
    return ca, certificate, key


def _read(
    parameters: Parameters,
    name: str,
    texts: dict[str, str],
    read: Callable[[str], bytes],
    check: Callable[[bytes], object],
) -> bytes:
    """Read a file if there is a name of one, and give its contents if they pass the check."""
    path = texts[name]
    pem = _attempt(parameters, name, read, path) if path else None
    if pem is None:
        return b""
    try:
        check(pem)
    except ValueError as error:
        parameters.error(name, f"{path}: {error}")
        return b""
    return pem


def _attempt(parameters: Parameters, name: str, function: Callable[..., T], *arguments: object) -> T | None:
    """Give what a function returns, or note what is wrong with the value of a parameter."""
    try:
        return function(*arguments)
    except ValueError as error:
        parameters.error(name, str(error))
        return None
