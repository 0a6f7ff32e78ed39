"""How fast the service is, beside what else does the same, on the same machine at the same time.

Prints all measurements as they come, then a table of ratios with the marks that they have to reach, and writes it all
as JSON. Compare only what one run has measured: machines, and hours on a shared one, differ by more than any change to
the code.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

import attrs

from benchmarks.backups import measure_backups
from benchmarks.cold import measure_cold
from benchmarks.cpu import measure_cpu
from benchmarks.features import measure_features
from benchmarks.greylisting import measure_greylisting
from benchmarks.hits import measure_hits
from benchmarks.load import HERE, Result
from benchmarks.map_ratio import measure_map
from benchmarks.one_client import measure_lockstep, measure_partial
from benchmarks.resident import measure_resident
from benchmarks.rows import Row, table
from benchmarks.session import Bench
from benchmarks.start import measure_start
from benchmarks.whitelist import measure_whitelist

#: The parts of a run, in the order in which they are run; each gives its rows.
PARTS: dict[str, Callable[[Bench], Iterable[Row]]] = {
    "hits": measure_hits,
    "cpu": measure_cpu,
    "lockstep": measure_lockstep,
    "partial": measure_partial,
    "greylisting": measure_greylisting,
    "whitelist": measure_whitelist,
    "cold": measure_cold,
    "resident": measure_resident,
    "start": measure_start,
    "features": measure_features,
    "map": measure_map,
    "backups": measure_backups,
}


def _print(result: Result) -> None:
    cells = (result.p50_us, result.p99_us, result.cpu_us)
    columns = "".join(f"{cell:>10.1f}" if cell is not None else f"{'':10}" for cell in cells)
    print(f"{result.name:42}{result.connections:>6}{result.rate:>10,.0f}{columns}".rstrip(), flush=True)


def parse_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="make bench", description="Measure the service beside others.")
    parts = f"parts of the run: {', '.join(PARTS)}"
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=parts)
    parser.add_argument("--seconds", type=float, default=2, help="how long each measurement takes (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="how often, in turn; the best counts (%(default)s)")
    parser.add_argument("--keys", type=int, default=10_000, help="different keys in memcached (%(default)s)")
    parser.add_argument("--native-keys", type=int, default=15_000, help="keys for each postmap process (%(default)s)")
    parser.add_argument("--map-keys", type=int, default=50_000, help="keys for one map or postmap (%(default)s)")
    parser.add_argument("--backup-keys", type=int, default=5_000, help="keys in each backup table (%(default)s)")
    parser.add_argument("--json", type=Path, default=HERE / "results.json", help="the file to write (%(default)s)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Measure, print, and write the results.

    :return: 1 if a part of the run has failed. A mark that is missed is no failure.
    """
    options = parse_options(arguments)
    results: list[Result] = []

    def report(result: Result) -> None:
        results.append(result)
        _print(result)

    numbers = (options.keys, options.native_keys, options.map_keys, options.backup_keys)
    bench = Bench(options.seconds, options.rounds, *numbers, report)
    rows: dict[str, list[Row]] = {}
    failed: list[str] = []
    for part in options.only:
        print(f"\n{part:42}{'conns':>6}{'rate/s':>10}{'p50 us':>10}{'p99 us':>10}{'cpu us':>10}", flush=True)
        rows[part] = []
        try:
            for row in PARTS[part](bench):
                rows[part].append(row)
        except Exception as error:  # noqa: BLE001 (the parts after it have something to say, too)
            traceback.print_exc()
            failed.append(part)
            rows[part].append(Row(f"{part} has failed", None, behind=str(error).partition("\n")[0]))
    print()
    for line in table(row for found in rows.values() for row in found):
        print(line)
    record = {
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": f"{platform.machine()}, {os.cpu_count()} processors",
        "python": platform.python_version(),
        "twisted": version("twisted"),
        "options": {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()},
        "rows": {part: [row.record() for row in found] for part, found in rows.items()},
        "results": [attrs.asdict(result) for result in results],
    }
    options.json.write_text(json.dumps(record, indent=2) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
