"""How fast ``socketmap-memcache map -q -`` is, beside ``postmap -q -`` with the same keys and table."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.load import Result
from benchmarks.lookup_site import lookup_site
from benchmarks.rows import Row
from benchmarks.session import Bench, fastest, rates
from tests.integration.harness.processes import find_program

POSTMAP = "postmap -q -"
MAP = "socketmap-memcache map -q -"

#: The mark: map is at least so many times as fast.
LEAST_MAP_RATIO = 3.0


def measure_map(bench: Bench) -> Iterator[Row]:
    """Let both look up the same keys, all of which exist, in turn.

    :raises RuntimeError: what they printed is not the same.
    """
    count = bench.map_keys
    with lookup_site(bench) as site:
        keys = [b"mapped%d@example.com" % number for number in range(count)]
        site.memcached.set_many({key: key.replace(b"@", b"@mail.") for key in keys})
        asked = site.directory / "mapped"
        asked.write_bytes(b"".join(key + b"\n" for key in keys))
        commands = {
            POSTMAP: [find_program("postmap"), "-c", str(site.postfix.config_directory), "-q", "-", site.table],
            MAP: [str(Path(sys.executable).with_name("socketmap-memcache")), "map", "-q", "-", site.table],
        }
        # As it is after an installation: compiled. The first round does that.
        compiled = str(site.directory / "compiled")
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": compiled, "PYTHONDONTWRITEBYTECODE": ""}

        def run(name: str) -> Result:
            printed = site.directory / f"printed.{len(name)}"
            elapsed = _timed(commands[name], environment, asked, printed)
            if printed.read_bytes().count(b"\n") != count:
                raise RuntimeError(f"{name} did not print {count} lines")
            return Result(name, 1, count / elapsed)

        native, ours = bench.in_turn(lambda: run(POSTMAP), lambda: run(MAP))
        printed = [site.directory / f"printed.{len(name)}" for name in commands]
        if printed[0].read_bytes() != printed[1].read_bytes():
            raise RuntimeError(f"{' and '.join(commands)} did not print the same lines")
    best, base = fastest(ours), fastest(native)
    yield Row(f"map -q -, to {POSTMAP}", best.rate / base.rate, " times", rates(best, base), LEAST_MAP_RATIO)


def _timed(argv: list[str], environment: dict[str, str], stdin: Path, stdout: Path) -> float:
    with stdin.open("rb") as reading, stdout.open("wb") as writing:
        started = time.perf_counter()
        subprocess.run(argv, env=environment, stdin=reading, stdout=writing, check=True, timeout=300)
        return time.perf_counter() - started
