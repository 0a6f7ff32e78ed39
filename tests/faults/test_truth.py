"""The judge of the faults is not blind."""

from __future__ import annotations

import pytest

from .report import Row, attributes, table
from .truth import Keys, Triplet, Verdict

DEFER = b"DEFER_IF_PERMIT Greylisted"


@pytest.fixture
def keys() -> Keys:
    """Give a key that was 1 from second 10, 2 from second 20, and may be 3 since second 30."""
    keys = Keys()
    keys.change(b"key", b"1", 9).acknowledged = 10
    keys.change(b"key", b"2", 19).acknowledged = 20
    keys.change(b"key", b"3", 30)
    return keys


@pytest.mark.parametrize(
    "value, asked, verdict, age",
    [
        (None, 5, Verdict.RIGHT, 0),
        (b"1", 5, Verdict.WRONG, 0),
        (b"1", 15, Verdict.RIGHT, 0),
        (b"2", 15, Verdict.WRONG, 0),
        (None, 15, Verdict.MISSING, 0),
        (b"2", 19.5, Verdict.RIGHT, 0),
        (b"1", 19.5, Verdict.RIGHT, 0),
        (b"1", 25, Verdict.OLD, 5),
        (None, 25, Verdict.MISSING, 0),
        (b"2", 35, Verdict.RIGHT, 0),
        (b"3", 35, Verdict.RIGHT, 0),
        (b"1", 35, Verdict.OLD, 15),
    ],
)
def test_keys(keys: Keys, value: bytes | None, asked: float, verdict: Verdict, age: float) -> None:
    """A value is right from when it was sent until the next one is acknowledged; afterwards it is old."""
    assert keys.judge(b"key", value, asked, asked + 0.1) == (verdict, age)


def test_other_key(keys: Keys) -> None:
    """The value of another key is wrong, and a key that was never stored is missing."""
    assert keys.judge(b"other", b"1", 15, 16) == (Verdict.WRONG, 0)
    assert keys.judge(b"other", None, 15, 16) == (Verdict.RIGHT, 0)


def test_delete(keys: Keys) -> None:
    """After a delete that was acknowledged the key is missing."""
    keys.change(b"key", None, 40).acknowledged = 41
    assert keys.judge(b"key", None, 42, 43) == (Verdict.RIGHT, 0)
    assert keys.judge(b"key", b"3", 42, 43) == (Verdict.OLD, 1)


@pytest.mark.parametrize(
    "action, asked, verdict",
    [
        (DEFER, 10.5, Verdict.RIGHT),
        (DEFER, 11.9, Verdict.RIGHT),
        (DEFER, 12.2, Verdict.LOST),
        (b"DUNNO", 12.2, Verdict.RIGHT),
        (b"PREPEND X-Greylist: delayed 2 seconds", 12.2, Verdict.RIGHT),
        (b"WARN no store", 12.2, Verdict.FAILED),
        (b"REJECT", 12.2, Verdict.WRONG),
    ],
)
def test_triplet(action: bytes, asked: float, verdict: Verdict) -> None:
    """What was deferred passes after the delay, give or take what is rounded."""
    triplet = Triplet(1)
    assert triplet.judge(DEFER, 1.0, 10, 10.1) is Verdict.RIGHT
    assert triplet.judge(action, 1.0, asked, asked + 0.1) is verdict


def test_new_triplet() -> None:
    """What has never been deferred must not pass, unless the clock is wrong."""
    assert Triplet(1).judge(b"DUNNO", 1.5, 10, 10.1) is Verdict.WRONG
    assert Triplet(1).judge(b"DUNNO", 1.5, 10, 10.1, clock=False) is Verdict.RIGHT


def test_row() -> None:
    """A row says what is not as it has to be, and the table shows it."""
    row = Row(fault="fire", place=0, limit=1.5, policy_limit=2.5, old_limit=3, memory_limit=100)
    assert row.problems() == ["no load look-ups too few"]
    row.judged(Verdict.RIGHT, 1.0, policy=True, text="")
    row.judged(Verdict.OLD, 1.0, 2.0, text="")
    assert row.problems() == row.evidence == []
    row.judged(Verdict.MISSING, 2.0, 4.0, text="look-up")
    row.not_answered("refused", "connection")
    row.not_answered("dropped", "by a worker that was killed")
    row.not_answered("dropped", "by another")
    row.ended = 1
    row.recovery, row.descriptors, row.memory = 2.5, 1, 101
    assert row.wrong() == ["1 false NOTFOUND"]
    assert row.problems() == [
        "1 false NOTFOUND",
        "1 connections refused",
        "2 connections dropped, above 1",
        "2.0 seconds for a look-up, above 1.5",
        "4.0 seconds of an old value, above 3",
        "2.5 seconds to recover, above 2",
        "1 more descriptors",
        "101 more bytes of memory",
    ]
    assert row.evidence[:2] == ["MISSING after 2.00 s, 4.00 s old: look-up", "refused: connection"]
    heading, line = table([attributes(row)])
    assert len(heading) == len(line)
    assert line.startswith("fire ")


def test_lag() -> None:
    """The tests' own waits are no fault, but the table says so where they are long."""
    row = Row(fault="fire", place=0, limit=1.5, policy_limit=2.5, old_limit=3, memory_limit=100, requests=1)
    row.judged(Verdict.RIGHT, 3.4, text="look-up")
    row.lag = 2.0
    assert row.problems() == []
    assert "proves nothing about times" in table([attributes(row)])[-1]
    row.lag = 1.0
    assert row.problems() == ["3.4 seconds for a look-up, above 1.5"]
    assert len(table([attributes(row)])) == 2
