"""Real Redis servers and sentinels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .processes import Server, accepts, connect, find_program, free_port

#: What a sentinel calls the master.
MASTER = "mail"


class RedisServer(Server):
    """A redis-server on a free port, which it keeps when it is started again; nothing is on the disk.

    :ivar address: ``inet:127.0.0.1:port``, as a ``.cf`` file wants it.
    """

    def __init__(
        self, directory: Path, name: str = "redis", options: Sequence[str] = (), *, password: str = ""
    ) -> None:
        """:param options: more arguments, for example ``("--replicaof", "127.0.0.1", "6379")``.
        :param password: what ``options`` say that it wants to hear before it answers.
        """
        self._password = password
        self.port = free_port()
        self.address = f"inet:127.0.0.1:{self.port}"
        self.place = directory / name
        self.place.mkdir()
        usual = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.place)]
        usual += ["--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0"]
        super().__init__([find_program("redis-server"), *usual, *options], self.place / "log")

    def ready(self) -> bool:
        return accepts(self.address)

    def stop(self) -> int:
        """Kill it: there is nothing to save, and a frozen process sees no SIGTERM."""
        self.kill()
        return self.child.returncode

    def end_sessions(self) -> None:
        """End the connections of all others, as an administrator may."""
        self.command("CLIENT", "KILL", "TYPE", "normal")

    def command(self, *words: str | bytes) -> bytes:
        """Do one thing on a new connection, and return the reply as it comes, without its last line end."""
        raw = [word.encode() if isinstance(word, str) else word for word in words]
        with connect(self.address) as connection, connection.makefile("rb") as replies:
            if self._password:
                connection.sendall(_encode([b"AUTH", self._password.encode()]))
                assert replies.readline() == b"+OK\r\n"
            connection.sendall(_encode(raw) + _encode([b"PING"]))
            reply = b""
            while not reply.endswith(b"\r\n+PONG\r\n"):
                line = replies.readline()
                assert line, reply
                reply += line
            return reply.removesuffix(b"\r\n+PONG\r\n")


class Sentinel(RedisServer):
    """A redis-sentinel that is enough by itself to promote a replica, 200 ms after the master's death."""

    def __init__(self, directory: Path, name: str, master: RedisServer, password: str) -> None:
        """:param password: what it wants to hear before it answers."""
        super().__init__(directory, name, password=password)
        config = self.place / "sentinel.conf"
        text = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f"dir {self.place}",
            f"sentinel monitor {MASTER} 127.0.0.1 {master.port} 1",
            f"sentinel down-after-milliseconds {MASTER} 200",
            f"sentinel failover-timeout {MASTER} 2000",
            f"requirepass {password}",
        ]
        config.write_text("".join(f"{line}\n" for line in text))
        self.argv = [find_program("redis-sentinel"), str(config)]


def _encode(words: Sequence[bytes]) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)
