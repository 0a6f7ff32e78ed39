"""The service's own file, ``/etc/socketmap-memcache/main.cf``: its parameters, and what it names, opened."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import attrs
from twisted.logger import Logger
from zope.interface.exceptions import Invalid
from zope.interface.verify import verifyObject

from socketmap_memcache.config.parameters import Parameters
from socketmap_memcache.config.syntax import Entry, ParsedFile, expand, parse, read_file, suggestion
from socketmap_memcache.errors import ConfigurationError, Problem
from socketmap_memcache.listeners import endpoints
from socketmap_memcache.listeners.client_counts import LAST_NUMBER
from socketmap_memcache.listeners.endpoints import (
    BoundAddress,
    HandedAddress,
    ListenAddress,
    TcpAddress,
    UnixAddress,
)
from socketmap_memcache.listeners.pipelined import PIPELINED_LIMIT
from socketmap_memcache.listeners.stream import CLIENT_LIMIT
from socketmap_memcache.policies.chain import PolicyChain, well_formed
from socketmap_memcache.policies.interface import IPolicy, PolicyContext
from socketmap_memcache.policies.registry import find_policy_type, policy_parameters
from socketmap_memcache.tables.interface import ITable
from socketmap_memcache.tables.options import open_with_options
from socketmap_memcache.tables.registry import PROXYMAP_SOCKET, PROXYWRITE_SOCKET, TableContext

DEFAULT_PATH = "/etc/socketmap-memcache/main.cf"

#: Every parameter but those of policies, with its default as it would be written in the file.
DEFAULTS = {
    "busy_poll": "100",
    "client_idle_timeout": "310s",
    "client_limit": str(CLIENT_LIMIT),
    "policies": "",
    "policy_listen": "inet:127.0.0.1:10023",
    "policy_timeout": "10s",
    "proxymap_socket": PROXYMAP_SOCKET,
    "proxywrite_socket": PROXYWRITE_SOCKET,
    "request_limit": str(PIPELINED_LIMIT),
    "reuse_port": "no",
    "shutdown_timeout": "10s",
    "socketmap_listen": "inet:127.0.0.1:10020",
    "tables": "",
    "tcp_table_listen": "",
    "workers": "1",
}

#: Seconds. Postfix closes a connection to a policy after 300 s without use (smtpd_policy_service_max_idle): a request
#: must not meet the same at this end, or Postfix has to ask again, a second later.
_IDLE_TIMEOUT = 310

#: Microseconds.
_LONGEST_BUSY_POLL = 1000

#: Postfix closes a connection after 10 s without use and after 100 s in any case, and may wait 100 s for a reply.
_LEAST_IDLE_TIMEOUT = 101

#: Postfix waits so many seconds for a policy (smtpd_policy_service_timeout), and then refuses the mail.
_POSTFIX_POLICY_TIMEOUT = 100

# Takes the name of a parameter and an address in it; an error is noted, and gives None.
_ReadAddress = Callable[[str, str], ListenAddress | None]

_MAP_NAME = re.compile(r"[^\s:=,\udc80-\udcff]+")  # those last stand for what is not UTF-8


@attrs.frozen
class ServiceConfig:
    """What the file says.

    :ivar path: the file.
    :ivar socketmap_listen: where maps are served; nowhere if there are none.
    :ivar tcp_table_listen: where single maps are served by tcp_table(5): the map's name, and the address.
    :ivar policy_listen: where policies are asked; nowhere if there are none.
    :ivar tables: the maps that are served, open, by name.
    :ivar policies: the policies that are asked, open.
    :ivar busy_poll: seconds for which the process stays awake after something has come.
    :ivar client_idle_timeout: seconds after which a client that completes no request is disconnected.
    :ivar client_limit: clients that there may be at a time.
    :ivar request_limit: requests that may wait at a time, but for one of each client.
    :ivar shutdown_timeout: seconds that requests under way get at the end.
    :ivar workers: processes that serve; at least 1.
    """

    path: str
    socketmap_listen: Sequence[ListenAddress]
    tcp_table_listen: Sequence[tuple[str, ListenAddress]]
    policy_listen: Sequence[ListenAddress]
    tables: Mapping[str, ITable]
    policies: PolicyChain
    busy_poll: float
    client_idle_timeout: float
    client_limit: int
    request_limit: int
    shutdown_timeout: float
    workers: int = 1

    _log = Logger()

    def listen_addresses(self) -> dict[str, Sequence[ListenAddress]]:
        """Give, by parameter, the addresses to listen on."""
        return {
            "socketmap_listen": self.socketmap_listen,
            "tcp_table_listen": [address for _, address in self.tcp_table_listen],
            "policy_listen": self.policy_listen,
        }

    def listening(self) -> list[ListenAddress]:
        """Give all addresses to listen on."""
        return [address for addresses in self.listen_addresses().values() for address in addresses]

    def listen_parameters(self) -> dict[str, str]:
        """Give, by parameter, where it is listened, as it would be written in the file."""
        texts = {
            "socketmap_listen": [address.text for address in self.socketmap_listen],
            "tcp_table_listen": [f"{name}={address.text}" for name, address in self.tcp_table_listen],
            "policy_listen": [address.text for address in self.policy_listen],
        }
        return {name: " ".join(words).replace("$", "$$") for name, words in texts.items()}

    def close(self) -> None:
        """Close the policies and the tables."""
        self.policies.close()
        for name, table in self.tables.items():
            try:
                table.close()
            except Exception:  # noqa: BLE001 (the others have to be closed, too)
                self._log.failure("map {name} could not be closed", name=name)


def load(
    path: str,
    overrides: Sequence[str],
    context: TableContext,
    reactor: Any,
    sockets: Mapping[str, int] = MappingProxyType({}),
) -> ServiceConfig:
    """Read the service's file, and open the tables and policies that it names.

    :param path: the file; ``$config_directory`` in it stands for the directory that it is in.
    :param overrides: ``name=value`` items that replace what the file says.
    :param context: opens the tables, and those of the policies; its warnings are filled.
    :param reactor: asked which of Twisted's endpoint descriptions it knows; nothing listens or connects yet.
    :param sockets: addresses, as they are written in the file, for which there is a descriptor that listens already.
    :raises ConfigurationError: with everything that is wrong, in this file and in those of the tables; then nothing is
        open.
    """
    parameters = read_parameters(path, overrides, context)
    tables = _tables(parameters, context)
    policies = _policies(parameters, context)
    reuse_port = parameters.boolean("reuse_port", False)
    read_address = partial(_address, parameters, reactor, sockets, reuse_port)
    socketmap_listen = _listen(parameters, "socketmap_listen", read_address)
    policy_listen = _listen(parameters, "policy_listen", read_address)
    if not parameters.words("tables", "") and not parameters.words("policies", ""):
        # A file that is half written when it is read again would otherwise put an end to everything.
        parameters.error("tables", "nothing is served: write tables = name=type:table, or policies = name")
    config = ServiceConfig(
        path=path,
        socketmap_listen=socketmap_listen if tables else [],
        tcp_table_listen=_tcp_table_listen(parameters, read_address, sockets),
        policy_listen=policy_listen if policies.policies else [],
        tables=tables,
        policies=policies,
        busy_poll=_busy_poll(parameters),
        client_idle_timeout=_idle_timeout(parameters),
        client_limit=parameters.integer("client_limit", CLIENT_LIMIT, minimum=1),
        request_limit=parameters.integer("request_limit", PIPELINED_LIMIT, minimum=0),
        shutdown_timeout=parameters.time("shutdown_timeout", 10),
        workers=context.workers,
    )
    _check_sockets(parameters, config)
    parameters.unknown(fatal=True)
    try:
        parameters.finish(context.warnings)
    except ConfigurationError:
        config.close()
        raise
    return config


def read_parameters(path: str, overrides: Sequence[str], context: TableContext) -> Parameters:
    """Read the service's file, as :func:`load` does, and open nothing.

    :param context: gets what tables need of it.
    :raises ConfigurationError: there is no such file; all else that is wrong is noted in the parameters.
    """
    parsed = _override(parse(read_file(path), path), overrides)
    of_policies = _policy_defaults(parsed)
    parsed = attrs.evolve(parsed, entries={**of_policies, **parsed.entries})
    directory = str(Path(path).absolute().parent)
    parameters = Parameters(expand(parsed, {**DEFAULTS, "config_directory": directory}))
    parameters.accept(of_policies)  # also those of policies that are not used
    context.proxymap_socket = parameters.text("proxymap_socket", PROXYMAP_SOCKET)
    context.proxywrite_socket = parameters.text("proxywrite_socket", PROXYWRITE_SOCKET)
    context.workers = _workers(parameters)
    return parameters


def worker_count(path: str, overrides: Sequence[str]) -> int:
    """Say how many processes shall serve.

    :raises ConfigurationError: there is no such file; all else that is wrong is left for :func:`load` to find.
    """
    return _workers(Parameters(expand(_override(parse(read_file(path), path), overrides), DEFAULTS)))


def _busy_poll(parameters: Parameters) -> float:
    """Give the seconds; none where the others, for whom it waits, would have to wait for the only processor."""
    microseconds = parameters.integer("busy_poll", 100, minimum=0, maximum=_LONGEST_BUSY_POLL)
    return microseconds / 1e6 if _processors() > 1 else 0.0


def _workers(parameters: Parameters) -> int:
    return parameters.integer("workers", 1, minimum=0, maximum=LAST_NUMBER) or min(_processors(), LAST_NUMBER)


def _processors() -> int:
    """Count the processors that this process may use; where the system does not say (BSD), those that there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _override(parsed: ParsedFile, overrides: Sequence[str]) -> ParsedFile:
    entries, errors = dict(parsed.entries), list(parsed.errors)
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals or not name.strip():
            errors.append(Problem(f"--set {override!r}: write --set name=value"))
        else:
            entries[name.strip()] = Entry(name.strip(), value.strip(), path="--set")
    return attrs.evolve(parsed, entries=entries, errors=errors)


def _policy_defaults(parsed: ParsedFile) -> dict[str, Entry]:
    """Give the parameters of all types of policies with their defaults, as if the file had them.

    Where neither a policy nor any name but the service's own is in the file, the types are not even looked for.
    """
    if parsed.entries.keys() <= DEFAULTS.keys() - {"policies"}:
        return {}
    defaults = {name: Entry(name, value, path=parsed.path) for name, value in policy_parameters().items()}
    return {name: entry for name, entry in defaults.items() if name not in DEFAULTS}


def _listen(parameters: Parameters, name: str, read_address: _ReadAddress) -> list[ListenAddress]:
    addresses = [read_address(name, word) for word in parameters.words(name, DEFAULTS[name])]
    return [address for address in addresses if address is not None]


def _tcp_table_listen(
    parameters: Parameters, read_address: _ReadAddress, sockets: Mapping[str, int]
) -> list[tuple[str, ListenAddress]]:
    name = "tcp_table_listen"
    known = [word.partition("=")[0] for word in parameters.words("tables", DEFAULTS["tables"])]
    served = []
    for word in parameters.words(name, DEFAULTS[name]):
        map_name, equals, text = word.partition("=")
        if not equals or not map_name:
            parameters.error(name, f"{name}: {word!r}: write map=address, for example aliases=inet:127.0.0.1:10021")
        elif map_name not in known and text not in sockets:  # those that are there stay until a restart
            text = f"{name}: {word!r}: map {map_name!r} is not in tables{suggestion(map_name, known)}"
            parameters.error(name, text)
        else:
            address = read_address(name, text)
            if address is not None:
                served.append((map_name, address))
    return served


def _address(
    parameters: Parameters, reactor: Any, sockets: Mapping[str, int], reuse_port: bool, name: str, text: str
) -> ListenAddress | None:
    if text in sockets:
        return HandedAddress(text, sockets[text])
    try:
        address = endpoints.parse(text, reactor)
    except ValueError as error:
        parameters.error(name, f"{name}: {error}")
        return None
    if isinstance(address, TcpAddress):
        return attrs.evolve(address, reuse_port=reuse_port)
    return address


def _check_sockets(parameters: Parameters, config: ServiceConfig) -> None:
    """Note addresses with two purposes, where clients would get either, and those that workers cannot share.

    A directory that does not exist is worth a warning: systemd makes it when it starts the service.
    """
    first: dict[object, str] = {}
    for name, addresses in config.listen_addresses().items():
        for address in addresses:
            place = endpoints.place(address)
            if place in first:
                parameters.error(name, f"{name}: {address.text!r} is listened on already, see {first[place]}")
            first.setdefault(place, name)
            if isinstance(address, UnixAddress) and not Path(address.path).parent.is_dir():
                parameters.warn(name, f"{name}: the directory of {address.text!r} does not exist yet")
            if config.workers > 1 and not isinstance(address, BoundAddress | HandedAddress):
                text = f"{address.text!r} cannot be shared; write inet:host:port or unix:/path"
                parameters.error("workers", f"workers = {config.workers}: {text}")


def _tables(parameters: Parameters, context: TableContext) -> dict[str, ITable]:
    tables: dict[str, ITable] = {}
    for word in parameters.words("tables", DEFAULTS["tables"]):
        name, equals, spec = word.partition("=")
        if not equals or not _MAP_NAME.fullmatch(name) or not spec:
            parameters.error("tables", f"tables: {word!r}: write name=type:table, without blanks around the '='")
        elif name in tables:
            parameters.error("tables", f"tables: the name {name!r} is used twice")
        else:
            try:
                tables[name] = open_with_options(spec, context)
            except ConfigurationError as error:
                parameters.adopt("tables", error.problems)
    return tables


def _policies(parameters: Parameters, context: TableContext) -> PolicyChain:
    policies: list[IPolicy] = []
    words = parameters.words("policies", DEFAULTS["policies"])
    for place, name in enumerate(words):
        if name in words[:place]:
            parameters.error("policies", f"policies: {name!r} is named twice")
            continue
        try:
            policy = find_policy_type(name).open(parameters, PolicyContext(context))
            verifyObject(IPolicy, policy)
        except ConfigurationError as error:
            parameters.adopt("policies", error.problems)
        except Invalid as error:
            parameters.error("policies", f"policies: {name!r} is no policy: {error}")
        else:
            policies.append(policy)
            if not well_formed(policy.fail_action):
                text = f"the fail action of policy {name!r} is no action of access(5): {policy.fail_action!r}"
                parameters.error("policies", text)
    return PolicyChain(policies, context.reactor, _policy_timeout(parameters))


def _policy_timeout(parameters: Parameters) -> float:
    seconds = parameters.time("policy_timeout", 10)
    if not 1 <= seconds < _POSTFIX_POLICY_TIMEOUT:
        parameters.error(
            "policy_timeout",
            f"policy_timeout = {seconds:g}: must be at least 1s, and less than the {_POSTFIX_POLICY_TIMEOUT}s "
            "after which Postfix gives up",
        )
    return seconds


def _idle_timeout(parameters: Parameters) -> float:
    seconds = parameters.time("client_idle_timeout", _IDLE_TIMEOUT)
    if seconds < _LEAST_IDLE_TIMEOUT:
        parameters.error(
            "client_idle_timeout",
            f"client_idle_timeout = {seconds:g}: must be at least {_LEAST_IDLE_TIMEOUT}s, "
            "because Postfix itself keeps connections for up to 100s",
        )
    return seconds
