"""Postfix's own memcache: client, as postmap runs it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence

from benchmarks.load import Result
from benchmarks.lookup_site import write_lines
from tests.integration.harness.postfix import Postfix
from tests.integration.harness.processes import find_program

#: How many postmap processes ask at once: with fewer, the native rate is that of a processor waiting for memcached.
PROCESSES = 16


def many_clients(postfix: Postfix, table: str, keys: Sequence[str], each: int) -> Result:
    """Let many postmap processes ask at once, ``each`` of them that many keys, all of which exist.

    :raises RuntimeError: one of them did not find all.
    """
    asked = [keys[number % len(keys)] for number in range(each)]
    elapsed = _elapsed(postfix, table, asked, PROCESSES, each)
    return Result("Postfix memcache:, postmap processes", PROCESSES, each * PROCESSES / elapsed)


def one_client(postfix: Postfix, table: str, keys: Sequence[str], steps: int = 1) -> Result:
    """Let one postmap ask key after key.

    :param steps: how many of them make one look-up of Postfix's; the last of these exists.
    :raises RuntimeError: it did not find what it should have.
    """
    lookups = len(keys) // steps
    elapsed = _elapsed(postfix, table, keys, 1, lookups)
    name = f"Postfix memcache:, {steps} keys each" if steps > 1 else "Postfix memcache:"
    return Result(name, 1, lookups / elapsed, elapsed / lookups * 1e6)


def _elapsed(postfix: Postfix, table: str, keys: Sequence[str], processes: int, found: int) -> float:
    directory = postfix.config_directory.parent
    asked = write_lines(directory / "asked", keys)
    argv = [find_program("postmap"), "-c", str(postfix.config_directory), "-q", "-", table]
    answers = [directory / f"answers.{number}" for number in range(processes)]
    started = time.perf_counter()
    children = []
    for answer in answers:
        with asked.open("rb") as stdin, answer.open("wb") as stdout:
            children.append(subprocess.Popen(argv, stdin=stdin, stdout=stdout))
    for child in children:
        child.wait()
    elapsed = time.perf_counter() - started
    for answer in answers:
        if (lines := answer.read_bytes().count(b"\n")) != found:
            raise RuntimeError(f"postmap found {lines} of {found} keys")
    return elapsed
