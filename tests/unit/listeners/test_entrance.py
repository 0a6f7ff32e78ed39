from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.internet.tcp import Port
from twisted.logger import capturedLogs, formatEvent

from socketmap_memcache.listeners.client_counts import ClientCounts
from socketmap_memcache.listeners.entrance import PRECEDENCE, RETRY_PAUSE, Entrance


class Listening:
    """A listening socket whose clients, or errors, are given in advance."""

    def __init__(self) -> None:
        self.next: list[object] = []

    def accept(self) -> object:
        result = self.next.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    def fileno(self) -> int:
        return 7


class ScriptedPort(Port):
    """Knows whether it is read."""

    def __init__(self) -> None:
        super().__init__(0, Factory(), reactor=Clock())
        self.socket: Any = Listening()
        self.reads = True

    def startReading(self) -> None:
        assert not self.reads
        self.reads = True

    def stopReading(self) -> None:
        assert self.reads
        self.reads = False


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ports() -> list[ScriptedPort]:
    return [ScriptedPort(), ScriptedPort()]


@pytest.fixture
def entrance(clock: Clock, ports: list[ScriptedPort]) -> Iterator[Entrance]:
    entrance = Entrance(clock, 2)
    for port in ports:
        assert entrance.watch(port) is port
    yield entrance
    entrance.close()
    assert clock.getDelayedCalls() == []


def test_limit(entrance: Entrance, ports: list[ScriptedPort]) -> None:
    """No port accepts while there are as many clients as may be, and each does again when one leaves."""
    a, b = ports
    entrance.came()
    assert (a.reads, b.reads) == (True, True)
    with capturedLogs() as logs:
        entrance.came()
        assert (a.reads, b.reads) == (False, False)
        entrance.left()
        assert (a.reads, b.reads) == (True, True)
        entrance.came()
    assert [formatEvent(event) for event in logs] == [
        "there are 2 clients, as many as may be (client_limit); others wait until one leaves"
    ]


def test_in_one_turn(entrance: Entrance, ports: list[ScriptedPort]) -> None:
    """Twisted accepts many clients in a row: beyond the limit it is told that there are no more."""
    listening = ports[0].socket._listening
    listening.next = [("client", "address"), ("left in the queue", "")]
    entrance.came()
    assert ports[0].socket.accept() == ("client", "address")
    entrance.came()
    with pytest.raises(BlockingIOError) as caught:
        ports[0].socket.accept()
    assert caught.value.errno == errno.EAGAIN
    assert len(listening.next) == 1


def test_other_limit(entrance: Entrance, ports: list[ScriptedPort]) -> None:
    """The limit may be changed; those who are there above it stay."""
    entrance.came()
    entrance.limit = 1
    assert entrance.limit == 1
    assert not ports[0].reads
    entrance.limit = 5
    assert ports[0].reads


def test_port_that_is_late(entrance: Entrance) -> None:
    """A port that is opened when there are too many clients begins with waiting."""
    entrance.limit = 0
    late = ScriptedPort()
    entrance.watch(late)
    assert not late.reads


def test_closed(entrance: Entrance, ports: list[ScriptedPort]) -> None:
    """Ports that are closed are not opened again by clients that leave."""
    entrance.limit = 0
    entrance.close()
    entrance.limit = 1
    assert not ports[0].reads


def test_shut(entrance: Entrance, ports: list[ScriptedPort]) -> None:
    """While it is shut nobody is accepted, whoever leaves, and it tells when nobody is there."""
    told: list[str] = []
    entrance.came()
    entrance.came()
    entrance.shut(lambda: told.append("empty"))
    entrance.left()
    entrance.limit = 3
    assert [port.reads for port in ports] == [False, False]
    with pytest.raises(BlockingIOError):
        ports[0].socket.accept()
    assert told == []
    entrance.left()
    assert told == ["empty"]
    entrance.reopen()
    assert [port.reads for port in ports] == [True, True]
    entrance.came()
    entrance.left()
    assert told == ["empty"]


def test_shut_without_clients(entrance: Entrance) -> None:
    """Where nobody is there it tells so at once."""
    told: list[str] = []
    entrance.shut(lambda: told.append("empty"))
    assert told == ["empty"]


def test_shut_when_full(entrance: Entrance, ports: list[ScriptedPort]) -> None:
    """The limit holds when it is open again."""
    entrance.came()
    entrance.came()
    entrance.shut(bool)
    entrance.reopen()
    assert not ports[0].reads
    entrance.left()
    assert ports[0].reads


def test_shut_when_exhausted(entrance: Entrance, ports: list[ScriptedPort], clock: Clock) -> None:
    """Where descriptors have run out before, it stays shut after the pause."""
    ports[0].socket._listening.next = [OSError(errno.EMFILE, "")]
    with capturedLogs(), pytest.raises(BlockingIOError):
        ports[0].socket.accept()
    entrance.shut(bool)
    clock.advance(RETRY_PAUSE)
    assert not ports[0].reads
    entrance.reopen()
    assert ports[0].reads


def test_other_kinds(entrance: Entrance) -> None:
    """A port of an unknown kind is left as it is."""
    other: Any = object()
    port: IListeningPort = other
    assert entrance.watch(port) is other


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS])
@pytest.mark.usefixtures("entrance")
def test_exhausted(number: int, clock: Clock, ports: list[ScriptedPort]) -> None:
    """Where descriptors run out, all ports pause a moment, with one line in the log however often that happens."""
    a, b = ports
    a.socket._listening.next = [OSError(number, os.strerror(number))] * 3
    with capturedLogs() as logs:
        for _ in range(3):
            with pytest.raises(BlockingIOError):
                a.socket.accept()
            assert (a.reads, b.reads) == (False, False)
            clock.advance(RETRY_PAUSE)
            assert (a.reads, b.reads) == (True, True)
    assert [formatEvent(event) for event in logs] == [
        f"no more than 0 clients can be accepted for now: {os.strerror(number)}; others wait"
    ]


def test_exhausted_until_one_leaves(entrance: Entrance, ports: list[ScriptedPort], clock: Clock) -> None:
    """Where descriptors run out, a client that leaves makes room at once."""
    entrance.came()
    ports[0].socket._listening.next = [OSError(errno.EMFILE, "")]
    with capturedLogs(), pytest.raises(BlockingIOError):
        ports[0].socket.accept()
    entrance.left()
    assert ports[0].reads
    assert clock.getDelayedCalls() == []


def test_exhausted_and_full(entrance: Entrance, ports: list[ScriptedPort], clock: Clock) -> None:
    """After the pause, the limit holds."""
    ports[0].socket._listening.next = [OSError(errno.EMFILE, "")]
    with capturedLogs(), pytest.raises(BlockingIOError):
        ports[0].socket.accept()
    entrance.limit = 0
    clock.advance(RETRY_PAUSE)
    assert not ports[0].reads


def test_other_errors(entrance: Entrance, ports: list[ScriptedPort]) -> None:
    """Other errors, and all else of the socket, are Twisted's business."""
    ports[0].socket._listening.next = [BlockingIOError(errno.EAGAIN, "")]
    with pytest.raises(BlockingIOError):
        ports[0].socket.accept()
    assert entrance.is_open
    ports[0].socket._listening.next = [ConnectionAbortedError(errno.ECONNABORTED, "")]
    with pytest.raises(ConnectionAbortedError):
        ports[0].socket.accept()
    assert ports[0].socket.fileno() == 7


class SharedPort(ScriptedPort):
    """Lets its worker accept where Twisted would."""

    def __init__(self, worker: Worker) -> None:
        super().__init__()
        self._worker = worker

    def doRead(self) -> None:
        self._worker.accept()


class Worker:
    """One of the workers that listen at the same port."""

    def __init__(self, clock: Clock, descriptor: int, number: int) -> None:
        self.port = SharedPort(self)
        self.entrance = Entrance(clock, 100, ClientCounts(descriptor, number))
        self.entrance.watch(self.port)
        self.accepted = 0

    def accept(self) -> None:
        """Do what Twisted does where somebody is there: each of the clients has one more behind it."""
        self.port.socket._listening.next = ["client"]
        with suppress(BlockingIOError):
            self.port.socket.accept()
            self.accepted += 1
            self.entrance.came()


@pytest.fixture
def workers(clock: Clock) -> Iterator[tuple[Worker, Worker]]:
    descriptor = ClientCounts.make()
    both = Worker(clock, descriptor, 1), Worker(clock, descriptor, 2)
    yield both
    for worker in both:
        worker.entrance.close()
    assert clock.getDelayedCalls() == []
    os.close(descriptor)


def test_gives_precedence(workers: tuple[Worker, Worker], clock: Clock) -> None:
    """A worker with more clients than another lets that one accept; who is left after a moment it takes."""
    busy, idle = workers
    busy.accept()
    busy.accept()
    assert (busy.accepted, busy.port.reads) == (1, False)
    idle.accept()
    assert idle.accepted == 1
    clock.advance(PRECEDENCE)  # nobody else has taken the client
    assert (busy.accepted, busy.port.reads) == (2, True)
    busy.accept()
    assert (busy.accepted, busy.port.reads) == (2, False)


def test_no_need_to_wait(workers: tuple[Worker, Worker]) -> None:
    """A client that leaves lets a worker accept again that has waited for others; so does the end of another one."""
    first, second = workers
    first.accept()
    first.accept()
    first.entrance.left()
    assert first.port.reads
    first.accept()
    assert first.accepted == 2
    second.entrance.close()
    first.accept()
    assert (first.accepted, first.port.reads) == (3, True)


def test_shut_while_waiting(workers: tuple[Worker, Worker], clock: Clock) -> None:
    """A worker that is shut while it waits for others takes nobody, and nobody waits for it until it is open again."""
    busy, idle = workers
    busy.accept()
    busy.accept()
    busy.entrance.shut(bool)
    clock.advance(PRECEDENCE)
    assert (busy.accepted, busy.port.reads) == (1, False)
    for _ in range(3):
        idle.accept()
    busy.entrance.left()  # who leaves does not make others wait for this worker
    idle.accept()
    assert (idle.accepted, idle.port.reads) == (4, True)
    busy.entrance.reopen()
    idle.accept()
    assert (idle.accepted, idle.port.reads) == (4, False)


def test_full_while_waiting(workers: tuple[Worker, Worker], clock: Clock) -> None:
    """After the wait for others, the limit holds."""
    busy, _ = workers
    busy.accept()
    busy.accept()
    busy.entrance.limit = 1
    clock.advance(PRECEDENCE)
    assert (busy.accepted, busy.port.reads) == (1, False)


def test_twisted(clock: Clock) -> None:
    """Twisted's port, told by its socket that nobody is there, closes nobody's connection."""
    entrance = Entrance(clock, 1)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        port = ScriptedPort()
        port.socket = listening
        port.numberAccepts = 10
        entrance.watch(port)
        entrance.came()
        with socket.create_connection(listening.getsockname()) as client:
            port.doRead()
            client.setblocking(False)
            with pytest.raises(BlockingIOError):
                client.recv(1)
