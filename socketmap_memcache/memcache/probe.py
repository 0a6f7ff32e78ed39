"""The commands whose only purpose is their reply."""

from __future__ import annotations

from typing import Any

from socketmap_memcache.asker import FIRING, Asker
from socketmap_memcache.memcache.command import CommandRefusedError, Delete
from socketmap_memcache.memcache.interface import Limits
from socketmap_memcache.protocols.memcache import MemcacheError, ReplyReader

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
        """Take any reply that no look-up has: an error, too, as from a proxy that has lost the probe key's server."""
        try:
            return reader.next_is(b"NOT_FOUND\r\n", self.limits.line_size_limit) or super().take(reader)
        except CommandRefusedError:
            return None
        except MemcacheError as error:
            raise MemcacheError(f"out of step: {error}, where that to another command should be") from None


#: Follows look-ups whose misses have to be certain. ``END`` names no key: from a server, or a proxy, that has fallen
#: one reply behind it looks like any other. It is believed when the reply to this, which is of another kind, comes in
#: its place.
FENCE = _Fence()
