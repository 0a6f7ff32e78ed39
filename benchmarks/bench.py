"""How fast look-ups are, beside Postfix's own memcache: table on the same machine at the same time.

Prints a table and whether the marks are met, and writes it all to results.json beside this file. Compare only what one
run has measured: machines, and hours on a shared one, differ by more than any change to the code.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import attrs

from benchmarks.backups import measure_backups
from benchmarks.greylisting import greylisting_mark, measure_greylisting
from benchmarks.load import HERE, Load, Result
from benchmarks.map_ratio import map_mark, measure_map
from tests.integration.harness.memcached import Memcached
from tests.integration.harness.postfix import Postfix
from tests.integration.harness.processes import find_program, free_port, scratch_directory, write_config
from tests.integration.harness.service import Service

#: How many postmap processes ask at once: with fewer, the native rate is that of a processor waiting for memcached.
NATIVE_PROCESSES = 16

OVER_UNIX = "socketmap-memcache, UNIX socket"

#: How often both sides of the marks are measured, in turn; the best of each counts. What else runs on the machine, or
#: on the one below a virtual machine, makes single measurements differ by half.
ROUNDS = 3

#: The marks, with 64 connections: at least this part of the native rate ...
MARK_CONNECTIONS = 64
LEAST_RATIO = 0.5
#: ... and at most so many microseconds of processor time a look-up.
MOST_CPU_US = 20.0


def measure_native(postfix: Postfix, table: str, keys: Sequence[str], each: int) -> Result:
    """Let many postmap processes ask Postfix's own table, ``each`` of them that many keys.

    :raises RuntimeError: one of them did not find all.
    """
    directory = postfix.config_directory.parent
    asked = directory / "asked"
    asked.write_text("".join(f"{keys[number % len(keys)]}\n" for number in range(each)))
    argv = [find_program("postmap"), "-c", str(postfix.config_directory), "-q", "-", table]
    answers = [directory / f"answers.{number}" for number in range(NATIVE_PROCESSES)]
    started = time.perf_counter()
    children = []
    for answer in answers:
        with asked.open("rb") as stdin, answer.open("wb") as stdout:
            children.append(subprocess.Popen(argv, stdin=stdin, stdout=stdout))
    for child in children:
        child.wait()
    elapsed = time.perf_counter() - started
    for answer in answers:
        if (found := answer.read_bytes().count(b"\n")) != each:
            raise RuntimeError(f"postmap found {found} of {each} keys")
    return Result("Postfix memcache:, postmap processes", NATIVE_PROCESSES, each * NATIVE_PROCESSES / elapsed)


def run(
    directory: Path, seconds: float, key_count: int, native_keys: int, map_keys: int, backup_keys: int
) -> list[Result]:
    """Measure everything, printing each result as it comes; the first is the native one."""
    keys = [f"user{number}@example.com" for number in range(key_count)]
    key_file = directory / "keys"
    key_file.write_text("".join(f"{key}\n" for key in keys))
    results: list[Result] = []

    def report(result: Result) -> None:
        results.append(result)
        cells = (result.p50_us, result.p99_us, result.cpu_us)
        columns = "".join(f"{cell:>9.1f}" if cell is not None else f"{'':9}" for cell in cells)
        ratio = result.rate / results[0].rate
        print(f"{result.name:38}{result.connections:>6}{result.rate:>10,.0f}{ratio:>7.2f}{columns}", flush=True)

    print(f"{'':38}{'conns':>6}{'rate/s':>10}{'ratio':>7}{'p50 us':>9}{'p99 us':>9}{'cpu us':>9}")
    with Memcached(directory) as memcached:
        memcached.set_many({key.encode(): key.replace("@", "@mail.").encode() for key in keys})
        table = f"memcache:{write_config(directory / 'bench.cf', f'memcache = {memcached.address}')}"
        postfix = Postfix(directory)
        load = Load(key_file, seconds)
        unix, tcp = f"unix:{directory}/s.sock", f"inet:127.0.0.1:{free_port()}"
        with Service(directory, f"tables = bench={table}\n", listen=[unix, tcp]) as service:
            native, ours = [], []
            for _ in range(ROUNDS):
                native.append(measure_native(postfix, table, keys, native_keys))
                ours.append(load.run(OVER_UNIX, "socketmap", unix, MARK_CONNECTIONS, service.pid))
            report(max(native, key=_rate))
            report(load.run("memcached itself, UNIX socket", "memcache", memcached.address, 64, memcached.pid))
            for connections in (1, 8):
                report(load.run(OVER_UNIX, "socketmap", unix, connections, service.pid))
            report(max(ours, key=_rate))
            report(load.run("socketmap-memcache, TCP", "socketmap", tcp, 64, service.pid))
        for result in measure_map(memcached, postfix, table, map_keys):
            report(result)
    measure_backups(backup_keys, report)
    measure_greylisting(seconds, backup_keys, report)
    return results


def _rate(result: Result) -> float:
    return result.rate


def marks(results: Sequence[Result]) -> dict[str, bool]:
    """Return each mark in words, and whether it is met."""
    native = results[0]
    service = next(r for r in results if r.name == OVER_UNIX and r.connections == MARK_CONNECTIONS)
    ratio, cpu_us = service.rate / native.rate, service.cpu_us or 0.0
    return {
        f"64 connections: {ratio:.2f} of the native rate, at least {LEAST_RATIO}": ratio >= LEAST_RATIO,
        f"64 connections: {cpu_us:.1f} us of CPU a look-up, at most {MOST_CPU_US:g}": cpu_us <= MOST_CPU_US,
        **dict([map_mark(results), greylisting_mark(results)]),
    }


def main() -> None:
    """Measure, print, and write results.json."""
    parser = argparse.ArgumentParser(description="Measure look-ups, native and through the service.")
    parser.add_argument("--seconds", type=float, default=4, help="how long each measurement takes (%(default)s)")
    parser.add_argument("--keys", type=int, default=10_000, help="different keys in memcached (%(default)s)")
    parser.add_argument("--native-keys", type=int, default=25_000, help="keys for each postmap process (%(default)s)")
    parser.add_argument("--map-keys", type=int, default=100_000, help="keys for one map or postmap (%(default)s)")
    parser.add_argument("--backup-keys", type=int, default=5_000, help="keys in each backup table (%(default)s)")
    options = parser.parse_args()
    with scratch_directory() as directory:
        results = run(
            directory, options.seconds, options.keys, options.native_keys, options.map_keys, options.backup_keys
        )
    met = marks(results)
    for mark, ok in met.items():
        print(f"{mark}: {'ok' if ok else 'MISSED'}")
    record = {
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": f"{platform.machine()}, {os.cpu_count()} processors",
        "python": platform.python_version(),
        "twisted": version("twisted"),
        "options": vars(options),
        "results": [attrs.asdict(result) for result in results],
        "marks": met,
    }
    (HERE / "results.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
