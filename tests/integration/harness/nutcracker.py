"""A real nutcracker (twemproxy), which looks like one memcached and keeps keys on several."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from socketmap_memcache.memcache.server_list import WeightedServer

from .processes import Server, accepts, find_program, free_port

_POOL = """\
pool:
  listen: 127.0.0.1:{port}
  hash: md5
  distribution: ketama
  auto_eject_hosts: false
  timeout: {timeout}
  servers:
"""


class Nutcracker(Server):
    """A nutcracker on a free port, with the ring of libmemcached.

    :ivar address: ``inet:127.0.0.1:port``, as a ``.cf`` file wants it.
    """

    def __init__(self, directory: Path, servers: Iterable[WeightedServer], *, timeout: int = 500) -> None:
        """:param timeout: milliseconds that it waits for a server."""
        port = free_port()
        self.address = f"inet:127.0.0.1:{port}"
        config, log = directory / "nutcracker.yml", directory / "nutcracker.log"
        lines = [f"   - {_entry(entry)}\n" for entry in servers]
        config.write_text(_POOL.format(port=port, timeout=timeout) + "".join(lines))
        statistics = ["-a", "127.0.0.1", "-s", str(free_port())]
        files = ["-c", str(config), "-o", str(log), "-p", str(directory / "nutcracker.pid")]
        super().__init__([find_program("nutcracker"), *statistics, *files], log)

    def ready(self) -> bool:
        return accepts(self.address)


def _entry(entry: WeightedServer) -> str:
    server = entry.server
    if server.path:
        # The name is what counts on the ring; without one that would be the path alone.
        return f"{server.path}:{entry.weight} {entry.label}"
    return f"{server.host}:{server.port}:{entry.weight}"
