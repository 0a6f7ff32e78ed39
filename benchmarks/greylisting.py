"""Greylisting through the service, beside postgrey and grossd: triplets that are new, and triplets that have passed.

postgrey and the service have the whitelists that come with postgrey, and auto-whitelisting. All log each decision to a
file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TypeAlias

import attrs

from benchmarks.grossd import Grossd
from benchmarks.load import Load, Result
from benchmarks.rows import Row
from benchmarks.service import InstalledService
from benchmarks.session import Bench, fastest, rates
from benchmarks.triplets import write_triplets
from tests.integration.harness.memcached import Memcached
from tests.integration.harness.postgrey import Postgrey
from tests.integration.harness.processes import free_port, scratch_directory, write_config

# More than any of them decides on in a second.
_NEW_PER_SECOND = 75_000
_DELAY = 1

# grossd remembers by Bloom filters, which take a new triplet for a known one now and then.
_STRAYS_OF_GROSSD = 0.01

# As Debian's package has them.
_LISTS = Path("/usr/share/postgrey")
_CLIENTS, _RECIPIENTS = _LISTS / "whitelist_clients", _LISTS / "whitelist_recipients"

_POSTGREY = "postgrey"
_GROSSD = "grossd"
_MEMCACHED = "greylist in memcached"
_FEATURES = "all features, in memcached"
_LMDB = "greylist in lmdb"
_WORKERS = ", workers = 2"

# The name of what is measured, and how many ask it.
_Side: TypeAlias = "tuple[str, int]"

_CONNECTIONS = (1, 8, 64)
_SIDES = (
    *((_POSTGREY, connections) for connections in _CONNECTIONS),
    (_GROSSD, 64),
    *(
        (name + workers, connections)
        for workers in ("", _WORKERS)
        for name in (_MEMCACHED, _LMDB)
        for connections in (8, 64)
    ),
    *((_FEATURES + workers, connections) for workers in ("", _WORKERS) for connections in _CONNECTIONS),
)


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

    def learn(self, count: int) -> None:
        """Let so many triplets pass, which are known then."""
        load = self._load_known(count, 0)
        load.run("", "policy", self.address, 64, self.pid, requests=count, expected="miss")
        time.sleep(_DELAY + 1)
        load.run("", "policy", self.address, 64, self.pid, requests=count)

    def measure_known(self, connections: int, seconds: float, count: int) -> Result:
        """Ask for those that :meth:`learn` has made known."""
        load = self._load_known(count, seconds)
        return load.run(f"{self.name}, known", "policy", self.address, connections, self.pid)

    def _load_known(self, count: int, seconds: float) -> Load:
        return Load(write_triplets(self.directory / "known", count, "known"), seconds)


def measure_greylisting(bench: Bench) -> Iterator[Row]:
    """Measure new triplets and known ones.

    :raises RuntimeError: an answer was not the one expected.
    """
    with ExitStack() as stack:
        measured = _start(stack)
        names = iter(range(bench.rounds * len(_SIDES)))

        def ask(name: str, connections: int) -> Result:
            return measured[name].measure_new(connections, bench.seconds, f"new{next(names)}")

        new = _best(bench, _SIDES, ask)
        for workers in ("", _WORKERS):
            for connections in (8, 64):
                yield _row(new, _MEMCACHED + workers, _POSTGREY, connections, 12.0, 20.0)
            yield _row(new, _MEMCACHED + workers, _GROSSD, 64, 5.0, 10.0)
            for connections in (8, 64):
                yield _row(new, _LMDB + workers, _POSTGREY, connections, 5.0, 10.0)
            yield from _features_rows(new, _FEATURES + workers)
        yield from _measure_known(bench, measured)


def _measure_known(bench: Bench, measured: dict[str, _Greylist]) -> Iterator[Row]:
    names = (_POSTGREY, _MEMCACHED, _LMDB, _FEATURES + _WORKERS)
    for name in names:
        measured[name].learn(bench.backup_keys)
    sides = [(name, connections) for name in names for connections in _CONNECTIONS]

    def ask(name: str, connections: int) -> Result:
        return measured[name].measure_known(connections, bench.seconds, bench.backup_keys)

    known = _best(bench, sides, ask)
    for name in (_MEMCACHED, _LMDB):
        for connections in _CONNECTIONS:
            yield _row(known, name, _POSTGREY, connections)
    yield from _features_rows(known, _FEATURES + _WORKERS)


def _best(bench: Bench, sides: Sequence[_Side], ask: Callable[[str, int], Result]) -> dict[_Side, Result]:
    results = bench.in_turn(*(partial(ask, *side) for side in sides))
    return {side: fastest(found) for side, found in zip(sides, results, strict=True)}


def _features_rows(best: dict[_Side, Result], name: str) -> Iterator[Row]:
    for connections in _CONNECTIONS:
        yield _row(best, name, _POSTGREY, connections, 10.0 if connections == 8 else None)


def _start(stack: ExitStack) -> dict[str, _Greylist]:
    directory = stack.enter_context(scratch_directory())
    lists = (_CLIENTS.read_text(), _RECIPIENTS.read_text())
    postgrey = stack.enter_context(Postgrey(directory, [f"--delay={_DELAY}"], *lists))
    grossd = stack.enter_context(Grossd(directory / "grossd", _DELAY))
    found = {
        _POSTGREY: _Greylist(_POSTGREY, postgrey.address, postgrey.pid, directory),
        _GROSSD: _Greylist(_GROSSD, grossd.address, grossd.pid, directory),
    }
    memcached = stack.enter_context(Memcached(directory, options=("-m", "1024")))
    table = f"memcache:{write_config(directory / 'greylist.cf', f'memcache = {memcached.address}')}"
    features = _write_features(directory)
    for workers, mark in ((1, ""), (2, _WORKERS)):
        lmdb = f"lmdb:{directory}/greylist.{workers}"
        for name, greylist_table, more in ((_MEMCACHED, table, ""), (_LMDB, lmdb, ""), (_FEATURES, table, features)):
            config = (
                f"policies = greylist\ngreylist_table = {greylist_table}\ngreylist_delay = {_DELAY}s\n"
                f"greylist_client_whitelist = {_CLIENTS}\ngreylist_recipient_whitelist = {_RECIPIENTS}\n"
                f"workers = {workers}\n{more}"
            )
            address = f"inet:127.0.0.1:{free_port()}"
            own = directory / f"service.{len(found)}"
            service = stack.enter_context(InstalledService(own, config, policy_listen=[address]))
            found[name + mark] = _Greylist(name + mark, address, service.pid, directory)
    return found


def _write_features(directory: Path) -> str:
    """Give the lines for all that is off by default, and write the files that they name."""
    senders = write_config(directory / "senders", "news@example.com\nfriend.example\n")
    never = write_config(directory / "never", "shared.example.com\n198.51.100.0/24\n")
    access = write_config(directory / "access", "example.com delay=60\nexample.net skip\nboss@example.edu skip\n")
    return (
        "greylist_privacy = yes\ngreylist_normalize_srs = yes\ngreylist_normalize_hex = yes\n"
        f"greylist_sender_whitelist = {senders}\ngreylist_never_auto_whitelist = {never}\n"
        f"greylist_recipient_access = texthash:{access}\n"
    )


def _row(
    best: dict[_Side, Result],
    name: str,
    base: str,
    connections: int,
    mark: float | None = None,
    aim: float | None = None,
) -> Row:
    ours, theirs = best[name, connections], best[base, connections]
    clients = "1 client" if connections == 1 else f"{connections} clients"
    what = f"{ours.name}, {clients}, to {base}"
    behind = f"{rates(ours, theirs)}; CPU of a request {ours.cpu_us:.1f} us against {theirs.cpu_us:.1f} us"
    return Row(what, ours.rate / theirs.rate, " times", behind, mark, aim)
