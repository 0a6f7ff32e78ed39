"""Greylisting through the service, beside postgrey: triplets that are new, and triplets that have passed.

Both have the same whitelists, auto-whitelisting, and log each decision to a file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random

from benchmarks.load import Load, Result
from tests.integration.harness.memcached import Memcached
from tests.integration.harness.postgrey import Postgrey
from tests.integration.harness.processes import free_port, scratch_directory, write_config
from tests.integration.harness.service import Service

CONNECTIONS = (1, 8, 64)

#: The mark: with 8 connections, new triplets in memcached are decided so many times as fast as by postgrey.
LEAST_RATIO = 10.0
MARK_CONNECTIONS = 8

_POSTGREY = "postgrey"
_MEMCACHED = "greylisting in memcached"
_LMDB = "greylisting in lmdb"

# More than any of them decides on in a few seconds.
_NEW = 150_000
_DELAY = 1


def measure_greylisting(seconds: float, known: int, report: Callable[[Result], None]) -> list[Result]:
    """Measure postgrey and the service in turn.

    :param seconds: how long each measurement takes.
    :param known: triplets that have passed before they are asked for again.
    :param report: gets each result as it comes.
    :raises RuntimeError: an answer was not the one expected.
    """
    results: list[Result] = []

    def add(result: Result) -> None:
        results.append(result)
        report(result)

    with scratch_directory() as directory, Memcached(directory) as memcached:
        clients = directory / "whitelist_clients"
        clients.write_text("".join(_whitelist()))
        table = f"memcache:{write_config(directory / 'greylist.cf', f'memcache = {memcached.address}')}"
        tables = {_MEMCACHED: table, _LMDB: f"lmdb:{directory}/greylist"}
        with Postgrey(directory, [f"--delay={_DELAY}"], clients.read_text()) as postgrey:
            _measure(_POSTGREY, postgrey.address, postgrey.pid, directory, seconds, known, add)
        for name, greylist_table in tables.items():
            with _service(directory, greylist_table, clients) as service:
                _measure(name, service.policy_addresses[0], service.pid, directory, seconds, known, add)
    return results


def greylisting_mark(results: Sequence[Result]) -> tuple[str, bool]:
    """Return the mark in words, and whether it is met."""
    rates = {(result.name, result.connections): result.rate for result in results}
    ratio = rates[f"{_MEMCACHED}, new", MARK_CONNECTIONS] / rates[f"{_POSTGREY}, new", MARK_CONNECTIONS]
    text = f"greylisting, {MARK_CONNECTIONS} connections: {ratio:.1f} times postgrey, at least {LEAST_RATIO:g}"
    return text, ratio >= LEAST_RATIO


@contextmanager
def _service(directory: Path, table: str, clients: Path) -> Iterator[Service]:
    config = (
        f"policies = greylist\ngreylist_table = {table}\ngreylist_delay = {_DELAY}s\n"
        f"greylist_client_whitelist = {clients}\n"
    )
    address = f"inet:127.0.0.1:{free_port()}"
    with Service(directory, config, policy_listen=[address]) as service:
        yield service


def _measure(
    name: str,
    address: str,
    pid: int,
    directory: Path,
    seconds: float,
    known: int,
    report: Callable[[Result], None],
) -> None:
    for connections in CONNECTIONS:
        load = Load(_triplets(directory / "new", _NEW, str(connections)), seconds)
        report(load.run(f"{name}, new", "policy", address, connections, pid, expected="miss"))
    load = Load(_triplets(directory / "known", known, "known"), seconds)
    load.run(name, "policy", address, MARK_CONNECTIONS, pid, requests=known, expected="miss")
    time.sleep(_DELAY + 1)
    load.run(name, "policy", address, MARK_CONNECTIONS, pid, requests=known)
    for connections in CONNECTIONS:
        report(load.run(f"{name}, known", "policy", address, connections, pid))


def _triplets(path: Path, count: int, name: str) -> Path:
    """Write triplets of different clients, for load.c; those of another name are others."""
    random = Random(name)  # noqa: S311 (the same each time)
    with path.open("w") as file:
        for number in range(count):
            address = ".".join(str(random.randrange(1, 190)) for _ in range(4))
            file.write(f"{address} sender{number}.of.{name}@example.net user{number % 5000}@example.org\n")
    return path


def _whitelist() -> Iterator[str]:
    """Make a list of clients as long, and of the same kinds of entries, as the one that comes with postgrey."""
    for number in range(150):
        yield f"mail{number}.example.com\n"
        yield f"198.51.{number}.0/24\n"
    for number in range(40):
        yield f"/^out-{number}-[0-9]+\\.mx\\.example\\.edu$/\n"
