from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from socketmap_memcache.errors import TemporaryError
from socketmap_memcache.memcache.client import MemcacheClient
from socketmap_memcache.memcache.interface import Limits
from tests.unit.memcache.scripted import ScriptedConnection, ScriptedServer, value


class Script:
    """What a server does with what it is sent, one item for each turn."""

    @staticmethod
    def turns() -> st.SearchStrategy[list[str]]:
        return st.lists(
            st.sampled_from(
                [
                    "get",
                    "get",
                    "get",
                    "set",
                    "answer",
                    "answer",
                    "miss",
                    "error",
                    "garbage",
                    "half",
                    "wrong",
                    "close",
                    "wait",
                    "wait",
                    "refuse",
                ]
            ),
            max_size=40,
        )


@given(Script.turns())
def test_any_server(turns: list[str]) -> None:
    """Whatever a server does, each command ends once, in time, and only the server's own answer is one: no failure
    becomes a miss, and no value comes for another key.
    """
    clock, server, told = Clock(), ScriptedServer(), set()
    client = MemcacheClient("inet:mc:11211", server.connect, clock)
    results: list[tuple[bytes, list[object]]] = []
    missing: set[bytes] = set()
    connection: ScriptedConnection | None = None
    requests: list[bytes] = []

    def pump() -> None:
        clock.advance(0)
        if connection is not None:
            requests.extend(line for line in connection.received().split(b"\r\n") if line[:4] in {b"get ", b"set "})

    for number, turn in enumerate(turns):
        key = b"k%d" % number
        if server.attempts and turn != "refuse":
            requests.clear()
            connection = server.accept()
        pump()
        if turn in {"get", "set"}:
            limits = Limits(timeout=1 + number % 3, max_try=1 + number % 2)
            result: list[object] = []
            done: Deferred[Any] = client.get(key, limits) if turn == "get" else client.set(key, b"v", 0, 0, limits)
            done.addBoth(result.append)
            results.append((key, result))
        elif turn == "wait":
            clock.advance(1)
        elif turn == "refuse":
            if server.attempts:
                server.refuse()
        elif connection is not None and not connection.is_aborted() and requests:
            command, asked = requests[0].split(b" ")[:2]
            if turn in {"answer", "miss", "error", "wrong"}:
                requests.pop(0)
            if turn == "close":
                connection.lose()
                connection = None
            elif turn == "half":
                connection.send(b"VALUE %b 0 5\r\nab" % asked)
                connection = None  # nothing comes any more
            elif turn == "garbage":
                connection.send(b"END of it\r\n")
            elif turn == "error":
                connection.send(b"SERVER_ERROR\r\n")
            elif turn == "wrong":
                connection.send(value(b"wrong", b"wrong"))
            elif command == b"set":
                connection.send(b"STORED\r\n")
                told.add(asked)
            elif turn == "miss":
                missing.add(asked)
                connection.send(b"END\r\n")
            else:
                told.add(asked)
                connection.send(value(asked, b"value of " + asked))
    for _ in range(60):
        clock.advance(0.5)
        if server.attempts:
            server.refuse()
    client.close()
    assert clock.getDelayedCalls() == []
    for key, result in results:
        (answer,) = result
        if answer is None:
            assert key in missing
        elif answer is True:
            assert key in told
        elif isinstance(answer, bytes):
            assert answer == b"value of " + key
        else:
            assert isinstance(answer.value, TemporaryError)  # type: ignore[attr-defined]
