"""Which of several servers has a key: the ring that libmemcached calls weighted ketama.

Each server owns points on a ring of 2**32 numbers. The MD5 digest of a key is such a number, and the key belongs to the
server of the first point from there on. The rules are those of libmemcached (``update_continuum`` in hosts.cc) with
MEMCACHED_BEHAVIOR_KETAMA_WEIGHTED, so that all its users find a key on the same server: same labels, same
numbers, same rounding.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from hashlib import md5

_POINTS = 160  # of a server on average
_POINTS_OF_DIGEST = 4

_single = struct.Struct("f")
_number = struct.Struct("<I").unpack_from
_numbers = struct.Struct(f"<{_POINTS_OF_DIGEST}I")


class Ring:
    """Servers by key; they are numbered as they were given."""

    def __init__(self, servers: Sequence[tuple[str, int]]) -> None:
        """Make a ring, in a fraction of a millisecond for each server.

        :param servers: the label of each (see :func:`label`) and its weight. All labels differ, all weights are above
            0, and there is at least one.
        """
        points = sorted(_points(servers))
        self._numbers = [number for number, _ in points]
        self._owners = [owner for _, owner in points]
        # Behind the last point the first follows.
        self._owners.append(self._owners[0])
        self._orders: list[tuple[int, ...] | None] = [None] * len(self._owners)
        self._servers = range(len(servers))

    def index_of(self, key: bytes) -> int:
        """Return the number of the server that a key belongs to."""
        return self._owners[bisect_left(self._numbers, _number(md5(key, usedforsecurity=False).digest())[0])]

    def order(self, key: bytes) -> tuple[int, ...]:
        """Return the numbers of all servers, in the order in which they come on the ring from the key on.

        The first is that of :meth:`index_of`. The others stay in this order when one is taken away, if all weights are
        the same.
        """
        position = bisect_left(self._numbers, _number(md5(key, usedforsecurity=False).digest())[0])
        order = self._orders[position]
        if order is None:
            # Those without a point, whose weight is next to nothing, come last.
            following = (*self._owners[position:], *self._owners[:position], *self._servers)
            order = self._orders[position] = tuple(dict.fromkeys(following))
        return order


def label(host: str, port: int) -> str:
    """Return what stands for a server on the ring: the same text gives the same points.

    :param host: name, address without brackets, or path of a UNIX socket.
    :param port: 0 for a UNIX socket.
    """
    return host if port == 11211 else f"{host}:{port}"


def point_counts(weights: Sequence[int]) -> list[int]:
    """Return how many points each server gets; it may be none beside servers of far greater weight."""
    total = _float32(sum(weights))
    return [_point_count(_float32(weight), total, len(weights)) for weight in weights]


def _point_count(weight: float, total: float, servers: int) -> int:
    # In C this is done with floats of 32 bits, and what is rounded down depends on it.
    share = _float32(_float32(weight / total) * _POINTS)
    digests = _float32(_float32(share / _POINTS_OF_DIGEST) * servers)
    return int(_float32(digests + 0.0000000001)) * _POINTS_OF_DIGEST


def _float32(number: float) -> float:
    rounded: float = _single.unpack(_single.pack(number))[0]
    return rounded


def _points(servers: Sequence[tuple[str, int]]) -> Iterator[tuple[int, int]]:
    counts = point_counts([weight for _, weight in servers])
    for owner, ((name, _), count) in enumerate(zip(servers, counts, strict=True)):
        encoded = name.encode(errors="surrogateescape")
        for counter in range(count // _POINTS_OF_DIGEST):
            for number in _numbers.unpack(md5(b"%b-%d" % (encoded, counter), usedforsecurity=False).digest()):
                yield number, owner
