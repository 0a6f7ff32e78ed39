"""The socketmap_table(5) server: Postfix asks, tables answer."""

from __future__ import annotations

from collections.abc import Mapping

from twisted.internet.interfaces import IReactorTime

from socketmap_memcache.listeners.lookups import LookupConnection, LookupFactory
from socketmap_memcache.listeners.stream import Request, StreamConnection
from socketmap_memcache.protocols import socketmap
from socketmap_memcache.protocols.netstring import NetstringReader
from socketmap_memcache.protocols.socketmap import REQUEST_LIMIT, SocketmapError
from socketmap_memcache.tables.interface import ITable

#: Map names that are remembered, once logged, so as not to be logged again.
_UNKNOWN_MAPS_LIMIT = 100


class SocketmapConnection(LookupConnection):
    """One Postfix process."""

    factory: SocketmapFactory

    def __init__(self) -> None:
        """Make a connection that is not connected yet."""
        super().__init__(NetstringReader(REQUEST_LIMIT), socketmap)

    def request_received(self, payload: bytes, request: Request) -> None:
        """Look up a key."""
        try:
            name, key = socketmap.parse_request(payload)
        except SocketmapError as error:
            self.reply(request, socketmap.permanent_error(str(error)))
            return
        lookup = self.factory.lookups.get(name)
        if lookup is None:
            self.reply(request, self.factory.unknown_map(name, self))
            return
        self.look_up(lookup, key, request)


class SocketmapFactory(LookupFactory):
    """Serves maps to any number of clients."""

    kind = "socketmap"
    protocol = SocketmapConnection  # type: ignore[assignment] # (its factory is of a narrower type)

    def __init__(self, tables: Mapping[bytes, ITable], reactor: IReactorTime, idle_timeout: float) -> None:
        """Make a listener without connections."""
        super().__init__(tables, reactor, idle_timeout)
        self._unknown_maps: set[bytes] = set()

    def unknown_map(self, name: bytes, connection: StreamConnection) -> bytes:
        """Make the reply to a request for a map that is not served, and log the name when it is new."""
        reason = f"map {name[:100].decode(errors='replace')!r} is not served here; see tables in the configuration"
        if name not in self._unknown_maps and len(self._unknown_maps) < _UNKNOWN_MAPS_LIMIT:
            self._unknown_maps.add(name)
            connection.log.warn(
                "socketmap client {peer}: {reason} (logged once a name)", peer=connection.peer(), reason=reason
            )
        return socketmap.permanent_error(reason)
