"""What each feature of ``memcache:`` tables costs: hits with it, beside hits from one server without any."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks.load import Load, Result
from benchmarks.lookup_site import write_lines
from benchmarks.rows import Row
from benchmarks.service import InstalledService
from benchmarks.session import Bench, fastest, least_cpu, rates
from tests.integration.harness.certificates import Authority
from tests.integration.harness.memcached import Memcached
from tests.integration.harness.processes import scratch_directory, write_config
from tests.integration.harness.secured_memcached import SecuredMemcached

CONNECTIONS = 64

_PLAIN = "one server"
_SIGNED = "signing_key_file"
_SIGNING_MARK_US = 3.0

# Every key is looked up twice before anything is measured.
_KEYS = 2_000


def measure_features(bench: Bench) -> Iterator[Row]:
    """Measure hits in tables that differ in one feature each; all reach memcached by TCP.

    :raises RuntimeError: a look-up failed, or found nothing.
    """
    with ExitStack() as stack:
        directory = stack.enter_context(scratch_directory())
        tables = _tables(stack, directory)
        keys = [f"user{number}@example.com" for number in range(_KEYS)]
        values = write_config(directory / "values", "".join(f"{key} {key}\n" for key in keys))
        names = {name: f"t{number}" for number, name in enumerate(tables)}
        served = []
        for name, parameters in tables.items():
            text = f"{parameters}\nkey_format = {names[name]}:%s\nbackup = texthash:{values}\n"
            served.append(f"{names[name]}=memcache:{write_config(directory / f'{names[name]}.cf', text)}")
        config = f"tables = {' '.join(served)}\n"
        service = stack.enter_context(InstalledService(directory / "service", config))
        load = Load(write_lines(directory / "keys", keys), bench.seconds)

        def ask(name: str, requests: int = 0) -> Result:
            return load.run(
                name, "socketmap", service.addresses[0], CONNECTIONS, service.pid, names[name], requests=requests
            )

        for name in tables:
            ask(name, 2 * _KEYS)  # what is found in the backup is put into the cache
        found = bench.in_turn(*(partial(ask, name) for name in tables))
    measured = dict(zip(tables, found, strict=True))
    for name in list(tables)[1:]:
        yield _row(name, measured[name], measured[_PLAIN])
    added = least_cpu(measured[_SIGNED]) - least_cpu(measured[_PLAIN])
    what = f"{_SIGNED}: CPU that it adds to a hit"
    yield Row(what, added, " us", mark=_SIGNING_MARK_US, at_most=True)


def _tables(stack: ExitStack, directory: Path) -> dict[str, str]:
    """Start all servers, and give the ``.cf`` lines of each table; the first is the one to compare with."""
    servers = [stack.enter_context(Memcached(_made(directory, f"m{number}"), tcp=True)) for number in range(5)]
    addresses = [server.address for server in servers]
    plain = f"memcache = {addresses[0]}"
    authority = Authority(directory)
    certificate = authority.issue("memcached", "IP:127.0.0.1")
    secured = stack.enter_context(SecuredMemcached(directory / "secured", shown=certificate))
    key_file = directory / "signing.keys"
    key_file.write_text(f"{secrets.token_hex(32)}\n")
    key_file.chmod(0o600)
    return {
        _PLAIN: plain,
        "a ring of one": f"memcache = {{ {addresses[0]}, weight=1 }}",
        "a ring of three": f"memcache = {', '.join(addresses[:3])}",
        "a ring of five": f"memcache = {', '.join(addresses)}",
        "a ring of three, replicas = 2": f"memcache = {', '.join(addresses[:3])}\nreplicas = 2",
        _SIGNED: f"{plain}\nsigning_key_file = {key_file}",
        "tls:": f"memcache = {secured.address}\ntls_ca_file = {authority.path}",
        "local_ttl": f"{plain}\nlocal_ttl = 1h",
        "lease": f"{plain}\nlease = yes",
        "lease, stale_ttl": f"{plain}\nlease = yes\nstale_ttl = 1h",
        "negative_ttl": f"{plain}\nnegative_ttl = 1h",
    }


def _made(directory: Path, name: str) -> Path:
    made = directory / name
    made.mkdir()
    return made


def _row(name: str, results: list[Result], plain: list[Result]) -> Row:
    ours, base = fastest(results), fastest(plain)
    behind = f"{rates(ours, base)}; CPU of a hit {least_cpu(results):.1f} us against {least_cpu(plain):.1f} us"
    return Row(f"{name}, to {_PLAIN}, {CONNECTIONS} clients", ours.rate / base.rate, "", behind)
