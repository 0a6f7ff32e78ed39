from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from tests.unit.tables.fakes import Domains
from tests.unit.tables.redis_scripted import bulk
from tests.unit.tables.test_redis import RedisTableTests


class TestClosing(RedisTableTests):
    def test_while_matching(self) -> None:
        """What waits for the domain list when the table is closed is done with both of them still open."""
        trace: list[str] = []
        matched: Deferred[bool] = Deferred()
        table = self.make(domain=Domains(trace, matched))
        done: Deferred[Any] = table.lookup(b"a@b")
        table.close()
        assert trace == ["domain of b'a@b'"]
        matched.callback(True)
        peer = self.redis.accept()
        assert self.commands(peer) == [b"GET p:a@b"]
        peer.send(bulk(b"v"))
        assert self.successResultOf(done) == b"v"
        assert trace[1:] == ["close domain"]
        assert self.clock.getDelayedCalls() == []

    def test_while_matching_nothing(self) -> None:
        """The table is closed, too, when what it waits for turns out to be outside of the domain."""
        trace: list[str] = []
        matched: Deferred[bool] = Deferred()
        table = self.make(domain=Domains(trace, matched))
        done = table.delete(b"a@b")
        table.close()
        matched.callback(False)
        assert self.successResultOf(done) is False
        assert trace[1:] == ["close domain"]
        assert self.redis.attempts == []
