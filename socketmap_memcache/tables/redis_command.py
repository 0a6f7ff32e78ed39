"""One command to Redis, and what a reply means for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from socketmap_memcache.asker import Asker
from socketmap_memcache.errors import PermanentError, TableError, TemporaryError
from socketmap_memcache.pipelined_command import PipelinedCommand
from socketmap_memcache.protocols.redis import ErrorReply, Reply, TooLong, command

#: Bytes of a value. Postfix takes no more than 100,000 from a socketmap: server.
VALUE_LIMIT = 2**20

#: Errors after which another try is of no use, but for which the connection is good.
_PERMANENT = {b"WRONGTYPE", b"NOPERM", b"MOVED", b"ASK"}


class Command(PipelinedCommand):
    """A command, and what a reply means for it.

    :ivar meaning: gives the result for a reply other than an error; raises ``ValueError`` for one that cannot be.
    :ivar again: whether it may be sent again when nobody knows whether the server has done it.
    """

    __slots__ = ("again", "meaning")

    def __init__(
        self, wire: bytes, meaning: Callable[[Reply], Any], asker: Asker, token: Any, again: bool = True
    ) -> None:
        """Make a command that was not sent yet."""
        super().__init__(wire, asker, token)
        self.meaning = meaning
        self.again = again

    def answer(self, reply: Reply, server: str) -> None:
        """Hand over what a reply means, which may be a failure.

        :param server: its name, for errors.
        """
        if isinstance(reply, ErrorReply):
            self.fail(_error(reply, server))
            return
        try:
            result = self.meaning(reply)
        except ValueError as error:
            self.fail(PermanentError(f"redis {server}: {error}"))
        except Exception:  # noqa: BLE001 (whoever asked has to hear of it)
            self._log.failure("a reply of Redis led to an unforeseen error")
            self.fail(TemporaryError(f"redis {server}: internal error, see the log"))
        else:
            self.asker.answered(result, self.token)


def _error(reply: ErrorReply, server: str) -> TableError:
    if reply.code in {b"MOVED", b"ASK"}:
        return PermanentError(f"redis {server}: is a node of a Redis Cluster, which is not supported ({reply})")
    kind = PermanentError if reply.code in _PERMANENT else TemporaryError
    return kind(f"redis {server}: {reply}")


# The commands that tables use.


def get(key: bytes, asker: Asker, token: Any) -> Command:
    """``GET``: the value, or ``None``."""
    return Command(b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(key), key), value, asker, token)


def set_(key: bytes, stored: bytes, ttl: int | None, asker: Asker, token: Any) -> Command:
    """``SET``: ``True``.

    :param ttl: in seconds; ``None`` for ever.
    """
    end = () if ttl is None else (b"EX", b"%d" % ttl)
    return Command(command(b"SET", key, stored, *end), _true, asker, token)


def delete(key: bytes, asker: Asker, token: Any) -> Command:
    """``DEL``: whether the key was there, which a second try could not tell."""
    return Command(command(b"DEL", key), _whether, asker, token, again=False)


def get_many(keys: list[bytes], asker: Asker, token: Any) -> Command:
    """``MGET``: the values; ``None`` for a key that does not exist, or is no string."""

    def values(reply: Reply) -> list[bytes | None]:
        if not isinstance(reply, list) or len(reply) != len(keys):
            raise _unexpected(reply)
        return [value(each) for each in reply]

    return Command(command(b"MGET", *keys), values, asker, token)


def scan(cursor: bytes, pattern: bytes, count: int, asker: Asker, token: Any) -> Command:
    """``SCAN``: the next cursor, ``b"0"`` at the end, and some keys, perhaps none."""
    return Command(command(b"SCAN", cursor, b"MATCH", pattern, b"COUNT", b"%d" % count), _keys, asker, token)


def value(reply: Reply) -> bytes | None:
    """Give the value that a reply is, or ``None``.

    :raises ValueError: it is something else.
    """
    if reply is None or type(reply) is bytes:
        return reply
    raise _unexpected(reply)


def _true(reply: Reply) -> bool:
    if reply != b"OK":
        raise _unexpected(reply)
    return True


def _whether(reply: Reply) -> bool:
    if not isinstance(reply, int):
        raise _unexpected(reply)
    return reply > 0


def _keys(reply: Reply) -> tuple[bytes, list[bytes]]:
    if isinstance(reply, list) and len(reply) == 2:
        cursor, keys = reply
        if isinstance(cursor, bytes) and isinstance(keys, list):
            return cursor, [key for key in keys if isinstance(key, bytes)]
    raise _unexpected(reply)


def _unexpected(reply: Reply) -> ValueError:
    if isinstance(reply, TooLong):
        return ValueError(f"a value of {reply.size} bytes; the limit is {VALUE_LIMIT}")
    return ValueError(f"unexpected reply {repr(reply)[:50]}")
