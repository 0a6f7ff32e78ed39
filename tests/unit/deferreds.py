"""The results of Deferreds that have fired, for tests that are no TestCase of trial's."""

from __future__ import annotations

from typing import Any, TypeVar, cast

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

T = TypeVar("T")


def result_of(answer: Deferred[T]) -> T:
    """Return the result, which is there already, or raise the error."""
    results: list[Any] = []
    answer.addBoth(results.append)
    assert results, "there is no result yet"
    if isinstance(results[0], Failure):
        results[0].raiseException()
    return cast("T", results[0])
