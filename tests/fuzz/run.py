"""Gives codecs, listeners and the memcached client mutated inputs: ``python -m tests.fuzz.run --inputs 1000000``.

A fault is printed with the input, and with what brings it about again: ``--seed SEED --only NAME --first NUMBER``.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import sys
import time
import warnings
from pathlib import Path
from random import Random

import attrs
from twisted.logger import ILogObserver, LogEvent, LogLevel, globalLogPublisher
from zope.interface import implementer

from tests.fuzz.codecs import CODECS
from tests.fuzz.connections import CONNECTIONS
from tests.fuzz.mutate import mutate
from tests.fuzz.target import Target

TARGETS = (*CODECS, *CONNECTIONS)

#: Seconds of processor time that no input may take.
SLOW = 2.0

#: What is opened is closed again after so many inputs, and then as many objects must be there as before.
ROUND = 2000

#: What may be more: caches of Python's and Twisted's own that fill up.
MORE_OBJECTS = 500


class Fault(Exception):
    """An input has done harm."""


@implementer(ILogObserver)
@attrs.define
class _Unforeseen:
    """Sees what has been logged as an unforeseen error: somebody has caught what should not have been raised."""

    texts: list[str] = attrs.Factory(list)

    def __call__(self, event: LogEvent) -> None:
        if event.get("log_level") is LogLevel.critical:
            failure = event.get("log_failure")
            self.texts.append(failure.getTraceback() if failure else str(event))


def fuzz(target: Target, inputs: int, seed: int, first: int = 0) -> float:
    """Give a target mutated inputs.

    :param first: the number of the first one; each depends on the seed and its number only.
    :return: the seconds of processor time that the slowest took.
    :raises Fault: one has done harm; with all that is known.
    """
    samples, random = target.samples(), Random()
    slowest, objects = 0.0, []
    unforeseen = _Unforeseen()
    globalLogPublisher.addObserver(unforeseen)
    try:
        for start in range(first, first + inputs, ROUND):
            with target.open() as opened:
                for number in range(start, min(start + ROUND, first + inputs)):
                    random.seed(seed << 32 | number)
                    data = mutate(random, samples)
                    begun = time.process_time()
                    try:
                        target.check(opened, data, random)
                        if unforeseen.texts:
                            raise Fault("logged: " + "\n".join(unforeseen.texts))
                        slowest = max(slowest, time.process_time() - begun)
                        if slowest > SLOW:
                            raise Fault(f"takes {slowest:.1f} s")
                    except Exception as error:
                        place = f"--seed {seed} --only '{target.name}' --first {number}"
                        raise Fault(f"{target.name}: {error!r}\nby {data!r}\nagain: {place}") from error
            re.purge()
            gc.collect()
            objects.append(len(gc.get_objects()))
    finally:
        globalLogPublisher.removeObserver(unforeseen)
    # What is made once, at the first use, is there after the first rounds.
    if len(objects) > 2 and objects[-1] > objects[1] + MORE_OBJECTS:
        raise Fault(f"{target.name}: objects are left over: {objects}")
    return slowest


def _resident() -> float:
    """Return the memory of this process in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    """Run the command.

    :raises SystemExit: there was a fault.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000, help="how many, for all targets together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=[target.name for target in TARGETS])
    parser.add_argument("--first", type=int, default=0, help="the number of the first input")
    arguments = parser.parse_args()
    warnings.simplefilter("error")
    targets = [target for target in TARGETS if arguments.only in {None, target.name}]
    shares = sum(target.share for target in targets)
    begun, done = time.monotonic(), 0
    print(f"seed {arguments.seed}; memory {_resident():.0f} MB")
    for target in targets:
        inputs = -(-arguments.inputs * target.share // shares)
        before = time.monotonic()
        try:
            slowest = fuzz(target, inputs, arguments.seed, arguments.first)
        except Fault as fault:
            print(f"FAULT: {fault}")
            raise SystemExit(1) from fault
        done += inputs
        seconds = time.monotonic() - before
        text = f"{target.name:24} {inputs:8} inputs {seconds:6.1f} s, slowest {slowest * 1000:5.1f} ms"
        print(f"{text}, memory {_resident():.0f} MB", flush=True)
    print(f"{done} inputs, no fault, {time.monotonic() - begun:.0f} s")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
