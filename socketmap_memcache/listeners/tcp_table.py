"""The tcp_table(5) server: each listener serves one map, because the protocol has no names for maps."""

from __future__ import annotations

from collections.abc import Mapping

from twisted.internet.interfaces import IReactorTime

from socketmap_memcache.listeners.lookups import LookupConnection, LookupFactory
from socketmap_memcache.listeners.stream import Request
from socketmap_memcache.protocols import tcp_table
from socketmap_memcache.protocols.tcp_table import REQUEST_LIMIT, LineReader, TcpTableError
from socketmap_memcache.tables.interface import ITable


class TcpTableConnection(LookupConnection):
    """One Postfix process."""

    factory: TcpTableFactory

    def __init__(self) -> None:
        """Make a connection that is not connected yet."""
        super().__init__(LineReader(REQUEST_LIMIT), tcp_table)

    def request_received(self, payload: bytes, request: Request) -> None:
        """Look up a key."""
        try:
            key = tcp_table.parse_request(payload)
        except TcpTableError as error:
            self.reply(request, tcp_table.permanent_error(str(error)))
            return
        lookup = self.factory.lookups.get(self.factory.map_name)
        if lookup is None:
            reason = f"map {self.factory.map_name.decode(errors='replace')!r} is not served here any more"
            self.reply(request, tcp_table.permanent_error(reason))
            return
        self.look_up(lookup, key, request)


class TcpTableFactory(LookupFactory):
    """Serves one map to any number of clients.

    :ivar map_name: which of the tables.
    """

    kind = "tcp_table"
    protocol = TcpTableConnection  # type: ignore[assignment] # (its factory is of a narrower type)

    def __init__(
        self, map_name: bytes, tables: Mapping[bytes, ITable], reactor: IReactorTime, idle_timeout: float
    ) -> None:
        """Make a listener without connections."""
        super().__init__(tables, reactor, idle_timeout)
        self.map_name = map_name
