"""``socketmap:inet:host:port:map`` and ``socketmap:unix:/path:map``: a map of another server, socketmap_table(5)."""

from __future__ import annotations

from functools import partial

from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from socketmap_memcache.config.syntax import excerpt
from socketmap_memcache.errors import (
    ConfigurationError,
    LookupTimeout,
    PermanentError,
    Problem,
    TableError,
    TemporaryError,
)
from socketmap_memcache.memcache.server import Server
from socketmap_memcache.protocols import socketmap
from socketmap_memcache.protocols.socketmap import REQUEST_LIMIT, SocketmapError
from socketmap_memcache.tables.folding import valid
from socketmap_memcache.tables.interface import ITable
from socketmap_memcache.tables.read_only import ReadOnlyTable
from socketmap_memcache.tables.registry import TableContext
from socketmap_memcache.tables.socketmap_client import SocketmapClient

_ERRORS: dict[bytes, type[TableError]] = {b"TEMP": TemporaryError, b"TIMEOUT": LookupTimeout, b"PERM": PermanentError}


def open_socketmap(name: str, context: TableContext) -> SocketmapTable:
    """Open ``socketmap:server:map``; the map's name is what follows the last colon. Nothing connects before a look-up.

    :raises ConfigurationError: there is no server or no map in the name.
    """
    address, colon, map_name = name.rpartition(":")
    try:
        if not colon:
            raise ValueError(f"{name!r} has no map")
        server = Server.parse(address)
    except ValueError as error:
        text = f"socketmap:{name}: {error} (write socketmap:inet:host:port:map or socketmap:unix:/path:map)"
        raise ConfigurationError([Problem(text)]) from error
    client = SocketmapClient(address, partial(server.connect, context.reactor), context.reactor, context.timeout)
    return SocketmapTable(f"socketmap:{name}", map_name.encode(errors="surrogateescape"), client)


@implementer(ITable)
class SocketmapTable(ReadOnlyTable):
    """Has what a server's map has. Keys are sent as they are; the server folds them, or not.

    As with Postfix, a key that is not UTF-8 is missing and is not sent, and a value ends at its first NUL; one that is
    not UTF-8 is a :class:`PermanentError`, as is a key that is too long to be sent.
    """

    def __init__(self, name: str, map_name: bytes, client: SocketmapClient) -> None:
        """Make a table.

        :param client: is closed with the table.
        """
        self.name = name
        self._map_name = map_name
        self._client = client

    def lookup(self, key: bytes) -> Deferred[bytes | None]:
        """See :class:`ITable`."""
        if not valid(key):
            return succeed(None)
        if len(self._map_name) + 1 + len(key) > REQUEST_LIMIT:
            return fail(PermanentError(f"{self.name}: a key of {len(key)} bytes is too long for a request"))
        return self._client.ask(socketmap.request(self._map_name, key)).addCallback(self._result)

    def close(self) -> None:
        """See :class:`ITable`."""
        self._client.close()

    def _result(self, payload: bytes) -> bytes | None:
        try:
            status, text = socketmap.parse_reply(payload)
        except SocketmapError as error:
            raise TemporaryError(f"{self.name}: {error}") from error
        if status == b"NOTFOUND":
            return None
        if status != b"OK":
            raise _ERRORS[status](f"{self.name}: the server answered {status.decode()} {excerpt(text, 200)}")
        value = text.partition(b"\0")[0]
        if not valid(value):
            raise PermanentError(f"{self.name}: the value is not UTF-8")
        return value
