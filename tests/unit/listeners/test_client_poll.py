from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableDescriptor, IReadDescriptor
from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from zope.interface import directlyProvides
from zope.interface.verify import verifyObject

from socketmap_memcache.listeners import client_poll as module
from socketmap_memcache.listeners.client_poll import ClientPoll, client_poll


class Reactor:
    """Remembers who reads and writes."""

    def __init__(self) -> None:
        self.readers: set[object] = set()
        self.removed_writers: list[object] = []

    def addReader(self, reader: object) -> None:
        self.readers.add(reader)

    def removeReader(self, reader: object) -> None:
        self.readers.remove(reader)

    def removeWriter(self, writer: object) -> None:
        self.removed_writers.append(writer)


class Transport:
    """One end of a pair of sockets.

    :ivar reason: given, or raised, after what is to be read has been read.
    """

    def __init__(self) -> None:
        self.near, self.far = socket.socketpair()
        self.near.setblocking(False)
        self.read: list[bytes] = []
        self.reason: Exception | None = None
        self.raises = False
        self.lost: list[object] = []
        self.half_lost: list[object] = []

    def fileno(self) -> int:
        return self.near.fileno()

    def doRead(self) -> Exception | None:
        self.read.append(self.near.recv(100))
        if self.raises and self.reason is not None:
            raise self.reason
        return self.reason

    def connectionLost(self, reason: Failure) -> None:
        self.lost.append(type(reason.value))

    def readConnectionLost(self, reason: Failure) -> None:
        self.half_lost.append(type(reason.value))

    def close(self) -> None:
        self.near.close()
        self.far.close()


@pytest.fixture
def reactor() -> Reactor:
    return Reactor()


@pytest.fixture
def transports() -> Iterator[list[Transport]]:
    made = [Transport() for _ in range(3)]
    yield made
    for transport in made:
        transport.close()


@pytest.fixture
def poll(reactor: Reactor) -> ClientPoll:
    return client_poll(reactor)


def test_reads(transports: list[Transport], poll: ClientPoll) -> None:
    """Those that are ready are read, others and removed ones are not; adding and removing may be done twice."""
    a, b, c = transports
    for transport in transports:
        poll.add(transport)
        poll.add(transport)
    assert verifyObject(IReadDescriptor, poll)
    assert poll.logPrefix() == "clients"
    assert poll.fileno() > 2
    a.far.send(b"1")
    c.far.send(b"3")
    poll.remove(c)
    poll.remove(c)
    poll.doRead()
    assert (a.read, b.read, c.read) == ([b"1"], [], [])
    poll.add(c)
    poll.doRead()
    assert (a.read, b.read, c.read) == ([b"1"], [], [b"3"])


def test_reader(reactor: Reactor, transports: list[Transport], poll: ClientPoll) -> None:
    """The reactor reads for the poll as long as there is a client."""
    assert reactor.readers == set()
    for transport in transports:
        poll.add(transport)
        assert reactor.readers == {poll}
    for transport in transports:
        assert reactor.readers == {poll}
        poll.remove(transport)
    assert reactor.readers == set()
    poll.connectionLost(Failure(ConnectionDone()))


def test_ended_by_another(transports: list[Transport], poll: ClientPoll, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transport that another one has put an end to meanwhile is not read any more."""
    a, b, _ = transports
    for one, other in ((a, b), (b, a)):
        poll.add(one)
        one.far.send(b"x")
        monkeypatch.setattr(one, "doRead", lambda other=other: poll.remove(other))
    poll.doRead()
    assert len(poll._transports) == 1


def test_limit(transports: list[Transport], poll: ClientPoll, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only so many are served at once; the others come next."""
    monkeypatch.setattr(module, "READY_LIMIT", 2)
    for transport in transports:
        poll.add(transport)
        transport.far.send(b"x")
    poll.doRead()
    assert sum(len(transport.read) for transport in transports) == 2
    poll.doRead()
    assert [transport.read for transport in transports] == [[b"x"]] * 3


def test_lost(reactor: Reactor, transports: list[Transport], poll: ClientPoll) -> None:
    """A transport hears of its end, as of the reactor: half of it, where it can live with that, or all."""
    a, b, c = transports
    directlyProvides(a, IHalfCloseableDescriptor)
    directlyProvides(b, IHalfCloseableDescriptor)
    for transport, reason in ((a, ConnectionDone()), (b, ConnectionLost()), (c, ConnectionDone())):
        poll.add(transport)
        transport.reason = reason
        transport.far.close()
    poll.doRead()
    assert (a.half_lost, a.lost) == ([ConnectionDone], [])
    assert (b.half_lost, b.lost) == ([], [ConnectionLost])
    assert (c.half_lost, c.lost) == ([], [ConnectionDone])
    assert sorted(map(id, reactor.removed_writers)) == sorted([id(b), id(c)])
    assert reactor.readers == set()


def test_unforeseen(transports: list[Transport], poll: ClientPoll) -> None:
    """An error that is raised ends that connection only, and is logged."""
    a, b, _ = transports
    for transport in (a, b):
        poll.add(transport)
        transport.far.send(b"x")
    a.reason, a.raises = ValueError("oops"), True
    with capturedLogs() as logs:
        poll.doRead()
    assert a.lost == [ValueError]
    assert b.read == [b"x"]
    assert len(logs) == 1


def test_unforeseen_at_the_end(transports: list[Transport], poll: ClientPoll, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that is raised when a connection ends leaves the others alone, too; so does a closed descriptor."""
    a, b, c = transports
    for transport in transports:
        poll.add(transport)
    for transport in (a, b):
        transport.far.send(b"x")
        transport.reason = ConnectionLost()
        monkeypatch.setattr(transport, "connectionLost", lambda _: 1 / 0)
    with capturedLogs() as logs:
        poll.doRead()
    assert len(logs) == 2
    c.near.close()
    poll.remove(c)
    assert poll._transports == {}


def test_one_for_each_reactor(reactor: Reactor, poll: ClientPoll) -> None:
    """A reactor has one poll."""
    assert client_poll(reactor) is poll
    assert client_poll(Reactor()) is not poll
