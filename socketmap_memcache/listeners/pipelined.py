"""How many requests there may be, of all clients that send several without waiting for the replies."""

from __future__ import annotations

import attrs

#: Requests of all clients together. Their replies may take 100,000 bytes each.
PIPELINED_LIMIT = 2000


@attrs.define
class Pipelined:
    """Counts the requests that wait for their replies, but for one of each client's: that one it may always have.

    So a client that has one at a time, as Postfix has, is never held up by those that send many.

    :ivar limit: how many there may be; may be set at any time.
    :ivar count: how many there are.
    """

    limit: int = PIPELINED_LIMIT
    count: int = 0
