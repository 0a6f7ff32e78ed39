"""What the tests of the policy have in common: a mail, a table that a test can hold, and a clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from socketmap_memcache.policies.greylist.decision_log import PAUSE
from socketmap_memcache.policies.greylist.lists import Lists
from socketmap_memcache.policies.greylist.policy import GreylistPolicy
from socketmap_memcache.policies.greylist.settings import Settings

from .tables import HeldTable

NOW = 1_700_000_000
KEY, CLIENT = b"t/192.0.2.0/alice@example.com/bob@example.org", b"c/192.0.2.1"
REQUEST = {
    b"client_address": b"192.0.2.1",
    b"client_name": b"mail.example.com",
    b"sender": b"alice@example.com",
    b"recipient": b"bob@example.org",
    b"instance": b"1",
}
REST = "client_name=mail.example.com, client_address=192.0.2.1, sender=alice@example.com, recipient=bob@example.org"
TEXT = b"Greylisted, see http://postgrey.schweikert.ch/help/example.org.html"
DEFERRED = b"DEFER_IF_PERMIT " + TEXT


class FakeClients:
    """A list of clients that has the one of the requests, or has it not."""

    def __init__(self, has: bool) -> None:
        self.has = has
        self.closed = False

    def matches(self, client_name: bytes, client_address: bytes) -> bool:
        return self.has

    def close(self) -> None:
        self.closed = True


class PolicyTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(NOW)
        self.table = HeldTable()
        self.open()

    def open(self, lists: Any = None, **settings: Any) -> None:
        self.lists = Lists() if lists is None else lists
        self.policy = GreylistPolicy(
            Settings(hostname=b"mx", header=b"X-Greylist: %t by %h", **settings), self.lists, self.table, self.clock
        )

    def begin(self, **attributes: bytes | None) -> Deferred[bytes]:
        request = {**REQUEST, **{name.encode(): value for name, value in attributes.items()}}
        return self.policy.decide({name: value for name, value in request.items() if value is not None})

    def ask(self, **attributes: bytes | None) -> bytes:
        return self.successResultOf(self.begin(**attributes))

    def lines(self, **attributes: bytes | None) -> list[str]:
        """Ask, and return what is logged."""
        self.clock.advance(PAUSE)
        with capturedLogs() as events:
            self.ask(**attributes)
            self.clock.advance(PAUSE)
        return texts(events)


def texts(events: Sequence[LogEvent]) -> list[str]:
    return [line for event in events for line in (formatEvent(event) or "").split("\n")]
