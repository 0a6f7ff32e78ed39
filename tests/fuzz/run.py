"""Gives codecs, listeners and the memcached client mutated inputs: ``python -m tests.fuzz.run --inputs 1000000``.

A fault is printed with the input, and with what brings it about again.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import time
import traceback
import warnings
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from random import Random

import attrs
from twisted.logger import ILogObserver, LogEvent, LogLevel, globalLogPublisher
from zope.interface import implementer

from tests.fuzz.codecs import TEXTS, WIRE
from tests.fuzz.connections import CONNECTIONS
from tests.fuzz.mutate import mutate
from tests.fuzz.target import Target

TARGETS = {target.name: target for target in (*CONNECTIONS, *WIRE, *TEXTS)}

#: Seconds of processor time that no input may take.
SLOW = 2.0

#: What is opened is closed again after so many inputs, and then as many objects must be there as before.
ROUND = 2000

#: What may be more: caches of Python's and Twisted's own that fill up.
MORE_OBJECTS = 500

#: Inputs that a process is given at a time: whole rounds.
PIECE = 50 * ROUND


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

    def check(self) -> None:
        """Complain.

        :raises Fault: there was one.
        """
        if self.texts:
            raise Fault("logged: " + "\n".join(self.texts))


def fuzz(target: Target, inputs: int, seed: int, first: int = 0) -> float:
    """Give a target mutated inputs.

    :param first: the number of the first one; each depends on the seed and its number only.
    :return: the seconds of processor time that the slowest took.
    :raises Fault: one has done harm; with all that is known.
    """
    samples, random = target.samples(), Random()
    slowest, objects = 0.0, []
    number, data = first, b""
    unforeseen = _Unforeseen()
    globalLogPublisher.addObserver(unforeseen)
    try:
        for start in range(first, first + inputs, ROUND):
            with target.open() as opened:
                for number in range(start, min(start + ROUND, first + inputs)):
                    random.seed(seed << 32 | number)
                    data = mutate(random, samples)
                    begun = time.process_time()
                    target.check(opened, data, random)
                    slowest = max(slowest, time.process_time() - begun)
                    unforeseen.check()
                    if slowest > SLOW:
                        raise Fault(f"takes {slowest:.1f} s")
            re.purge()
            gc.collect()
            unforeseen.check()
            objects.append(len(gc.get_objects()))
    except Exception as error:
        again = f"--seed {seed} --only '{target.name}' --first {start} --inputs {number - start + 1}"
        raise Fault(f"{target.name}: {traceback.format_exc()}by {data!r}\nagain: {again}") from error
    finally:
        globalLogPublisher.removeObserver(unforeseen)
    # What is made once, at the first use, is there after the first rounds.
    if len(objects) > 2 and objects[-1] > objects[1] + MORE_OBJECTS:
        again = f"--seed {seed} --only '{target.name}' --first {first} --inputs {inputs}"
        raise Fault(f"{target.name}: objects are left over: {objects}\nagain: {again}")
    return slowest


@attrs.frozen
class _Outcome:
    """What some inputs, which did no harm, took: seconds of processor time, those of the slowest, MB of memory."""

    seconds: float
    slowest: float
    memory: float


def _begin() -> None:
    """Make a process ready."""
    warnings.simplefilter("error")
    gc.freeze()  # what is there before the first input need not be looked through again and again


def _run(name: str, inputs: int, seed: int, first: int) -> _Outcome:
    begun = time.process_time()
    slowest = fuzz(TARGETS[name], inputs, seed, first)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return _Outcome(time.process_time() - begun, slowest, pages * os.sysconf("SC_PAGE_SIZE") / 1e6)


def _print(name: str, inputs: int, outcomes: Sequence[_Outcome]) -> None:
    seconds = sum(outcome.seconds for outcome in outcomes)
    slowest, memory = (max(map(of, outcomes)) for of in (lambda one: one.slowest, lambda one: one.memory))
    text = f"{name:24} {inputs:8} inputs {seconds:6.1f} s {inputs / seconds:6.0f}/s"
    print(f"{text}, slowest {slowest * 1000:5.1f} ms, memory {memory:.0f} MB", flush=True)


def main() -> None:
    """Run the command.

    :raises SystemExit: there was a fault.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--inputs", type=int, default=1_000_000, help="for each codec and each listener (%(default)s); others get less"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=TARGETS, help="one of them; it gets all inputs")
    parser.add_argument("--first", type=int, default=0, help="the number of the first input")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    if arguments.only:
        numbers = {arguments.only: arguments.inputs}
    else:
        numbers = {name: round(arguments.inputs * target.share) for name, target in TARGETS.items()}
    begun = time.monotonic()
    print(f"seed {arguments.seed}", flush=True)
    with ProcessPoolExecutor(arguments.processes, initializer=_begin) as pool:
        pieces: dict[str, list[Future[_Outcome]]] = {
            name: [
                pool.submit(_run, name, min(PIECE, inputs - done), arguments.seed, arguments.first + done)
                for done in range(0, inputs, PIECE)
            ]
            for name, inputs in numbers.items()
        }
        try:
            for name, futures in pieces.items():
                _print(name, numbers[name], [future.result() for future in futures])
        except Fault as fault:
            print(f"FAULT: {fault}", flush=True)
            pool.shutdown(cancel_futures=True)
            raise SystemExit(1) from fault
    print(f"{sum(numbers.values())} inputs, no fault, {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
