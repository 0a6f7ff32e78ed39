"""Deletes that are owed to a memcached: of keys whose change it has missed, or may make too late."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from socketmap_memcache.memcache.command import UNFINISHED, Command, CommandRefusedError, unexpected
from socketmap_memcache.memcache.interface import Limits
from socketmap_memcache.protocols import memcache
from socketmap_memcache.protocols.memcache import Reply, ReplyReader

#: Keys that are remembered for a server; with more, all that it has is deleted.
OWED_LIMIT = 100_000

#: Seconds before a delete that the server refused is sent again.
REFUSED_PAUSE = 5.0

_KEYS_A_COMMAND = 1000

#: A proxy refuses to empty its servers, or hangs up; then the keys that are remembered have to do.
_FLUSH_TRIES = 3


class OwedDeletes:
    """Remembers the keys, and makes the commands that are to be the first ones on a new connection.

    A key is forgotten when a delete that was sent after it was last added has been answered.
    """

    _log = Logger()

    def __init__(self, name: str, reactor: IReactorTime, send: Callable[[], object], limit: int = OWED_LIMIT) -> None:
        """Owe nothing yet.

        :param name: the server, for the log.
        :param send: called some time after a delete was refused, to send all :meth:`commands` if there is a connection.
        """
        self._name = name
        self._reactor = reactor
        self._send = send
        self._limit = limit
        self._keys: dict[bytes, int] = {}  # the number of the round before which each was added
        self._round = 0
        self._flush = 0  # how often to try that, if the server is to be emptied
        self._timer: IDelayedCall | None = None

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, key: bytes) -> None:
        """Owe the delete of a key."""
        if len(self._keys) < self._limit or key in self._keys:
            self._keys[key] = self._round
        elif not self._flush:
            self._flush = _FLUSH_TRIES
            self._log.warn(
                "memcached {name} has missed more than {limit} changes: it will be emptied when it is back",
                name=self._name,
                limit=self._limit,
            )

    def commands(self, limits: Limits, keys: Iterable[bytes] | None = None) -> Iterator[Command]:
        """Make the commands, which tell this object what came of them.

        :param keys: those that are meant; all by default.
        """
        self._round += 1
        if self._flush and keys is None:
            yield FlushAll(limits, self, (self._round, None))
            return
        chosen = list(self._keys if keys is None else keys)
        for begin in range(0, len(chosen), _KEYS_A_COMMAND):
            part = chosen[begin : begin + _KEYS_A_COMMAND]
            yield DeleteMany(part, limits, self, (self._round, part))

    def answered(self, _: object, token: tuple[int, list[bytes] | None]) -> None:
        """Hear that the keys (all with ``None``) are deleted; see :class:`~socketmap_memcache.asker.Asker`."""
        sent, keys = token
        if keys is None:
            self._flush = 0
        for key in list(self._keys) if keys is None else keys:
            if self._keys.get(key, sent) < sent:
                del self._keys[key]

    def failed(self, failure: Failure, token: tuple[int, list[bytes] | None]) -> None:
        """Hear that they may not be deleted: it is tried again later, or on the next connection."""
        if token[1] is None and self._flush:
            self._flush -= 1
            if not self._flush:
                self._log.error(
                    "memcached {name} could not be emptied ({reason}): it may have old values until their ttl is over",
                    name=self._name,
                    reason=failure.getErrorMessage(),
                )
        if self._timer is None:
            self._timer = self._reactor.callLater(REFUSED_PAUSE, self._try_again)

    def _try_again(self) -> None:
        self._timer = None
        self._send()

    def bequeath(self, heir: OwedDeletes) -> None:
        """Let another client of the same server owe all of it, too."""
        for key in list(self._keys):  # in one go: at a reload it is done in a thread
            heir.add(key)
        heir._flush = max(heir._flush, self._flush)

    def stop(self) -> None:
        """Do not try again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class DeleteMany(Command):
    """Several ``delete`` in a row; has a result when none is refused."""

    __slots__ = ("_left", "_refusal")

    repeated = False

    def __init__(self, keys: list[bytes], limits: Limits, asker: Any, token: Any) -> None:
        super().__init__(b"", b"".join(map(memcache.delete, keys)), limits, asker, token)
        self._left = len(keys)
        self._refusal: CommandRefusedError | None = None

    def take(self, reader: ReplyReader) -> object:
        limit = self.limits.line_size_limit
        while self._left:
            if not reader.next_is(b"DELETED\r\n", limit) and not reader.next_is(b"NOT_FOUND\r\n", limit):
                try:
                    if super().take(reader) is UNFINISHED:
                        return UNFINISHED
                except CommandRefusedError as refusal:
                    self._refusal = refusal
            self._left -= 1
        if self._refusal is not None:
            raise self._refusal
        return None

    def result(self, reply: Reply) -> object:
        raise unexpected(reply)


class FlushAll(Command):
    """``flush_all``: everything is deleted."""

    __slots__ = ()

    repeated = False

    def __init__(self, limits: Limits, asker: Any, token: Any) -> None:
        super().__init__(b"", b"flush_all\r\n", limits, asker, token)

    def result(self, reply: Reply) -> object:
        if reply.status != b"OK":
            raise unexpected(reply)
        return None
