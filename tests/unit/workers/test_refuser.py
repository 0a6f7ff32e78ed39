"""How clients are sent away while no worker serves."""

from __future__ import annotations

import errno
from typing import Any, cast

from twisted.internet.testing import MemoryReactorClock

from socketmap_memcache.listeners.entrance import RETRY_PAUSE
from socketmap_memcache.workers.refuser import Refuser


class _Listening:
    """A listening socket; each item is a client who waits, or why none can be accepted."""

    def __init__(self, *waiting: OSError | None) -> None:
        self.waiting = list(waiting)
        self.closed = 0

    def setblocking(self, blocking: bool) -> None:
        assert not blocking

    def accept(self) -> tuple[Any, str]:
        error = self.waiting.pop(0)
        if error is not None:
            raise error
        return self, "a client"

    def close(self) -> None:
        self.closed += 1


def _refuse(listening: _Listening) -> tuple[Refuser, MemoryReactorClock]:
    reactor = MemoryReactorClock()
    refuser = Refuser(reactor)
    assert refuser.begin([cast(Any, listening)])
    return refuser, reactor


def test_refused() -> None:
    """Who connects is sent away, and who has left before is no matter."""
    listening = _Listening(OSError(errno.ECONNABORTED, ""), None)
    refuser, reactor = _refuse(listening)
    (door,) = reactor.readers
    door.doRead()
    door.doRead()
    assert listening.closed == 1
    assert reactor.readers == {door}
    refuser.end()
    assert not reactor.readers


def test_no_descriptors() -> None:
    """Without a free descriptor nobody can be sent away, which is tried again after a pause."""
    listening = _Listening(OSError(errno.EMFILE, ""), None)
    _, reactor = _refuse(listening)
    (door,) = reactor.readers
    door.doRead()
    assert not reactor.readers
    reactor.advance(RETRY_PAUSE)
    assert reactor.readers == {door}
    door.doRead()
    assert listening.closed == 1


def test_end_in_the_pause() -> None:
    """What has ended does not come back after the pause."""
    refuser, reactor = _refuse(_Listening(OSError(errno.ENFILE, "")))
    (door,) = reactor.readers
    door.doRead()
    refuser.end()
    assert not reactor.getDelayedCalls()
