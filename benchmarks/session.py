"""One run of the benchmarks: how long everything takes, and what is told while it goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import attrs

from benchmarks.load import Result


@attrs.frozen
class Bench:
    """What each part of the run is given.

    :ivar seconds: how long one measurement takes.
    :ivar rounds: how often both sides of a ratio are measured, in turn; the best of each counts. What else runs on the
        machine, or on the one below a virtual machine, makes single measurements differ by half.
    :ivar keys: different keys in memcached.
    :ivar native_keys: how many each of the postmap processes looks up.
    :ivar map_keys: how many one map, or postmap, looks up where these two are compared.
    :ivar backup_keys: keys in each backup table.
    :ivar report: gets each result as it comes.
    """

    seconds: float
    rounds: int
    keys: int
    native_keys: int
    map_keys: int
    backup_keys: int
    report: Callable[[Result], None]

    def in_turn(self, *sides: Callable[[], Result]) -> list[list[Result]]:
        """Measure all sides in turn, round after round, and give the results of each side."""
        results: list[list[Result]] = [[] for _ in sides]
        for _ in range(self.rounds):
            for side, measured in zip(sides, results, strict=True):
                result = side()
                measured.append(result)
                self.report(result)
        return results


def fastest(results: Iterable[Result]) -> Result:
    """Give the one with the highest rate."""
    return max(results, key=lambda result: result.rate)


def quickest(results: Iterable[Result]) -> float:
    """Give the lowest median of the times that look-ups took, in microseconds."""
    return min(result.p50_us for result in results if result.p50_us is not None)


def least_cpu(results: Iterable[Result]) -> float:
    """Give the lowest processor time of a look-up, in microseconds."""
    return min(result.cpu_us for result in results if result.cpu_us is not None)


def rates(*results: Result) -> str:
    """Give rates for a row's ``behind``."""
    return " against ".join(f"{result.rate:,.0f}/s" for result in results)
