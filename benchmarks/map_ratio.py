"""How fast ``socketmap-memcache map -q -`` is, beside ``postmap -q -`` with the same keys and table."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.load import Result
from tests.integration.harness.memcached import Memcached
from tests.integration.harness.postfix import Postfix
from tests.integration.harness.processes import find_program

POSTMAP = "postmap -q -"
MAP = "socketmap-memcache map -q -"

#: The mark: map is at least so many times as fast.
LEAST_MAP_RATIO = 3.0

_ROUNDS = 3


def measure_map(memcached: Memcached, postfix: Postfix, table: str, count: int) -> list[Result]:
    """Let both look up as many keys, all of which exist, in turn; the best of three rounds of each counts.

    :param count: keys, which are added to memcached.
    :raises RuntimeError: what they printed is not the same.
    """
    keys = [b"mapped%d@example.com" % number for number in range(count)]
    memcached.set_many({key: key.replace(b"@", b"@mail.") for key in keys})
    directory = postfix.config_directory.parent
    asked = directory / "mapped"
    asked.write_bytes(b"".join(key + b"\n" for key in keys))
    commands = {
        POSTMAP: [find_program("postmap"), "-c", str(postfix.config_directory), "-q", "-", table],
        MAP: [str(Path(sys.executable).with_name("socketmap-memcache")), "map", "-q", "-", table],
    }
    best = dict.fromkeys(commands, float("inf"))
    # As it is after an installation: compiled. The first round does that.
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(directory / "compiled"), "PYTHONDONTWRITEBYTECODE": ""}
    for _ in range(_ROUNDS):
        outputs = []
        for name, argv in commands.items():
            seconds, output = _timed(argv, environment, asked, directory / "printed")
            best[name] = min(best[name], seconds)
            outputs.append(output)
        if outputs[0] != outputs[1] or outputs[0].count(b"\n") != count:
            raise RuntimeError(f"{' and '.join(commands)} did not print the same {count} lines")
    return [Result(name, 1, count / seconds) for name, seconds in best.items()]


def map_mark(results: Sequence[Result]) -> tuple[str, bool]:
    """Return the mark in words, and whether it is met."""
    rates = {result.name: result.rate for result in results}
    ratio = rates[MAP] / rates[POSTMAP]
    return f"map -q -: {ratio:.2f} times the rate of postmap, at least {LEAST_MAP_RATIO:g}", ratio >= LEAST_MAP_RATIO


def _timed(argv: list[str], environment: dict[str, str], stdin: Path, stdout: Path) -> tuple[float, bytes]:
    with stdin.open("rb") as reading, stdout.open("wb") as writing:
        started = time.perf_counter()
        subprocess.run(argv, env=environment, stdin=reading, stdout=writing, check=True, timeout=300)
        elapsed = time.perf_counter() - started
    return elapsed, stdout.read_bytes()
