"""Opens a table by its Postfix name, ``type:name``."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Protocol

import attrs

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


# Modules are imported when a table of theirs is first opened: a site pays only for the types it uses.
_OPENERS = {
    "fail": "socketmap_memcache.tables.fail:open_fail",
    "inline": "socketmap_memcache.tables.inline:open_inline",
    "memcache": "socketmap_memcache.tables.memcache:open_memcache",
    "static": "socketmap_memcache.tables.static:open_static",
    "texthash": "socketmap_memcache.tables.texthash:open_texthash",
}


@attrs.define
class TableContext:
    """What tables get from the service that opens them.

    :ivar clients: the memcached clients, shared by all tables.
    :ivar warnings: filled while opening: what an administrator should know but can live with.
    """

    clients: ClientPool
    warnings: list[Problem] = attrs.Factory(list)
    _opening: list[str] = attrs.Factory(list)

    def open_table(self, spec: str) -> ITable:
        """Open the table that ``type:name`` describes.

        :raises ConfigurationError: an unknown type, or whatever the type finds wrong with the name or its file.
        """
        kind, colon, name = spec.partition(":")
        if not colon:
            text = f"table {spec!r}: write type:name, for example memcache:/etc/postfix/aliases.cf"
            raise ConfigurationError([Problem(text)])
        if kind not in _OPENERS:
            known = ", ".join(sorted(_OPENERS))
            raise ConfigurationError([Problem(f"table {spec!r}: unknown table type {kind!r} (known: {known})")])
        if spec in self._opening:
            raise ConfigurationError([Problem(f"table {spec!r} refers to itself")])
        module, _, function = _OPENERS[kind].partition(":")
        opener: TableOpener = getattr(import_module(module), function)
        self._opening.append(spec)
        try:
            return opener(name, self)
        finally:
            self._opening.pop()
