from __future__ import annotations

from twisted.internet.task import Clock
from twisted.logger import Logger, capturedLogs, formatEvent

from socketmap_memcache.policies.greylist.decision_log import DecisionLog


def test_one_event() -> None:
    """The lines of one turn of the reactor are one event, those of the next another; nothing in them is a format."""
    clock = Clock()
    log = DecisionLog(clock, Logger())
    with capturedLogs() as events:
        log.add("first {x}")
        log.add("50%")
        assert not events
        clock.advance(0)
        log.add("third")
        clock.advance(0)
    assert [formatEvent(event) for event in events] == ["first {x}\n50%", "third"]
    assert not clock.getDelayedCalls()
