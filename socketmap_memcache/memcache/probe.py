"""The commands whose only purpose is their reply."""

from __future__ import annotations

from typing import Any

from socketmap_memcache.asker import FIRING, Asker
from socketmap_memcache.memcache.command import UNFINISHED, CommandRefusedError, Delete
from socketmap_memcache.memcache.interface import Limits
from socketmap_memcache.protocols.memcache import MemcacheError, Reply, ReplyReader

#: The key that they delete. It need not exist, and a proxy takes the command, too.
PROBE_KEY = b"socketmap-memcache-probe"


class Probe(Delete):
    """Finds out whether a server answers: the first command of a connection to one that did not."""

    __slots__ = ()

    changes = False  # there is nothing to lose
    repeated = False

    def __init__(self, timeout: float, asker: Asker, token: Any) -> None:
        super().__init__(PROBE_KEY, Limits(timeout=timeout, max_try=1), asker, token)


class _Fence(Delete):
    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(PROBE_KEY, Limits(), FIRING, None)

    def take(self, reader: ReplyReader) -> object:
        """Say whether the reply is one that no look-up has. An error is not, but the server may be in order."""
        if reader.next_is(b"NOT_FOUND\r\n", self.limits.line_size_limit):
            return True
        try:
            result = super().take(reader)
        except CommandRefusedError:
            return False
        return result if result is UNFINISHED else True

    def result(self, reply: Reply) -> bool:
        if reply.status == b"END":
            raise MemcacheError("out of step: the reply to a look-up where that to another command should be")
        return super().result(reply)


#: Follows look-ups whose misses have to be certain. ``END`` names no key: from a server, or a proxy, that has fallen
#: one reply behind it looks like any other. It is believed when the reply to this, which is of another kind, comes in
#: its place.
FENCE = _Fence()
