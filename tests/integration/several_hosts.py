"""A site of two MX hosts as docs/several-hosts.rst describes it: its files, with the addresses of a test in them."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import attrs
import psycopg

from .harness.memcached import Memcached
from .harness.postgresql import Postgresql, make_cluster
from .harness.processes import Server, free_port, write_config
from .harness.redis import RedisServer
from .harness.service import Service

DOCUMENT = (Path(__file__).parents[2] / "docs" / "several-hosts.rst").read_text()

#: The lines of literal blocks.
BLOCKS = [textwrap.dedent(block).strip() for block in re.findall(r"::\n\n((?:    .*\n|\n)+)", DOCUMENT)]

#: The contents of the files that are shown, by their names.
FILES = {
    name: f"{text}\n"
    for name, text in (
        block.removeprefix("# ").split("\n", maxsplit=1) for block in BLOCKS if block.startswith("# /etc/")
    )
}

#: The commands to begin with.
COMMANDS = [line for block in BLOCKS if "socketmap-memcache " in block for line in block.splitlines()]

ETC = "/etc/socketmap-memcache/"
PASSWORD = "secret"

#: Seconds: greylisting's delay at the site, and the time that a policy has.
DELAY, POLICY_TIMEOUT = 2, 10

KINDS = ["pgsql", "redis"]


class Database(Protocol):
    """A server, and what may happen to it."""

    def start(self) -> object:
        """Start it."""

    def stop(self) -> int:
        """End it at once."""

    def end_sessions(self) -> None:
        """End all connections."""

    def freeze(self) -> None:
        """Let it hang."""

    def thaw(self) -> None:
        """End :meth:`freeze`."""


class Host(Service):
    """An MX host's service.

    :ivar lives: how often it was killed.
    :ivar place: where its files are.
    """

    def __init__(self, place: Path, addresses: dict[str, str], kind: str) -> None:
        """Write the files of the document.

        :param addresses: what stands for the addresses of the document.
        :param kind: ``pgsql`` or ``redis``.
        """
        place.mkdir()
        self.lives = 0
        self.place = place
        password = place / "database-password"
        password.write_text(f"{PASSWORD}\n")
        password.chmod(0o600)
        own = {f"inet:127.0.0.1:{port}": f"inet:127.0.0.1:{free_port()}" for port in (10020, 10023)}
        self._moved = {ETC: f"{place}/", **own, **addresses}
        for file in ("greylist.cf", "aliases.cf", f"{kind}-greylist.cf", f"{kind}-aliases.cf"):
            text = FILES[ETC + file]
            if kind == "redis":
                text = re.sub(r"backup = .*pgsql-(\w+)\.cf.*", _redis_line, text)
            write_config(place / file, self.move(text))
        config = self.move(FILES[f"{ETC}main.cf"])
        assert config.startswith("socketmap_listen = ")
        _, _, rest = config.split("\n", maxsplit=2)
        super().__init__(
            place,
            f"{rest}greylist_delay = {DELAY}s\npolicy_timeout = {POLICY_TIMEOUT}s\n",
            listen=[own["inet:127.0.0.1:10020"]],
            policy_listen=[own["inet:127.0.0.1:10023"]],
        )

    def move(self, text: str) -> str:
        """Put what is this host's into a text of the document."""
        for shown, moved in self._moved.items():
            text = text.replace(shown, moved)
        return text


def _redis_line(line: re.Match[str]) -> str:
    (shown,) = re.findall(rf"^ +(backup = .*redis-{line[1]}\.cf.*)$", DOCUMENT, re.MULTILINE)
    return str(shown)


@attrs.frozen
class Site:
    """Two hosts.

    :ivar kind: of the database.
    :ivar directory: where all is.
    """

    kind: str
    directory: Path
    hosts: tuple[Host, Host]
    memcacheds: list[Memcached]
    database: Database

    def empty_memcached(self) -> None:
        """Empty all of them."""
        for server in self.memcacheds:
            server.flush()


@contextmanager
def make_site(directory: Path, kind: str) -> Iterator[Site]:
    """Start all but the hosts' services, and stop all."""
    directory.mkdir()
    memcacheds = []
    for number in range(1, 4):
        place = directory / f"mc{number}"
        place.mkdir()
        memcacheds.append(Memcached(place))
    database, address = _make_database(directory, kind)
    addresses = {f"inet:mc{number}.example.com:11211": server.address for number, server in enumerate(memcacheds, 1)}
    addresses |= address
    hosts = Host(directory / "mx1", addresses, kind), Host(directory / "mx2", addresses, kind)
    others: list[Server] = [*memcacheds, database]
    with ThreadPoolExecutor() as threads:
        try:
            list(threads.map(lambda server: server.start(), others))
            if isinstance(database, Postgresql):
                _prepare(database)
            yield Site(kind, directory, hosts, memcacheds, database)
        finally:
            list(threads.map(lambda server: server.stop(), [*hosts, *others]))


def _make_database(directory: Path, kind: str) -> tuple[Postgresql | RedisServer, dict[str, str]]:
    if kind == "pgsql":
        server = Postgresql(directory, make_cluster(directory))
        place = server.address.removeprefix("inet:")
        return server, {"hosts = db1.example.com": f"hosts = {place}", "host db1.example.com": f"host {place}"}
    options = [f"--{word}" if index == 0 else word for line in _redis_conf() for index, word in enumerate(line)]
    redis = RedisServer(directory, options=options, password=PASSWORD)
    return redis, {"inet:db1.example.com:6379": redis.address}


def _redis_conf() -> list[list[str]]:
    return [line.split() for line in FILES["/etc/redis/redis.conf"].splitlines()]


def _prepare(server: Postgresql) -> None:
    (statements,) = [block for block in BLOCKS if block.startswith("CREATE ROLE")]
    with server.connect() as connection:
        assert isinstance(connection, psycopg.Connection)
        for statement in statements.splitlines():
            connection.execute(statement.encode())
