"""A listener that leaves its requests to the test, and a client of it."""

from __future__ import annotations

from typing import Any, cast

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from socketmap_memcache.listeners.stream import Request, StreamConnection, StreamFactory
from socketmap_memcache.protocols.netstring import NetstringReader, encode
from tests.unit.listeners.transports import Client


class PlainConnection(StreamConnection):
    """Leaves each request to the test, but for those that begin with a ``!``, which it answers at once."""

    factory: PlainFactory

    def __init__(self) -> None:
        super().__init__(NetstringReader(1000))
        self.asked: list[tuple[bytes, Request]] = []

    def request_received(self, payload: bytes, request: Request) -> None:
        if payload.startswith(b"!"):
            self.reply(request, payload)
        else:
            self.asked.append((payload, request))

    def answer(self, *places: int) -> None:
        """Answer the requests that the test was left, by their number."""
        for place in places:
            payload, request = self.asked[place]
            self.reply(request, payload)


class PlainFactory(StreamFactory):
    protocol = cast(Any, PlainConnection)
    kind = "plain"


def requests(*payloads: bytes) -> bytes:
    return b"".join(map(encode, payloads))


class StreamTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.factory = PlainFactory(self.clock, 400)
        self.factory.doStart()
        self.client = Client(self.factory)

    @property
    def server(self) -> PlainConnection:
        return cast(PlainConnection, self.client.protocol)
