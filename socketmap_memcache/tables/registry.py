"""Opens a table by its Postfix name, ``type:name``."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import attrs
from zope.interface import Attribute, Interface

from socketmap_memcache.errors import ConfigurationError, Problem

if TYPE_CHECKING:
    from socketmap_memcache.memcache.pool import ClientPool
    from socketmap_memcache.tables.interface import ITable


class TableOpener(Protocol):
    """A function that opens tables of one type."""

    def __call__(self, name: str, context: TableContext) -> ITable:
        """Open a table.

        :param name: what follows ``type:``.
        :raises ConfigurationError: with the file and line, where there is one, of everything that is wrong.
        """


class ITableType(Interface):
    """A type of tables that another package brings, as a plugin of twisted.plugin's.

    A module in that package's ``twisted/plugins`` has an object that provides this and Twisted's ``IPlugin``.
    """

    kind: str = Attribute("The name of the type: what comes before the colon in ``type:name``.")

    def open(name: str, context: TableContext) -> ITable:
        """Open a table; see :class:`TableOpener`."""


# Modules are imported when a table of theirs is first opened: a site pays only for the types it uses.
_OPENERS = {
    "btree": "socketmap_memcache.tables.berkeleydb:open_btree",
    "cdb": "socketmap_memcache.tables.cdb:open_cdb",
    "cidr": "socketmap_memcache.tables.cidr:open_cidr",
    "fail": "socketmap_memcache.tables.fail:open_fail",
    "hash": "socketmap_memcache.tables.berkeleydb:open_hash",
    "inline": "socketmap_memcache.tables.inline:open_inline",
    "lmdb": "socketmap_memcache.tables.lmdb:open_lmdb",
    "memcache": "socketmap_memcache.tables.memcache_cf:open_memcache",
    "memory": "socketmap_memcache.tables.memory:open_memory",
    "pgsql": "socketmap_memcache.tables.pgsql:open_pgsql",
    "proxy": "socketmap_memcache.tables.proxy:open_proxy",
    "redis": "socketmap_memcache.tables.redis_cf:open_redis",
    "regexp": "socketmap_memcache.tables.regexp:open_regexp",
    "socketmap": "socketmap_memcache.tables.socketmap:open_socketmap",
    "sqlite": "socketmap_memcache.tables.sqlite:open_sqlite",
    "static": "socketmap_memcache.tables.static:open_static",
    "texthash": "socketmap_memcache.tables.texthash:open_texthash",
}

# Types whose files can be made, and how the name of a file ends.
_FILES = {"btree": ".db", "hash": ".db", "lmdb": ".lmdb"}

# Types whose openers take ``create``.
_CREATE = {*_FILES, "memcache", "pgsql"}

#: Where Postfix has these sockets, unless its ``queue_directory`` was changed.
PROXYMAP_SOCKET = "/var/spool/postfix/private/proxymap"
PROXYWRITE_SOCKET = "/var/spool/postfix/private/proxywrite"


@attrs.define
class TableContext:
    """What tables get from the service that opens them.

    :ivar clients: the memcached clients, shared by all tables.
    :ivar warnings: filled while opening: what an administrator should know but can live with.
    :ivar proxymap_socket: the path of the socket of Postfix's service ``proxymap``, for ``proxy:`` tables.
    :ivar proxywrite_socket: the same of ``proxywrite``.
    :ivar timeout: seconds that an operation may take on a table that can hang; memcache: has its own.
    :ivar fold_keys: whether tables of fixed strings fold keys to lower case; no for ``map -f``.
    :ivar workers: how many processes of the service will have each table open.
    :ivar kept: what tables and policies want to find again after a reload, by name: each time the same dictionary.
    :ivar apart: filled while opening: tables that each process has for itself, in its memory.
    :ivar creates: whether files may be made. If not, a file that the service would make is a warning, and its table is
        one in memory.
    """

    clients: ClientPool
    warnings: list[Problem] = attrs.Factory(list)
    proxymap_socket: str = PROXYMAP_SOCKET
    proxywrite_socket: str = PROXYWRITE_SOCKET
    timeout: float = 10.0
    fold_keys: bool = True
    creates: bool = True
    workers: int = 1
    kept: dict[str, Any] = attrs.Factory(dict)
    apart: list[str] = attrs.Factory(list)
    _opening: list[str] = attrs.Factory(list)

    @property
    def reactor(self) -> Any:
        """The reactor: time, timers, threads, connections."""
        return self.clients.reactor

    def open_table(self, spec: str, create: bool = False) -> ITable:
        """Open the table that ``type:name`` describes.

        :param create: whether to make a file that does not exist, where the type can; for a cache: that of its backup.
        :raises ConfigurationError: an unknown type, or whatever the type finds wrong with the name or its file.
        """
        kind, colon, name = spec.partition(":")
        if not colon:
            text = f"table {spec!r}: write type:name, for example memcache:/etc/postfix/aliases.cf"
            raise ConfigurationError([Problem(text)])
        if spec in self._opening:
            raise ConfigurationError([Problem(f"table {spec!r} refers to itself")])
        if create and not self.creates and kind in _FILES and _is_missing(file := name + _FILES[kind]):
            directory = "" if Path(file).parent.exists() else ", in a directory that has to be made before"
            text = f"table {spec}: {file} does not exist yet: the service makes it when it starts{directory}"
            self.warnings.append(Problem(text))
            table = self.open_table(f"memory:{name}")
            self.apart.remove(table.name)  # the service will have one that is shared
            table.name = spec
            return table
        opener = _find_opener(kind, spec)
        self._opening.append(spec)
        try:
            if create and kind in _CREATE:
                creating_opener: Any = opener
                created: ITable = creating_opener(name, self, create=True)
                return created
            return opener(name, self)
        finally:
            self._opening.pop()


def _is_missing(file: str) -> bool:
    """Say whether a file is known not to exist; what else may be wrong with its path, its opener says."""
    try:
        Path(file).stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        pass
    return False


def _find_opener(kind: str, spec: str) -> TableOpener:
    if kind in _OPENERS:
        module, _, function = _OPENERS[kind].partition(":")
        opener: TableOpener = getattr(import_module(module), function)
        return opener
    from twisted.plugin import getPlugins

    plugins = {plugin.kind: plugin for plugin in getPlugins(ITableType)}
    if kind in plugins:
        return plugins[kind].open
    known = ", ".join(sorted({*_OPENERS, *plugins}))
    raise ConfigurationError([Problem(f"table {spec!r}: unknown table type {kind!r} (known: {known})")])
