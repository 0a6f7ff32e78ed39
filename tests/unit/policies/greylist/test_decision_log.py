from __future__ import annotations

from twisted.internet.task import Clock
from twisted.logger import Logger, capturedLogs, formatEvent

from socketmap_memcache.policies.greylist.decision_log import FEW, MOST, PAUSE, DecisionLog


def test_few() -> None:
    """A few lines are an event each, in order, after a moment; nothing in them is a format."""
    clock = Clock()
    log = DecisionLog(clock, Logger())
    with capturedLogs() as events:
        log.add("first {x}")
        log.add("50%")
        assert not events
        clock.advance(PAUSE)
        assert [formatEvent(event) for event in events] == ["first {x}", "50%"]
        log.add("third")
        clock.advance(PAUSE)
    assert formatEvent(events[-1]) == "third"
    assert not clock.getDelayedCalls()


def test_many() -> None:
    """Many lines in one moment are one event."""
    clock = Clock()
    log = DecisionLog(clock, Logger())
    lines = [str(number) for number in range(FEW + 1)]
    with capturedLogs() as events:
        for line in lines:
            log.add(line)
        clock.advance(PAUSE)
    assert [formatEvent(event) for event in events] == ["\n".join(lines)]


def test_flush() -> None:
    """At the end nothing waits."""
    clock = Clock()
    log = DecisionLog(clock, Logger())
    with capturedLogs() as events:
        log.flush()
        log.add("line")
        log.flush()
    assert [formatEvent(event) for event in events] == ["line"]
    assert not clock.getDelayedCalls()


def test_late() -> None:
    """When the moment does not end, as after the clock was set back, no more lines wait than are allowed to."""
    clock = Clock()
    log = DecisionLog(clock, Logger())
    lines = [str(number) for number in range(MOST)]
    with capturedLogs() as events:
        for line in lines:
            log.add(line)
        assert [formatEvent(event) for event in events] == ["\n".join(lines)]
        log.add("last")
        clock.advance(PAUSE)
    assert formatEvent(events[-1]) == "last"
    assert not clock.getDelayedCalls()
