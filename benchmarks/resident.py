"""The memory that the service takes: idle, and for each idle client."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from benchmarks.lookup_site import lookup_site
from benchmarks.rows import Row
from benchmarks.service import InstalledService
from benchmarks.session import Bench
from tests.integration.harness.processes import connect

CLIENTS = 5_000

# Beside those of the clients.
_OTHER_DESCRIPTORS = 100


def measure_resident(bench: Bench) -> Iterator[Row]:
    """Measure the resident memory, then let clients come, each of which asks once and stays.

    :raises RuntimeError: a look-up found nothing.
    """
    with lookup_site(bench) as site:
        config = f"tables = bench={site.table}\n"
        with InstalledService(site.directory / "with-tls", config) as service:
            with_tls = _resident(service.pid)
        with InstalledService(site.directory / "service", config, with_tls=False) as service:
            idle = _resident(service.pid)
            yield Row("resident memory, idle", idle / 1e6, " MB", mark=45.0, at_most=True)
            yield Row("resident memory, idle, with the extra tls installed", with_tls / 1e6, " MB")
            what = f"resident memory, each of {CLIENTS:,} idle clients more"
            if not _allow_descriptors(CLIENTS + _OTHER_DESCRIPTORS):
                yield Row(what, None, behind="the hard limit of file descriptors is too low (ulimit -Hn)")
                return
            request = f"bench {site.keys[0]}"
            with ExitStack() as stack:
                for _ in range(CLIENTS):
                    client = stack.enter_context(connect(service.addresses[0]))
                    _ask(client, f"{len(request)}:{request},".encode())
                each = (_resident(service.pid) - idle) / CLIENTS
            yield Row(what, each / 1e3, " kB", mark=6.0, at_most=True)


def _ask(client: socket.socket, request: bytes) -> None:
    client.sendall(request)
    if b":OK " not in (reply := client.recv(4096)):
        raise RuntimeError(f"{request!r} got {reply!r}")


def _resident(pid: int) -> int:
    """Return bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "VmRSS":
            return int(value.split()[0]) * 1024
    raise RuntimeError(f"process {pid} has ended")


def _allow_descriptors(count: int) -> bool:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        return False
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    return True
