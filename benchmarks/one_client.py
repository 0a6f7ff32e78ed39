"""One client that asks again when it has its answer, beside Postfix's own client: one key, and five of an address."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.load import Load
from benchmarks.lookup_site import lookup_site, write_lines
from benchmarks.native import one_client
from benchmarks.rows import Row
from benchmarks.service import InstalledService
from benchmarks.session import Bench, quickest

# How many look-ups the native client makes for each second that a measurement takes.
_RATE = 10_000


def measure_lockstep(bench: Bench) -> Iterator[Row]:
    """Measure the median of one key.

    :raises RuntimeError: a look-up failed, or found nothing.
    """
    asked = int(_RATE * bench.seconds)
    with (
        lookup_site(bench) as site,
        InstalledService(site.directory / "service", f"tables = bench={site.table}\n") as service,
    ):
        keys = [site.keys[number % len(site.keys)] for number in range(asked)]
        ours, native = bench.in_turn(
            lambda: site.load.run("socketmap-memcache", "socketmap", service.addresses[0], 1, service.pid),
            lambda: one_client(site.postfix, site.table, keys),
        )
    p50, base = quickest(ours), quickest(native)
    behind = f"{p50:.1f} us against {base:.1f} us"
    yield Row("a hit, one client, p50, to native", p50 / base, " times", behind, 1.5, 1.3, at_most=True)


def measure_partial(bench: Bench) -> Iterator[Row]:
    """Measure addresses of which Postfix asks for five keys, and the last of these is there.

    :raises RuntimeError: a look-up failed, or found nothing.
    """
    asked = [f"alice{number % bench.keys}" for number in range(int(_RATE / 5 * bench.seconds))]
    steps = [key for user in asked for key in _steps(user)]
    with lookup_site(bench) as site:
        site.memcached.set(b"@example.org", b"postmaster@example.com")
        load = Load(write_lines(site.directory / "addresses", steps[::5]), bench.seconds)
        table = site.cf("partial", "\npartial_keys = address\nrecipient_delimiter = +\nlocal_domains = example.org\n")
        with InstalledService(site.directory / "service", f"tables = partial={table}\n") as service:
            name = "partial_keys = address"
            ours, native = bench.in_turn(
                lambda: load.run(name, "socketmap", service.addresses[0], 1, service.pid, "partial"),
                lambda: one_client(site.postfix, site.table, steps, 5),
            )
    p50, base = quickest(ours), quickest(native)
    behind = f"{p50:.1f} us against {base:.1f} us"
    yield Row("partial_keys, the last of five, to five native look-ups", base / p50, " times", behind, 2.0, 3.0)


def _steps(user: str) -> list[str]:
    """Give the keys that Postfix tries for an address, one after the other."""
    return [f"{user}+news@example.org", f"{user}@example.org", f"{user}+news", user, "@example.org"]
