"""The servers that ``memcache`` names in a ``.cf`` file: one, as memcache_table(5) has it, or several with weights."""

from __future__ import annotations

import attrs

from socketmap_memcache.config.syntax import split_list, split_option, strip_braces
from socketmap_memcache.memcache.ring import label, point_counts
from socketmap_memcache.memcache.server import Server

#: Far more than anybody needs. (nutcracker adds weights up in 32 bits.)
_LARGEST_WEIGHT = 1_000_000


@attrs.frozen
class WeightedServer:
    """A server, and its share of the keys.

    :ivar weight: 1 or more; a server with twice the weight has twice the keys.
    """

    server: Server
    weight: int = 1

    @property
    def label(self) -> str:
        """What stands for the server on a :class:`~socketmap_memcache.memcache.ring.Ring`."""
        return label(self.server.host or self.server.path, self.server.port)


def parse_server_list(text: str) -> list[WeightedServer]:
    """Read servers between commas and blanks, each as ``inet:host:port`` or ``{ inet:host:port, weight=number }``.

    :return: at least one; the labels of all differ.
    :raises ValueError: what is wrong with the first that cannot be used.
    """
    # Where nothing is written, Server.parse says what to write.
    servers = [_parse_entry(entry) for entry in split_list(text) or [text]]
    names: dict[str | tuple[str, int], str] = {}
    for entry in servers:
        name, place = entry.server.name, entry.server.place
        if place in names:
            raise ValueError(f"{name} is the same server as {names[place]}; for more keys give it a weight")
        names[place] = name
    counts = point_counts([entry.weight for entry in servers])
    if 0 in counts:
        entry = servers[counts.index(0)]
        raise ValueError(f"{entry.server.name}: with a weight of {entry.weight} beside the others it would get no keys")
    return servers


def _parse_entry(entry: str) -> WeightedServer:
    if not entry.startswith("{"):
        return WeightedServer(_parse_server(entry))
    name, *options = split_list(strip_braces(entry)) or [""]
    server, weight = _parse_server(name), 1
    for option in options:
        option_name, value = split_option(option)
        if option_name != "weight":
            raise ValueError(f"{entry}: unknown option {option_name!r}; there is only weight=number")
        weight = _parse_weight(value, entry)
    return WeightedServer(server, weight)


def _parse_server(text: str) -> Server:
    if text == "memory:":
        raise ValueError("memory: cannot be one of several servers, nor have a weight")
    return Server.parse(text)


def _parse_weight(text: str, entry: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= _LARGEST_WEIGHT:
        raise ValueError(f"{entry}: a weight is a whole number from 1 to {_LARGEST_WEIGHT}")
    return int(text)
