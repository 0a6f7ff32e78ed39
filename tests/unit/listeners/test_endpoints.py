from __future__ import annotations

import grp
import os
import pwd
import socket
import stat
import tempfile
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor as real_reactor
from twisted.internet.defer import Deferred, inlineCallbacks, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import TestCase

from socketmap_memcache.listeners import endpoints
from socketmap_memcache.listeners.endpoints import (
    HandedAddress,
    ListenAddress,
    SystemdAddress,
    TcpAddress,
    TwistedAddress,
    UnixAddress,
    backlog,
)

reactor: Any = real_reactor
USER = pwd.getpwuid(os.getuid())
GROUP = grp.getgrgid(os.getgid())


def parse(text: str) -> ListenAddress:
    return endpoints.parse(text, MemoryReactorClock())


@pytest.mark.parametrize(
    "text, host, port",
    [
        ("inet:127.0.0.1:10020", "127.0.0.1", 10020),
        ("inet:[::1]:10020", "::1", 10020),
        ("inet:[127.0.0.1]:1", "127.0.0.1", 1),
        ("inet:localhost:65535", "localhost", 65535),
    ],
)
def test_inet(text: str, host: str, port: int) -> None:
    """TCP addresses are written as Postfix writes them."""
    assert parse(text) == TcpAddress(text, host, port)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("unix:/a", UnixAddress("unix:/a", "/a")),
        ("unix:/a:mode=660", UnixAddress("unix:/a:mode=660", "/a", 0o660)),
        ("unix:/a:b:mode=0600", UnixAddress("unix:/a:b:mode=0600", "/a:b", 0o600)),
        (
            f"unix:/a:mode=660:user={USER.pw_name}:group={GROUP.gr_name}",
            UnixAddress(
                f"unix:/a:mode=660:user={USER.pw_name}:group={GROUP.gr_name}", "/a", 0o660, os.getuid(), os.getgid()
            ),
        ),
    ],
)
def test_unix(text: str, expected: UnixAddress) -> None:
    """A UNIX socket has a path, and options where wanted; everybody may connect unless a mode says otherwise."""
    assert parse(text) == expected
    assert UnixAddress("unix:/a", "/a").mode == 0o666


@pytest.mark.parametrize("text", ["tcp:10020", "tcp:10020:interface=127.0.0.1", "tcp6:10020"])
def test_twisted(text: str) -> None:
    """Any other endpoint description of Twisted's is taken."""
    assert parse(text) == TwistedAddress(text)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "is not an address"),
        ("10020", "is not an address"),
        ("bogus:1", "is not an address to listen on: Unknown endpoint type: 'bogus'; write inet:bogus:1"),
        ("127.0.0.1:1", "is not an address to listen on: Unknown endpoint type: '127.0.0.1'; write inet:127.0.0.1:1"),
        ("bogus", "is not an address to listen on: "),
        ("tcp:x", "is not an address"),
        ("tcp:", "is not an address"),
        ("tcp:1:bogus=2", "is not an address"),
        ("ssl:443:privateKey=/nonexistent", "is not an address"),
        ("inet:", "write inet:host:port"),
        ("inet:10020", "write inet:host:port"),
        ("inet:127.0.0.1", "write inet:host:port"),
        ("inet:127.0.0.1:0", "write inet:host:port"),
        ("inet:127.0.0.1:65536", "write inet:host:port"),
        ("inet:127.0.0.1:smtp", "write inet:host:port"),
        ("inet:::1:10020", "write inet:host:port"),
        ("inet:[::1:10020", "write inet:host:port"),
        ("unix:", "write unix:/path"),
        ("unix:relative", "write unix:/path"),
        ("unix:/a:mode=999", "mode must be octal"),
        ("unix:/a:mode=", "mode must be octal"),
        ("unix:/a:mode=-660", "mode must be octal"),
        ("unix:/a:mode=17777", "mode must be octal"),
        ("unix:/a:mode=rw", "mode must be octal"),
        ("unix:/a:user=no-such-user", "no-such-user"),
        ("unix:/a:group=no-such-group", "no-such-group"),
        ("systemd:", "write systemd:domain"),
        ("systemd:domain=UNIX", "write systemd:domain"),
        ("systemd:domain=IPX:index=0", "write systemd:domain"),
        ("systemd:domain=UNIX:index=x", "write systemd:domain"),
        ("systemd:domain=UNIX:index=0", "systemd passed 0 sockets, and not this one"),
        ("systemd:domain=UNIX:name=x", "systemd passed 0 sockets, and not this one"),
    ],
)
def test_parse_error(text: str, reason: str) -> None:
    """Whatever cannot be listened on is a ValueError with the reason, and nothing else."""
    with pytest.raises(ValueError, match=reason):
        parse(text)


def test_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket that systemd passed is chosen by its number or by its name."""
    monkeypatch.setattr(endpoints, "_PASSED", ["status", "maps"])
    for text, descriptor in (
        ("systemd:domain=UNIX:index=0", 3),
        ("systemd:domain=UNIX:index=1", 4),
        ("systemd:domain=UNIX:name=maps", 4),
    ):
        assert parse(text) == SystemdAddress(text, descriptor)
    for text in ("systemd:domain=UNIX:index=2", "systemd:domain=UNIX:name=other"):
        with pytest.raises(ValueError, match="systemd passed 2 sockets, and not this one"):
            parse(text)


@pytest.mark.parametrize(
    "environment, expected",
    [
        (b"LISTEN_PID=%d\0LISTEN_FDS=2\0LISTEN_FDNAMES=a:b\0", ["a", "b"]),
        (b"PATH=/bin\0LISTEN_FDS=2\0LISTEN_PID=%d\0", ["", ""]),
        (b"LISTEN_PID=%d\0LISTEN_FDS=1\0LISTEN_FDNAMES=a:b\0", ["a"]),
        (b"LISTEN_PID=%d\0LISTEN_FDS=x\0", []),
        (b"LISTEN_PID=%d\0", []),
        (b"LISTEN_PID=1%d\0LISTEN_FDS=2\0", []),
        (b"LISTEN_FDS=2\0", []),
        (b"", []),
    ],
)
def test_passed_by_systemd(environment: bytes, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets are known from the environment, if it was made for this very process."""
    if b"%d" in environment:
        environment %= os.getpid()
    monkeypatch.setattr(Path, "read_bytes", lambda _: environment)
    assert endpoints._passed_by_systemd() == expected


def test_backlog(monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue for connections is as long as the kernel allows, or as Python says where that cannot be read."""
    monkeypatch.setattr(Path, "read_text", lambda _: "1234\n")
    assert backlog() == 1234
    monkeypatch.setattr(Path, "read_text", lambda _: "many")
    assert backlog() == socket.SOMAXCONN


class Greeter(Protocol):
    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(b"hello")
        self.transport.loseConnection()


class TestListen(TestCase):
    """Real sockets, in a directory of their own and on the loopback interface."""

    timeout = 10

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory(prefix="listen-")
        self.addCleanup(directory.cleanup)
        self.path = str(Path(directory.name, "socket"))
        self.factory = Factory.forProtocol(Greeter)
        self.factory.noisy = False
        self.ports: list[IListeningPort] = []

    def listen(self, address: ListenAddress) -> IListeningPort:
        port = address.listen(reactor, self.factory)
        self.addCleanup(lambda: maybeDeferred(port.stopListening))
        return port

    def stop(self, port: IListeningPort) -> Deferred[Any]:
        return maybeDeferred(port.stopListening)

    def parse(self, text: str) -> ListenAddress:
        return endpoints.parse(text, reactor)

    @inlineCallbacks
    def assertGreets(self, family: socket.AddressFamily, address: Any) -> Generator[Deferred[Any], Any, None]:
        """Connect, and wait for the greeting."""
        from twisted.internet.task import deferLater

        with socket.socket(family, socket.SOCK_STREAM) as client:
            client.setblocking(False)
            client.connect_ex(address)
            while True:
                yield deferLater(reactor, 0.001)
                try:
                    assert client.recv(10) == b"hello"
                except BlockingIOError:
                    continue
                return

    @inlineCallbacks
    def test_unix(self) -> Generator[Deferred[Any], Any, None]:
        """A UNIX socket has the mode that was asked for, whatever the umask; it is gone after the end."""
        before = os.umask(0o077)
        self.addCleanup(os.umask, before)
        port = self.listen(self.parse(f"unix:{self.path}:mode=660:user={USER.pw_name}:group={GROUP.gr_name}"))
        assert os.umask(0o077) == 0o077
        status = Path(self.path).stat()
        assert stat.S_IMODE(status.st_mode) == 0o660
        assert (status.st_uid, status.st_gid) == (os.getuid(), os.getgid())
        yield self.assertGreets(socket.AF_UNIX, self.path)
        yield self.stop(port)
        assert not os.path.lexists(self.path)

    @inlineCallbacks
    def test_owner(self) -> Generator[Deferred[Any], Any, None]:
        """A UNIX socket can be given to another user and group, by root."""
        if os.getuid() != 0:
            self.skipTest("needs root")
        port = self.listen(UnixAddress("", self.path, 0o600, 4711, 4712))
        status = Path(self.path).stat()
        assert (status.st_uid, status.st_gid) == (4711, 4712)
        yield self.stop(port)

    @inlineCallbacks
    def test_backlog(self) -> Generator[Deferred[Any], Any, None]:
        """More clients can connect at one time than Twisted's own ports would let in."""
        port = self.listen(self.parse(f"unix:{self.path}"))
        clients = []
        for _ in range(min(200, backlog())):
            client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.addCleanup(client.close)
            client.setblocking(False)
            client.connect(self.path)  # raises BlockingIOError when the queue is full
            clients.append(client)
        yield self.assertGreets(socket.AF_UNIX, self.path)
        yield self.stop(port)

    @inlineCallbacks
    def test_stale(self) -> Generator[Deferred[Any], Any, None]:
        """A socket that nobody listens on any more is replaced."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stale:
            stale.bind(self.path)
            stale.listen()
        port = self.listen(self.parse(f"unix:{self.path}"))
        yield self.assertGreets(socket.AF_UNIX, self.path)
        yield self.stop(port)

    def test_live(self) -> None:
        """A socket that somebody listens on is left alone, also when its queue is full."""
        for queue in (5, 0):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as live:
                live.bind(self.path)
                live.listen(queue)
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
                    client.connect(self.path)
                    error = self.assertRaises(CannotListenError, self.listen, self.parse(f"unix:{self.path}"))
                assert "another process listens there" in str(error)
                assert self.path in str(error)
                assert stat.S_ISSOCK(os.lstat(self.path).st_mode)
            Path(self.path).unlink()

    def test_not_a_socket(self) -> None:
        """A file that is no socket is left alone, a link to a file too."""
        Path(self.path).write_text("precious")
        error = self.assertRaises(CannotListenError, self.listen, self.parse(f"unix:{self.path}"))
        assert "is not a socket" in str(error)
        assert Path(self.path).read_text() == "precious"

    def test_cannot_listen(self) -> None:
        """Without the directory, or with too long a path, there is an error that names the path, and says so."""
        for path, reason in {
            f"{self.path}/x": "its directory does not exist",
            self.path + "x" * 200: "too long",
        }.items():
            error = self.assertRaises(CannotListenError, self.listen, self.parse(f"unix:{path}"))
            assert path in str(error)
            assert reason in str(error)

    @inlineCallbacks
    def test_twice(self) -> Generator[Deferred[Any], Any, None]:
        """After the end the same address can be listened on again."""
        for _ in range(2):
            port = self.listen(self.parse(f"unix:{self.path}"))
            yield self.assertGreets(socket.AF_UNIX, self.path)
            yield self.stop(port)

    @inlineCallbacks
    def test_removed_by_another(self) -> Generator[Deferred[Any], Any, None]:
        """A socket that cannot be removed at the end is no error."""
        port = self.listen(self.parse(f"unix:{self.path}"))
        Path(self.path).unlink()
        yield self.stop(port)

    def free_port(self) -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            number: int = probe.getsockname()[1]
            return number

    @inlineCallbacks
    def test_tcp(self) -> Generator[Deferred[Any], Any, None]:
        """A TCP address is listened on, and refused while another has it."""
        number = self.free_port()
        port = self.listen(self.parse(f"inet:127.0.0.1:{number}"))
        yield self.assertGreets(socket.AF_INET, ("127.0.0.1", number))
        self.assertRaises(CannotListenError, self.listen, self.parse(f"inet:127.0.0.1:{number}"))
        yield self.stop(port)

    @inlineCallbacks
    def test_twisted(self) -> Generator[Deferred[Any], Any, None]:
        """An endpoint description of Twisted's is listened on, and refused while another has it."""
        number = self.free_port()
        address = self.parse(f"tcp:{number}:interface=127.0.0.1")
        port = self.listen(address)
        yield self.assertGreets(socket.AF_INET, ("127.0.0.1", number))
        self.assertRaises(CannotListenError, self.listen, address)
        yield self.stop(port)

    def test_twisted_later(self) -> None:
        """An endpoint that does not listen at once is an error, and not waited for."""
        self.patch(endpoints, "serverFromString", lambda *_: type("Endpoint", (), {"listen": lambda *_: Deferred()})())
        self.assertRaises(CannotListenError, self.listen, TwistedAddress("later:1"))

    @inlineCallbacks
    def test_inherited_unix(self) -> Generator[Deferred[Any], Any, None]:
        """A UNIX socket from systemd is used as it is: not its mode, nor its queue, nor its file is changed, and it
        goes on to listen after the end.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as inherited:
            inherited.bind(self.path)
            Path(self.path).chmod(0o640)
            inherited.listen(7)
            listened: list[int] = []
            self.patch(socket.socket, "listen", lambda *_: listened.append(1))
            port = self.listen(SystemdAddress("", inherited.fileno()))
            assert listened == []
            yield self.assertGreets(socket.AF_UNIX, self.path)
            yield self.stop(port)
            assert stat.S_IMODE(Path(self.path).stat().st_mode) == 0o640
            assert inherited.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
                client.connect(self.path)

    @inlineCallbacks
    def test_shared(self) -> Generator[Deferred[Any], Any, None]:
        """Of many who connect at once a process takes one at a time, so that the others that listen get their share."""
        places: list[tuple[socket.AddressFamily, Any]] = [
            (socket.AF_UNIX, self.path),
            (socket.AF_INET, ("127.0.0.1", 0)),
        ]
        for family, place in places:
            accepted: list[object] = []
            self.patch(self.factory, "buildProtocol", accepted.append)
            with socket.socket(family, socket.SOCK_STREAM) as handed, ExitStack() as stack:
                handed.bind(place)
                handed.listen(7)
                for _ in range(3):
                    stack.enter_context(socket.socket(family, socket.SOCK_STREAM)).connect(handed.getsockname())
                descriptor = os.dup(handed.fileno())
                port: Any = self.listen(HandedAddress("", descriptor))
                self.assertRaises(OSError, os.fstat, descriptor)
                for count in (1, 2, 3, 3):
                    port.doRead()
                    assert len(accepted) == count
                yield self.stop(port)

    @inlineCallbacks
    def test_inherited_tcp(self) -> Generator[Deferred[Any], Any, None]:
        """A TCP socket from systemd is used, and goes on to listen after the end."""
        with socket.socket() as inherited:
            inherited.bind(("127.0.0.1", 0))
            inherited.listen(7)
            port = self.listen(SystemdAddress("", inherited.fileno()))
            yield self.assertGreets(socket.AF_INET, inherited.getsockname())
            yield self.stop(port)
            with socket.socket() as client:
                client.connect(inherited.getsockname())
