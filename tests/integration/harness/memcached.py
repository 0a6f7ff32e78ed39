"""A real memcached, and just enough of a client to fill it."""

from __future__ import annotations

import getpass
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .processes import Server, accepts, connect, find_program, free_port

if TYPE_CHECKING:
    from typing_extensions import Self


class Memcached(Server):
    """A memcached on a UNIX socket, or with ``tcp`` on a free port; it keeps its address when it is started again.

    :ivar address: ``unix:/path`` or ``inet:127.0.0.1:port``, as a ``.cf`` file wants it.
    """

    def __init__(self, directory: Path, *, tcp: bool = False, place: str = "", options: Sequence[str] = ()) -> None:
        """:param place: instead of ``tcp``: the loopback address and port to listen on, for example 127.1.2.3:11211.
        :param options: more arguments for memcached, for example ``("-I", "2m")``.
        """
        if tcp or place:
            host, _, port = (place or f"127.0.0.1:{free_port()}").rpartition(":")
            self.address = f"inet:{host}:{port}"
            listen = ["-l", host, "-p", port]
        else:
            path = directory / "memcached.sock"
            self.address = f"unix:{path}"
            listen = ["-s", str(path), "-a", "777"]
        argv = [find_program("memcached"), "-u", getpass.getuser(), "-U", "0", *listen, *options]
        super().__init__(argv, directory / "memcached.log")

    def ready(self) -> bool:
        return accepts(self.address)

    def stop(self) -> int:
        """Kill it: there is nothing to save, a frozen process sees no SIGTERM, and one that runs takes a second."""
        self.kill()
        return self.child.returncode

    def restart(self) -> Self:
        """Kill it, with all that it holds, and start it again on the same address."""
        self.kill()
        return self.start()

    def set(self, key: bytes, value: bytes, *, flags: int = 0, ttl: int = 0) -> None:
        """Store a value.

        :raises AssertionError: memcached did not.
        """
        reply = self.command(b"set %b %d %d %d\r\n%b\r\n" % (key, flags, ttl, len(value), value))
        assert reply == b"STORED", reply

    def get(self, key: bytes) -> bytes | None:
        """Return the value, or ``None`` when there is none."""
        with connect(self.address) as connection, connection.makefile("rb") as replies:
            connection.sendall(b"get %b\r\n" % key)
            first = replies.readline().split()
            if first == [b"END"]:
                return None
            assert first[0] == b"VALUE", first
            return replies.read(int(first[3]))

    def delete(self, key: bytes) -> bool:
        """Delete a key, and return whether it was there."""
        return self.command(b"delete %b\r\n" % key) == b"DELETED"

    def flush(self) -> None:
        """Forget everything."""
        assert self.command(b"flush_all\r\n") == b"OK"

    def command(self, request: bytes) -> bytes:
        """Send raw bytes on a new connection and return the first line of the reply, without its end."""
        with connect(self.address) as connection, connection.makefile("rb") as replies:
            connection.sendall(request)
            return replies.readline().rstrip(b"\r\n")

    def set_many(self, entries: dict[bytes, bytes]) -> None:
        """Store many values with one connection.

        :raises AssertionError: memcached refused one of them.
        """
        with connect(self.address) as connection, connection.makefile("rb") as replies:
            for key, value in entries.items():
                connection.sendall(b"set %b 0 0 %d\r\n%b\r\n" % (key, len(value), value))
                reply = replies.readline()
                assert reply == b"STORED\r\n", reply
