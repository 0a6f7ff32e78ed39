"""The service's own file, ``/etc/socketmap-memcache/main.cf``: its parameters, and the tables that it names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from socketmap_memcache.config.parameters import Parameters
from socketmap_memcache.config.syntax import Entry, ParsedFile, expand, parse, read_file
from socketmap_memcache.errors import ConfigurationError, Problem
from socketmap_memcache.listeners import endpoints
from socketmap_memcache.listeners.endpoints import ListenAddress
from socketmap_memcache.tables.interface import ITable
from socketmap_memcache.tables.registry import TableContext

DEFAULT_PATH = "/etc/socketmap-memcache/main.cf"

#: Every parameter, with its default as it would be written in the file.
DEFAULTS = {
    "client_idle_timeout": "300s",
    "shutdown_timeout": "10s",
    "socketmap_listen": "inet:127.0.0.1:10020",
    "tables": "",
}

#: Postfix closes a connection after 10 s without use and after 100 s in any case, and may wait 100 s for a reply.
_LEAST_IDLE_TIMEOUT = 101

_MAP_NAME = re.compile(r"[^\s:=,\udc80-\udcff]+")  # those last stand for what is not UTF-8


@attrs.frozen
class ServiceConfig:
    """What the file says.

    :ivar path: the file.
    :ivar socketmap_listen: where maps are served.
    :ivar tables: the maps that are served, open, by name.
    :ivar client_idle_timeout: seconds after which a client that completes no request is disconnected.
    :ivar shutdown_timeout: seconds that requests under way get at the end.
    """

    path: str
    socketmap_listen: Sequence[ListenAddress]
    tables: Mapping[str, ITable]
    client_idle_timeout: float
    shutdown_timeout: float

    def close(self) -> None:
        """Close the tables."""
        for table in self.tables.values():
            table.close()


def load(path: str, overrides: Sequence[str], context: TableContext, reactor: Any) -> ServiceConfig:
    """Read the service's file, and open the tables that it names.

    :param path: the file; ``$config_directory`` in it stands for the directory that it is in.
    :param overrides: ``name=value`` items that replace what the file says.
    :param context: opens the tables; its warnings are filled.
    :param reactor: asked which of Twisted's endpoint descriptions it knows; nothing listens or connects yet.
    :raises ConfigurationError: with everything that is wrong, in this file and in those of the tables; then nothing is
        open.
    """
    parsed = _override(parse(read_file(path), path), overrides)
    directory = str(Path(path).absolute().parent)
    parameters = Parameters(expand(parsed, {**DEFAULTS, "config_directory": directory}))
    config = ServiceConfig(
        path=path,
        socketmap_listen=_listen(parameters, "socketmap_listen", reactor),
        tables=_tables(parameters, context),
        client_idle_timeout=_idle_timeout(parameters),
        shutdown_timeout=parameters.time("shutdown_timeout", 10),
    )
    parameters.unknown(fatal=True)
    try:
        parameters.finish(context.warnings)
    except ConfigurationError:
        config.close()
        raise
    return config


def _override(parsed: ParsedFile, overrides: Sequence[str]) -> ParsedFile:
    entries, errors = dict(parsed.entries), list(parsed.errors)
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals or not name.strip():
            errors.append(Problem(f"--set {override!r}: write --set name=value"))
        else:
            entries[name.strip()] = Entry(name.strip(), value.strip())
    return attrs.evolve(parsed, entries=entries, errors=errors)


def _listen(parameters: Parameters, name: str, reactor: Any) -> list[ListenAddress]:
    addresses = []
    for word in parameters.words(name, DEFAULTS[name]):
        try:
            addresses.append(endpoints.parse(word, reactor))
        except ValueError as error:
            parameters.error(name, f"{name}: {error}")
    return addresses


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
                tables[name] = context.open_table(spec)
            except ConfigurationError as error:
                parameters.adopt("tables", error.problems)
    if not parameters.text("tables", ""):
        parameters.warn("tables", "no tables are served: write tables = name=type:table")
    return tables


def _idle_timeout(parameters: Parameters) -> float:
    seconds = parameters.time("client_idle_timeout", 300)
    if seconds < _LEAST_IDLE_TIMEOUT:
        parameters.error(
            "client_idle_timeout",
            f"client_idle_timeout = {seconds:g}: must be at least {_LEAST_IDLE_TIMEOUT}s, "
            "because Postfix itself keeps connections for up to 100s",
        )
    return seconds
