"""Greylisting through the service, beside postgrey and grossd: triplets that are new, and triplets that have passed.

postgrey and the service have the same whitelists, auto-whitelisting, and log each decision to a file, as grossd does.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import attrs

from benchmarks.grossd import Grossd
from benchmarks.load import Load, Result
from benchmarks.rows import Row
from benchmarks.service import InstalledService
from benchmarks.session import Bench, fastest, rates
from benchmarks.triplets import whitelist, write_triplets
from tests.integration.harness.memcached import Memcached
from tests.integration.harness.postgrey import Postgrey
from tests.integration.harness.processes import free_port, scratch_directory, write_config

# More than any of them decides on in a second.
_NEW_PER_SECOND = 75_000
_DELAY = 1

# grossd remembers by Bloom filters, which take a new triplet for a known one now and then.
_STRAYS_OF_GROSSD = 0.01

_POSTGREY = "postgrey"
_GROSSD = "grossd"
_MEMCACHED = "greylist in memcached"
_LMDB = "greylist in lmdb"
_WORKERS = ", workers = 2"


@attrs.frozen
class _Greylist:
    """One that is measured."""

    name: str
    address: str
    pid: int
    directory: Path

    def measure_new(self, connections: int, seconds: float, name: str) -> Result:
        """Ask for triplets that no other ``name`` has."""
        count = int(_NEW_PER_SECOND * seconds)
        load = Load(write_triplets(self.directory / "new", count, name), seconds)
        strays = _STRAYS_OF_GROSSD if self.name == _GROSSD else 0.0
        what = f"{self.name}, new"
        return load.run(what, "policy", self.address, connections, self.pid, expected="miss", strays=strays)

    def measure_known(self, connections: int, seconds: float, count: int) -> Result:
        """Ask for triplets that are known, and whose delay is over."""
        load = Load(write_triplets(self.directory / "known", count, "known"), seconds)
        load.run("", "policy", self.address, connections, self.pid, requests=count, expected="miss")
        time.sleep(_DELAY + 1)
        load.run("", "policy", self.address, connections, self.pid, requests=count)
        return load.run(f"{self.name}, known", "policy", self.address, connections, self.pid)


def measure_greylisting(bench: Bench) -> Iterator[Row]:
    """Measure new triplets, with 8 and with 64 connections, and known ones with 64.

    :raises RuntimeError: an answer was not the one expected.
    """
    with ExitStack() as stack:
        measured = _start(stack)
        sides = [(name, connections) for name in measured for connections in (8, 64)]
        sides.remove((_GROSSD, 8))
        names = iter(range(bench.rounds * len(sides)))

        def ask(name: str, connections: int) -> Result:
            return measured[name].measure_new(connections, bench.seconds, f"new{next(names)}")

        results = bench.in_turn(*(lambda side=side: ask(*side) for side in sides))
        best = {side: fastest(found) for side, found in zip(sides, results, strict=True)}
        for workers in ("", _WORKERS):
            for connections in (8, 64):
                yield _row(best, _MEMCACHED + workers, _POSTGREY, connections, 12.0, 20.0)
            yield _row(best, _MEMCACHED + workers, _GROSSD, 64, 5.0, 10.0)
            for connections in (8, 64):
                yield _row(best, _LMDB + workers, _POSTGREY, connections, 5.0, 10.0)
        yield from _measure_known(bench, measured)


def _measure_known(bench: Bench, measured: dict[str, _Greylist]) -> Iterator[Row]:
    found = {}
    for name in (_POSTGREY, _MEMCACHED, _LMDB):
        found[name] = measured[name].measure_known(64, bench.seconds, bench.backup_keys)
        bench.report(found[name])
    base = found.pop(_POSTGREY)
    for ours in found.values():
        yield Row(f"{ours.name}, 64 clients, to postgrey", ours.rate / base.rate, " times", rates(ours, base))


def _start(stack: ExitStack) -> dict[str, _Greylist]:
    directory = stack.enter_context(scratch_directory())
    clients = directory / "whitelist_clients"
    clients.write_text("".join(whitelist()))
    postgrey = stack.enter_context(Postgrey(directory, [f"--delay={_DELAY}"], clients.read_text()))
    grossd = stack.enter_context(Grossd(directory / "grossd", _DELAY))
    found = {
        _POSTGREY: _Greylist(_POSTGREY, postgrey.address, postgrey.pid, directory),
        _GROSSD: _Greylist(_GROSSD, grossd.address, grossd.pid, directory),
    }
    memcached = stack.enter_context(Memcached(directory, options=("-m", "1024")))
    table = f"memcache:{write_config(directory / 'greylist.cf', f'memcache = {memcached.address}')}"
    for workers, mark in ((1, ""), (2, _WORKERS)):
        for name, greylist_table in ((_MEMCACHED, table), (_LMDB, f"lmdb:{directory}/greylist.{workers}")):
            config = (
                f"policies = greylist\ngreylist_table = {greylist_table}\ngreylist_delay = {_DELAY}s\n"
                f"greylist_client_whitelist = {clients}\nworkers = {workers}\n"
            )
            address = f"inet:127.0.0.1:{free_port()}"
            own = directory / f"service.{len(found)}"
            service = stack.enter_context(InstalledService(own, config, policy_listen=[address]))
            found[name + mark] = _Greylist(name + mark, address, service.pid, directory)
    return found


def _row(
    best: dict[tuple[str, int], Result],
    name: str,
    base: str,
    connections: int,
    mark: float,
    aim: float,
) -> Row:
    ours, theirs = best[name, connections], best[base, connections]
    what = f"{name}, {connections} clients, to {base}"
    return Row(what, ours.rate / theirs.rate, " times", rates(ours, theirs), mark, aim)
