"""What has become known of several servers, and outlives the tables that use them, as at a reload."""

from __future__ import annotations

from collections import OrderedDict

import attrs


@attrs.define(eq=False)
class History:
    """For clusters of the same servers, in the same sequence, all of which change it.

    :ivar longest_life: seconds for which an entry may live, at most.
    :ivar missed: when a server, by its number, last missed a change, in reactor seconds.
    :ivar stand_ins: the servers that have a key in place of another, and until when.
    """

    longest_life: float = 0
    missed: dict[int, float] = attrs.field(factory=dict)
    stand_ins: OrderedDict[bytes, tuple[frozenset[int], float]] = attrs.field(factory=OrderedDict)
