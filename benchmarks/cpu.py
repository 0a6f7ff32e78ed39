"""What a look-up costs the processor, beside a bare Twisted server."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.fixed_reply import FixedReplyServer
from benchmarks.lookup_site import lookup_site
from benchmarks.rows import Row
from benchmarks.service import InstalledService
from benchmarks.session import Bench, least_cpu

CONNECTIONS = 64


def measure_cpu(bench: Bench) -> Iterator[Row]:
    """Measure both.

    :raises RuntimeError: a look-up failed, or found nothing.
    """
    with lookup_site(bench) as site, FixedReplyServer(site.directory) as bare:
        with InstalledService(site.directory / "service", f"tables = bench={site.table}\n") as service:
            ours, fixed = bench.in_turn(
                lambda: site.load.run("memcached hits", "socketmap", service.addresses[0], CONNECTIONS, service.pid),
                lambda: site.load.run("fixed reply", "socketmap", bare.address, CONNECTIONS, bare.pid),
            )
        spent, least = least_cpu(ours), least_cpu(fixed)
        yield Row(
            f"CPU of a hit, {CONNECTIONS} clients, to that of a fixed reply",
            spent / least,
            " times",
            f"{spent:.1f} us against {least:.1f} us",
            mark=2.0,
            aim=1.5,
            at_most=True,
        )
