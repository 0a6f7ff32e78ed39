from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from socketmap_memcache.memcache import members
from socketmap_memcache.memcache.history import History
from socketmap_memcache.memcache.members import FailureRule, Members
from socketmap_memcache.memcache.memory import MONTH

from .cluster_tests import NOW, Ring


class TestMembers(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(NOW)
        clients: Any = [SimpleNamespace(up_since=float("-inf"))]
        rule = FailureRule(stand_in=True, failover_ttl=60)
        self.members = Members(clients, Ring(), rule, NOW + MONTH, History(), self.clock.seconds, self.clock.seconds)

    def test_stand_in_ttl(self) -> None:
        """Whatever ttl memcached would be given, at a stand-in it is at most failover_ttl."""
        ttls = [-1, 0, 1, 60, 61, MONTH, MONTH + 1, NOW + 30, NOW + 60, NOW + 61]
        expected = [-1, 60, 1, 60, 60, 60, MONTH + 1, NOW + 30, NOW + 60, 60]
        assert [self.members.stand_in_ttl(ttl) for ttl in ttls] == expected

    def test_absolute_ttl(self) -> None:
        """A ttl that is a UNIX time counts from now."""
        self.members.note_missed(0)
        self.clock.advance(MONTH)
        assert not self.members.is_whole(0)
        self.clock.advance(1)
        assert self.members.is_whole(0)

    def test_stand_ins(self) -> None:
        """A stand-in is remembered until a change, for failover_ttl, and within a bound."""
        self.members.note_stand_in(b"0a", 1)
        self.members.note_stand_in(b"0a", 2)
        assert sorted(self.members.take_stand_ins(b"0a")) == [1, 2]
        assert list(self.members.take_stand_ins(b"0a")) == []
        self.members.note_stand_in(b"0a", 1)
        self.clock.advance(61)
        self.members.note_stand_in(b"0b", 1)
        assert list(self.members.take_stand_ins(b"0a")) == []
        self.patch(members, "STAND_INS_LIMIT", 2)
        self.members.note_stand_in(b"0c", 1)
        self.members.note_stand_in(b"0d", 1)
        assert [list(self.members.take_stand_ins(key)) for key in (b"0b", b"0c", b"0d")] == [[], [1], [1]]
