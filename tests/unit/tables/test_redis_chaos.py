"""Whatever happens to the connections, each operation has one answer in time, and it is the server's."""

from __future__ import annotations

from typing import Any

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from socketmap_memcache.errors import TableError, TemporaryError
from socketmap_memcache.tables import redis_command
from socketmap_memcache.tables.redis_client import RedisClient
from tests.unit.tables.redis_scripted import Peer, Redis, bulk

TIMEOUT = 2.0
EVENTS = st.sampled_from(
    [
        "get",
        "get",
        "set",
        "delete",
        "accept",
        "accept",
        "refuse",
        "serve",
        "serve",
        "lose",
        "garbage",
        "loading",
        "tick",
    ]
)


@attrs.define
class Results:
    """Hears of the answers.

    :ivar wanted: the number, the kind and the time of each operation without one.
    """

    clock: Clock
    wanted: dict[int, tuple[str, float]] = attrs.Factory(dict)

    def answered(self, value: Any, token: int) -> None:
        kind, began = self.wanted.pop(token)
        assert self.clock.seconds() - began <= TIMEOUT
        expected = {"get": [b"value of %d" % token, None][token % 2], "set": True, "delete": token % 2 == 0}
        assert value == expected[kind], (kind, token)

    def failed(self, failure: Failure, token: int) -> None:
        _, began = self.wanted.pop(token)
        assert self.clock.seconds() - began <= TIMEOUT
        assert failure.check(TableError)


class World:
    def __init__(self) -> None:
        self.clock = Clock()
        self.redis = Redis(self.clock)
        self.client = RedisClient("redis:/x", self.redis.connect, self.clock, TIMEOUT, 1)
        self.results = Results(self.clock)
        self.peers: list[Peer] = []
        self.count = 0

    def do(self, event: str) -> None:
        peer = self.peers[-1] if self.peers else None
        if event in {"get", "set", "delete"}:
            self.begin(event)
        elif event == "accept" and self.redis.attempts:
            self.peers.append(self.redis.accept())
        elif event == "refuse" and self.redis.attempts:
            self.redis.refuse(TemporaryError("refused"))
        elif event == "tick":
            self.clock.advance(0.25)
        elif peer is not None and event == "serve":
            self.serve(peer)
        elif peer is not None and event in {"garbage", "loading"}:
            peer.send({"garbage": b"garbage\r\n", "loading": b"-LOADING x\r\n"}[event])
        elif peer is not None and event == "lose":
            self.peers.pop().lose()

    def begin(self, kind: str) -> None:
        number = self.count
        self.count += 1
        self.results.wanted[number] = (kind, self.clock.seconds())
        key = b"%d" % number
        if kind == "get":
            self.client.send(redis_command.get(key, self.results, number))
        elif kind == "set":
            self.client.send(redis_command.set_(key, b"v", None, self.results, number))
        else:
            self.client.send(redis_command.delete(key, self.results, number))

    def serve(self, peer: Peer) -> None:
        """Answer what has come, as a server does for which even numbers exist."""
        for command in peer.received():
            word, key = command.split()[:2]
            exists = int(key) % 2 == 0
            value = bulk(b"value of %b" % key if exists else None)
            peer.send({b"GET": value, b"SET": b"+OK\r\n", b"DEL": b":%d\r\n" % exists}[word])


@settings(max_examples=200, deadline=None)
@given(st.lists(EVENTS, max_size=60))
def test_each_operation_is_answered(events: list[str]) -> None:
    """No operation is answered twice, too late, with another's reply, or with "missing" where nobody said so."""
    world = World()
    for event in events:
        world.do(event)
    for _ in range(10):
        world.do("tick")
    assert world.results.wanted == {}
    world.client.close()
    assert [call for call in world.clock.getDelayedCalls() if call.getTime() > world.clock.seconds()] == []
