"""How long the service takes from its start to its first answer."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator

from benchmarks.lookup_site import lookup_site
from benchmarks.rows import Row
from benchmarks.service import InstalledService
from benchmarks.session import Bench
from tests.integration.harness.processes import connect

_LONGEST = 20.0
_PAUSE = 0.002


def measure_start(bench: Bench) -> Iterator[Row]:
    """Measure from the start of the process to the answer to a look-up; the first start compiles, and is left out.

    :raises RuntimeError: there was no answer, or another one.
    """
    with lookup_site(bench) as site:
        request = f"bench {site.keys[0]}"
        for what, with_tls in (("start to first answer", False), ("the same with the extra tls installed", True)):
            directory = site.directory / f"service.{with_tls}"
            service = InstalledService(directory, f"tables = bench={site.table}\n", with_tls=with_tls)
            took = [_start(service, f"{len(request)}:{request},".encode()) for _ in range(bench.rounds + 2)][1:]
            behind = f"{len(took)} starts, the slowest {max(took):.2f} s"
            mark, aim = (None, None) if with_tls else (0.7, 0.4)
            yield Row(what, min(took), " s", behind, mark, aim, at_most=True)


def _start(service: InstalledService, request: bytes) -> float:
    environment = service.environment
    with service.log_path.open("ab") as log:
        started = time.perf_counter()
        child = subprocess.Popen(service.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
    try:
        while True:
            try:
                with connect(service.addresses[0]) as client:
                    client.sendall(request)
                    reply = client.recv(4096)
                break
            except OSError:
                if child.poll() is not None or time.perf_counter() > started + _LONGEST:
                    raise RuntimeError(f"the service does not answer\n{service.log}") from None
                time.sleep(_PAUSE)
        elapsed = time.perf_counter() - started
    finally:
        child.terminate()
        child.wait()
    if b":OK " not in reply:
        raise RuntimeError(f"{request!r} got {reply!r}")
    return elapsed
