"""What the listeners that answer look-ups share: a reply for every outcome of a look-up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol as Structure

from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from socketmap_memcache.errors import LookupTimeout, PermanentError, TableError
from socketmap_memcache.listeners.stream import LOG_LINES, Request, RequestReader, StreamConnection, StreamFactory
from socketmap_memcache.log_limit import LogLimit
from socketmap_memcache.tables.asked import LookupFor, lookup_for
from socketmap_memcache.tables.interface import ITable


class Replies(Structure):
    """A codec's writing side; a module will do."""

    @property
    def NOTFOUND(self) -> bytes:
        """The reply that a key does not exist."""

    def found(self, value: bytes, /) -> bytes:
        """Encode the answer that a key exists, or a failure where the value does not fit into a reply."""

    def temporary_error(self, reason: str, /) -> bytes:
        """Encode a failure that may pass."""

    def timeout_error(self, reason: str, /) -> bytes:
        """Encode a failure to answer in time."""

    def permanent_error(self, reason: str, /) -> bytes:
        """Encode a failure that an administrator must mend."""


class LookupConnection(StreamConnection):
    """A client's connection whose requests are look-ups."""

    factory: LookupFactory

    def __init__(self, reader: RequestReader, replies: Replies) -> None:
        """Make a connection that is not connected yet."""
        super().__init__(reader)
        self._replies = replies

    def look_up(self, lookup: LookupFor, key: bytes, request: Request) -> None:
        """Answer a request with what a table has; whatever the table does, there will be a reply."""
        try:
            lookup(key, self, request)
        except Exception:  # noqa: BLE001 (whatever a table does, its client gets a reply)
            self.failed(Failure(), request)

    def answered(self, value: bytes | None, request: Request) -> None:
        """Hear the answer to a request."""
        replies = self._replies
        try:
            self.reply(request, replies.NOTFOUND if value is None else replies.found(value))
        except Exception:  # noqa: BLE001 (a request without a reply would hold up those behind it for ever)
            self.failed(Failure(), request)

    def failed(self, failure: Failure, request: Request) -> None:
        """Hear that there is no answer to a request."""
        error, replies = failure.value, self._replies
        if isinstance(error, LookupTimeout):
            reply = replies.timeout_error(str(error))
        elif isinstance(error, PermanentError):
            reply = replies.permanent_error(str(error))
        elif isinstance(error, TableError):
            reply = replies.temporary_error(str(error))
        else:
            lines = self.factory.unforeseen_lines
            if lines.due():
                text = "a look-up failed in an unforeseen way; answered TEMP{more}"
                self.log.failure(text, failure, more=lines.more())
            reply = replies.temporary_error("internal error, see the log of socketmap-memcache")
        self.reply(request, reply)


class LookupFactory(StreamFactory):
    """A listener for look-ups.

    :ivar lookups: how to ask each map, by name.
    :ivar unforeseen_lines: keeps a table with a fault from filling the log.
    """

    def __init__(self, tables: Mapping[bytes, ITable], reactor: IReactorTime, idle_timeout: float) -> None:
        """Make a listener without connections."""
        super().__init__(reactor, idle_timeout)
        self.unforeseen_lines = LogLimit(reactor, lines=LOG_LINES)
        self.tables = tables

    @property
    def tables(self) -> Mapping[bytes, ITable]:
        """The maps by name; may be replaced at any time: requests that come later use the new ones."""
        return self._tables

    @tables.setter
    def tables(self, tables: Mapping[bytes, ITable]) -> None:
        self._tables = tables
        self.lookups = {name: lookup_for(table) for name, table in tables.items()}
