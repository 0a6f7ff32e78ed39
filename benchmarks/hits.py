"""Look-ups of 64 clients that memcached can answer, beside Postfix's own client; and served from memory."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.lookup_site import lookup_site
from benchmarks.native import PROCESSES, many_clients
from benchmarks.rows import Row
from benchmarks.service import InstalledService
from benchmarks.session import Bench, fastest, rates
from tests.integration.harness.processes import free_port, write_config

CONNECTIONS = 64

_OVER_UNIX = "socketmap-memcache, UNIX socket"


def measure_hits(bench: Bench) -> Iterator[Row]:
    """Measure both, over UNIX sockets; beside the marks also TCP, two workers, and memcached without anybody between.

    :raises RuntimeError: a look-up failed, or found nothing.
    """
    with lookup_site(bench) as site:
        load = site.load
        texthash = write_config(site.directory / "values", "".join(f"{k} {k}\n" for k in site.keys))
        memory = write_config(site.directory / "memory.cf", f"memcache = memory:\nbackup = texthash:{texthash}\n")
        unix, pair = f"unix:{site.directory}/s.sock", f"unix:{site.directory}/pair.sock"
        tcp = f"inet:127.0.0.1:{free_port()}"
        tables = f"tables = bench={site.table} memory=memcache:{memory}\n"
        with (
            InstalledService(site.directory / "one", tables, listen=[unix, tcp]) as service,
            InstalledService(site.directory / "two", f"{tables}workers = 2\n", listen=[pair]) as workers,
        ):
            # From now on it has all.
            load.run("", "socketmap", unix, CONNECTIONS, service.pid, "memory", len(site.keys))
            native, hits, embedded, two = bench.in_turn(
                lambda: many_clients(site.postfix, site.table, site.keys, bench.native_keys),
                lambda: load.run(_OVER_UNIX, "socketmap", unix, CONNECTIONS, service.pid),
                lambda: load.run("memcache = memory:", "socketmap", unix, CONNECTIONS, service.pid, "memory"),
                lambda: load.run("workers = 2", "socketmap", pair, CONNECTIONS, workers.pid),
            )
            base = fastest(native)
            of_native = f"{CONNECTIONS} clients, of {PROCESSES} native postmaps"
            for name, results, mark, aim in (
                ("memcached hits", hits, 0.65, 1.0),
                ("memory: hits", embedded, 0.9, 1.2),
                ("memcached hits, workers = 2", two, None, None),
            ):
                best = fastest(results)
                yield Row(f"{name}, {of_native}", best.rate / base.rate, "", rates(best, base), mark, aim)
            least = min(result.cpu_us or 0.0 for result in hits)
            yield Row(f"CPU of a hit, {CONNECTIONS} clients", least, " us", mark=20.0, at_most=True)
            bench.report(load.run("socketmap-memcache, TCP", "socketmap", tcp, CONNECTIONS, service.pid))
            bench.report(load.run(_OVER_UNIX, "socketmap", unix, 8, service.pid))
            memcached = site.memcached
            bench.report(load.run("memcached itself, UNIX socket", "memcache", memcached.address, 64, memcached.pid))
