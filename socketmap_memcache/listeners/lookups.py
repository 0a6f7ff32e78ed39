"""What the listeners that answer look-ups share: a reply for every outcome of a look-up."""

from __future__ import annotations

from typing import Protocol as Structure

from twisted.python.failure import Failure

from socketmap_memcache.errors import LookupTimeout, PermanentError, TableError
from socketmap_memcache.listeners.stream import Request, RequestReader, StreamConnection
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

    def __init__(self, reader: RequestReader, replies: Replies) -> None:
        """Make a connection that is not connected yet."""
        super().__init__(reader)
        self._replies = replies

    def look_up(self, table: ITable, key: bytes, request: Request) -> None:
        """Answer a request with what a table has; whatever the table does, there will be a reply."""
        try:
            answer = table.lookup(key)
        except Exception:  # noqa: BLE001 (whatever a table does, its client gets a reply)
            self._failed(Failure(), request)
            return
        answer.addCallbacks(self._answer, self._failed, callbackArgs=(request,), errbackArgs=(request,))

    def _answer(self, value: bytes | None, request: Request) -> None:
        replies = self._replies
        try:
            self.reply(request, replies.NOTFOUND if value is None else replies.found(value))
        except Exception:  # noqa: BLE001 (a request without a reply would hold up those behind it for ever)
            self._failed(Failure(), request)

    def _failed(self, failure: Failure, request: Request) -> None:
        error, replies = failure.value, self._replies
        if isinstance(error, LookupTimeout):
            reply = replies.timeout_error(str(error))
        elif isinstance(error, PermanentError):
            reply = replies.permanent_error(str(error))
        elif isinstance(error, TableError):
            reply = replies.temporary_error(str(error))
        else:
            self.log.failure("a look-up failed in an unforeseen way; answered TEMP", failure)
            reply = replies.temporary_error("internal error, see the log of socketmap-memcache")
        self.reply(request, reply)
