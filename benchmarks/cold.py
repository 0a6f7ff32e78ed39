"""An empty cache before a slow backup: how much more many clients get than one."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from random import Random

from benchmarks.load import Load, Result
from benchmarks.lookup_site import write_lines
from benchmarks.rows import Row
from benchmarks.service import InstalledService
from benchmarks.session import Bench, fastest, rates
from benchmarks.slow_server import SlowServer
from tests.integration.harness.memcached import Memcached
from tests.integration.harness.processes import scratch_directory, write_config

CONNECTIONS = 64
BACKUP_SECONDS = 0.02

# Look-ups for each second that a measurement takes. One client takes some ten times as long: about every second key is
# a new one.
_LOOKUPS_PER_SECOND = 640


def zipf(keys: int, count: int) -> list[str]:
    """Draw keys, the most frequent one twice as often as the second, thrice as often as the third, and so on."""
    weights = list(accumulate(1 / rank for rank in range(1, keys + 1)))
    drawn = Random(1).choices(range(keys), cum_weights=weights, k=count)  # noqa: S311 (the same each time)
    return [f"user{rank}@example.com" for rank in drawn]


def measure_cold(bench: Bench) -> Iterator[Row]:
    """Measure both with the same look-ups.

    One client is measured once: it waits for the backup nearly all the time, which takes as long on any machine.

    :raises RuntimeError: a look-up failed, or found nothing.
    """
    count = max(2 * CONNECTIONS, int(_LOOKUPS_PER_SECOND * bench.seconds))
    with (
        scratch_directory() as directory,
        Memcached(directory) as memcached,
        SlowServer(directory, BACKUP_SECONDS) as backup,
    ):
        load = Load(write_lines(directory / "keys", zipf(10_000, count)), bench.seconds)
        table = write_config(directory / "cold.cf", f"memcache = {memcached.address}\nbackup = {backup.table}\n")
        with InstalledService(directory / "service", f"tables = bench=memcache:{table}\n") as service:

            def ask(clients: int) -> Result:
                memcached.flush()
                name = "cold cache, slow backup"
                return load.run(name, "socketmap", service.addresses[0], clients, service.pid, requests=count)

            alone = ask(1)
            bench.report(alone)
            (results,) = bench.in_turn(lambda: ask(CONNECTIONS))
    many = fastest(results)
    what = f"cold, backup of {BACKUP_SECONDS * 1000:g} ms, {CONNECTIONS} clients, to one client"
    yield Row(what, many.rate / alone.rate, " times", rates(many, alone), 40.0, 64.0)
