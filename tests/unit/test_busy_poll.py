from __future__ import annotations

from contextlib import suppress
from functools import partial
from unittest.mock import patch

import pytest
from twisted.internet.selectreactor import SelectReactor
from twisted.internet.task import Clock

from socketmap_memcache.busy_poll import BUSY_POLL, BusyPoll
from socketmap_memcache.listeners.client_poll import ClientPoll
from socketmap_memcache.pipelined_connection import PipelinedConnection


class Reactor:
    """May sleep for 3 seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def seconds(self) -> float:
        return self.now

    def timeout(self) -> float | None:
        return 3.0


@pytest.fixture
def poll() -> BusyPoll:
    poll = BusyPoll()
    poll.seconds = 0.5
    return poll


def sleep_time(reactor: Reactor, now: float) -> float | None:
    reactor.now = now
    return reactor.timeout()


def test_quiet(poll: BusyPoll) -> None:
    """Nothing has come: the reactor sleeps as long as it wants to."""
    reactor = Reactor()
    poll.use(reactor)
    assert sleep_time(reactor, 10) == 3


def test_awake(poll: BusyPoll) -> None:
    """After something has come the reactor does not sleep for a moment, which begins again with the next."""
    reactor = Reactor()
    poll.use(reactor)
    poll.heard = True
    assert [sleep_time(reactor, now) for now in (10, 10.4)] == [0, 0]
    poll.heard = True
    assert [sleep_time(reactor, now) for now in (10.45, 10.9, 11, 10.9)] == [0, 0, 3, 3]


def test_set_back(poll: BusyPoll) -> None:
    """A clock that is set back, of a reactor whose clock may be, does not keep the process awake until it is over."""
    reactor = Reactor()
    poll.use(reactor)
    poll.heard = True
    assert [sleep_time(reactor, now) for now in (10_000, 10)] == [0, 3]


def test_twice(poll: BusyPoll) -> None:
    """To look after the same reactor again changes nothing."""
    reactor = Reactor()
    poll.use(reactor)
    poll.use(reactor)
    assert sleep_time(reactor, 10) == 3


def test_off(poll: BusyPoll) -> None:
    """Without a time the reactor sleeps at once, and what came before the time was set has no sequel."""
    reactor = Reactor()
    poll.use(reactor)
    poll.seconds = 0
    poll.heard = True
    assert sleep_time(reactor, 10) == 3
    poll.seconds = 0.5
    assert sleep_time(reactor, 10) == 3


def test_reactor(poll: BusyPoll) -> None:
    """A reactor of Twisted's asks before each sleep, and its timers run meanwhile."""
    reactor = SelectReactor()
    poll.use(reactor)
    poll.seconds = 60
    slept: list[float | None] = []

    def turn(delay: float | None) -> None:
        slept.append(delay)
        poll.heard = len(slept) == 1
        if len(slept) == 4:
            reactor.crash()

    due: list[bool] = []
    with patch.object(reactor, "doIteration", turn):
        reactor.callLater(0, due.append, True)
        reactor.callLater(1000, due.append, False)
        reactor.startRunning(installSignalHandlers=False)
        reactor.mainLoop()
    assert due == [True]
    assert slept[0] is not None
    assert slept[1:] == [0, 0, 0]
    reactor.disconnectAll()


def test_heard() -> None:
    """What comes from a client or from a server keeps the process awake."""
    for hear in (ClientPoll(None).doRead, partial(PipelinedConnection(Clock(), None).dataReceived, b"")):
        BUSY_POLL.heard = False
        with suppress(AttributeError):  # there is nobody to hear it
            hear()
        assert BUSY_POLL.heard
