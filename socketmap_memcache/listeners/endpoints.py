"""Where to listen: addresses as Postfix writes them, and Twisted's own descriptions."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import re
import socket
import stat
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
from twisted.internet import tcp, unix
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.python.failure import Failure

from socketmap_memcache.listeners.client_poll import client_poll

_INET = re.compile(r"inet:(?:\[(?P<literal>[^\]]+)\]|(?P<host>[^:\[\]]+)):(?P<port>[0-9]{1,5})")
_UNIX = re.compile(r"unix:(?P<path>/.*?)(?P<options>(?::(?:mode|user|group)=[^:]*)*)")
_SYSTEMD = re.compile(r"systemd:domain=(?:UNIX|INET|INET6):(?:index=(?P<index>[0-9]+)|name=(?P<name>[^:]+))")

_FIRST_PASSED = 3  # SD_LISTEN_FDS_START


def _passed_by_systemd() -> list[str]:
    """Give the names of the sockets that systemd has passed, in order; they may be empty: sd_listen_fds(3)."""
    environment = {}
    # Not os.environ: Twisted has taken these variables out of that, for its own endpoint.
    with suppress(OSError):
        for entry in Path("/proc/self/environ").read_bytes().split(b"\0"):
            variable, _, value = entry.partition(b"=")
            environment[variable] = value
    count = environment.get(b"LISTEN_FDS", b"")
    if environment.get(b"LISTEN_PID") != b"%d" % os.getpid() or not count.isdigit():
        return []
    names = environment.get(b"LISTEN_FDNAMES", b"").decode(errors="replace").split(":")
    return (names + [""] * int(count))[: int(count)]


# Now, because a daemon gets another process id, and has to know it still at a reload.
_PASSED = _passed_by_systemd()


def backlog() -> int:
    """Give the longest queue of connections to be accepted that the kernel allows.

    Postfix connects to a UNIX socket without waiting: when the queue is full, its look-up fails.
    """
    try:
        return int(Path("/proc/sys/net/core/somaxconn").read_text())
    except (OSError, ValueError):
        return socket.SOMAXCONN


class _PolledServer(tcp.Server):
    """A client's connection that is read by the poll of all clients, where there is epoll(7)."""

    if sys.platform == "linux":

        def startReading(self) -> None:
            """Read from now on; see :mod:`.client_poll`."""
            client_poll(self.reactor).add(self)

        def stopReading(self) -> None:
            """Read no more."""
            client_poll(self.reactor).remove(self)


class _PlainUnixServer(_PolledServer, unix.Server):
    """A client's connection that takes bytes only.

    Twisted's own also takes file descriptors, which nobody here wants from a client, and which costs as much time for
    each read as a look-up does.
    """

    doRead = tcp.Connection.doRead  # type: ignore[assignment] # (as annotated by its mixin)


def _polled(port: IListeningPort) -> IListeningPort:
    """Let the clients of a TCP port be read by the poll of all clients."""
    if isinstance(port, tcp.Port):
        port.transport = _PolledServer
    return port


def _one_at_a_time(port: Any) -> None:
    """Let a port accept one client in each turn of the reactor.

    Twisted's accept up to 100, so that of processes that share a socket the first gets all who connect at once.
    """
    accept = port.doRead

    def accept_one() -> None:
        port.numberAccepts = 1
        accept()

    port.doRead = accept_one


class AdoptedUnixPort(unix.Port):
    """A port on a UNIX socket that somebody else made and looks after.

    Twisted's own changes the mode of an inherited socket, shortens its queue and unlinks it in the end (twisted#10261).
    """

    transport = _PlainUnixServer

    def __init__(self, listening: socket.socket, factory: IProtocolFactory, reactor: Any) -> None:
        """Take a socket that is bound and listens."""
        super().__init__(listening.getsockname(), factory, reactor=reactor)
        self._listening = listening
        self._factory = factory
        self._shouldShutdown = False  # shutdown(2) would end it for whoever else has it

    def startListening(self) -> None:
        """Begin to accept connections."""
        self._listening.setblocking(False)
        self._factory.doStart()
        self.connected = True
        self.socket = self._listening
        self.fileno = self._listening.fileno  # type: ignore[method-assign] # (as Twisted does)
        self.numberAccepts = 100
        self.startReading()

    def connectionLost(self, reason: Failure) -> None:
        """Stop; the file stays."""
        tcp.Port.connectionLost(self, reason)


@attrs.frozen
class TcpAddress:
    """``inet:host:port``."""

    text: str
    host: str
    port: int
    reuse_port: bool = False

    def listen(self, reactor: Any, factory: IProtocolFactory) -> IListeningPort:
        """Begin to listen, or raise CannotListenError."""
        if not self.reuse_port:
            return _polled(reactor.listenTCP(self.port, factory, backlog(), self.host))
        with self.bind() as listening:
            return adopt(listening.fileno(), reactor, factory)

    def bind(self) -> socket.socket:
        """Make a socket that listens, or raise CannotListenError."""
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            # Where a name has both, IPv4, as Twisted's own port: with workers or without, it is the same address.
            family, kind, protocol, _, where = min(found, key=lambda entry: entry[0] != socket.AF_INET)
            listening = socket.socket(family, kind, protocol)
        except OSError as error:
            raise CannotListenError(self.host, self.port, error) from error
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if self.reuse_port:
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listening.bind(where)
            listening.listen(backlog())
        except OSError as error:
            listening.close()
            raise CannotListenError(self.host, self.port, error) from error
        return listening

    def unbind(self, listening: socket.socket) -> None:
        """Give up what :meth:`bind` has made."""
        listening.close()


@attrs.frozen
class UnixAddress:
    """``unix:/path``, with ``:mode=660``, ``:user=name``, ``:group=name`` where wanted."""

    text: str
    path: str
    mode: int = 0o666
    user: int = -1
    group: int = -1

    def listen(self, reactor: Any, factory: IProtocolFactory) -> IListeningPort:
        """Begin to listen, or raise CannotListenError. A stale socket is replaced."""
        port = _OwnUnixPort(self.bind(), factory, reactor)
        port.startListening()
        return port

    def bind(self) -> socket.socket:
        """Make a socket that listens, or raise CannotListenError. A stale one is replaced."""
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._remove_stale()
            # Made with its mode: the directory may be another user's, who could put a link to any file in its place.
            before = os.umask(0o777 & ~self.mode)
            try:
                listening.bind(self.path)
            except FileNotFoundError:
                raise OSError(errno.ENOENT, "its directory does not exist") from None
            finally:
                os.umask(before)
            os.chown(self.path, self.user, self.group, follow_symlinks=False)
            listening.listen(backlog())
        except OSError as error:
            if listening.getsockname():  # else the file is not ours
                self.unbind(listening)
            listening.close()
            raise CannotListenError("unix", self.path, error) from error
        return listening

    def unbind(self, listening: socket.socket) -> None:
        """Give up what :meth:`bind` has made, and remove the file; if that may not be, the next start replaces it."""
        _unlink(self.path)
        listening.close()

    def _remove_stale(self) -> None:
        try:
            mode = os.lstat(self.path).st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise FileExistsError(errno.EEXIST, "the file exists and is not a socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(self.path)
            except ConnectionRefusedError:
                Path(self.path).unlink()
                return
            except BlockingIOError:
                pass
        raise OSError(errno.EADDRINUSE, "another process listens there")


class _OwnUnixPort(AdoptedUnixPort):
    """A port on a UNIX socket of our own."""

    def connectionLost(self, reason: Failure) -> None:
        """Stop, and remove the file; where the process may not, the next start replaces it."""
        _unlink(self._listening.getsockname())
        super().connectionLost(reason)


def _unlink(path: str) -> None:
    """Remove a socket's file, if that may be; before the socket is closed, or it might be that of a successor."""
    with suppress(OSError):
        Path(path).unlink()


@attrs.frozen
class SystemdAddress:
    """``systemd:domain=UNIX:index=0`` or ``...:name=...``: a socket that systemd has made, sd_listen_fds(3)."""

    text: str
    descriptor: int

    def listen(self, reactor: Any, factory: IProtocolFactory) -> IListeningPort:
        """Begin to accept; the socket is neither changed nor unlinked."""
        return adopt(self.descriptor, reactor, factory)

    def bind(self) -> socket.socket:
        """Give the socket, which listens."""
        return socket.socket(fileno=os.dup(self.descriptor))

    def unbind(self, listening: socket.socket) -> None:
        """Give up what :meth:`bind` has made; systemd keeps its own."""
        listening.close()


@attrs.frozen
class TwistedAddress:
    """Any other server endpoint description of Twisted's."""

    text: str

    def listen(self, reactor: Any, factory: IProtocolFactory) -> IListeningPort:
        """Begin to listen, or raise CannotListenError."""
        results: list[Any] = []
        serverFromString(reactor, self.text).listen(factory).addBoth(results.append)
        if not results:
            raise CannotListenError(None, self.text, "it does not listen at once")
        if isinstance(results[0], Failure):
            results[0].raiseException()
        port: IListeningPort = results[0]
        return port


@attrs.frozen
class HandedAddress:
    """Any address, for which the parent of this process has made a socket."""

    text: str
    descriptor: int

    def listen(self, reactor: Any, factory: IProtocolFactory) -> IListeningPort:
        """Begin to accept, one client at a time; the socket is neither changed nor unlinked.

        The descriptor is closed: when the port is, nothing of this process keeps clients waiting.
        """
        port = adopt(self.descriptor, reactor, factory)
        _one_at_a_time(port)
        os.close(self.descriptor)
        return port


#: Addresses whose sockets can be made apart from the reactor, and handed to other processes.
BoundAddress = TcpAddress | UnixAddress | SystemdAddress

ListenAddress = BoundAddress | TwistedAddress | HandedAddress


def place(address: ListenAddress) -> object:
    """Give what is the same for all addresses, however they are written, of which only one can be listened on."""
    match address:
        case TcpAddress():
            return address.host, address.port
        case UnixAddress():
            return address.path
        case SystemdAddress():
            return address.descriptor
    return address.text


def adopt(descriptor: int, reactor: Any, factory: IProtocolFactory) -> IListeningPort:
    """Begin to accept on a socket that listens already; it is neither changed nor unlinked.

    :param descriptor: stays open, and is the caller's.
    """
    os.set_blocking(descriptor, False)
    with socket.socket(fileno=os.dup(descriptor)) as listening:
        if listening.family != socket.AF_UNIX:
            return _polled(reactor.adoptStreamPort(descriptor, listening.family, factory))
        port = AdoptedUnixPort(listening.dup(), factory, reactor)
    port.startListening()
    return port


def parse(text: str, reactor: Any) -> ListenAddress:
    """Read an address to listen on.

    ``inet:host:port``, ``inet:[address]:port``, ``unix:/path`` with options as :class:`UnixAddress` has them,
    ``systemd:domain=UNIX:index=0``, or a server endpoint description of Twisted's (``tcp:10020:interface=127.0.0.1``).

    :raises ValueError: anything else, an unknown user or group, a socket that systemd did not pass; with the reason.
    """
    kind = text.partition(":")[0]
    if kind == "inet":
        return _parse_inet(text)
    if kind == "unix":
        return _parse_unix(text)
    if kind == "systemd":
        return _parse_systemd(text)
    try:
        serverFromString(reactor, text)
    except Exception as error:  # TypeError, IndexError, OSError...: each kind of Twisted's has its own
        hint = f"; write inet:{text}" if _INET.fullmatch(f"inet:{text}") else ""
        raise ValueError(f"{text!r} is not an address to listen on: {error}{hint}") from error
    return TwistedAddress(text)


def _parse_inet(text: str) -> TcpAddress:
    match = _INET.fullmatch(text)
    if match is None or not 0 < int(match["port"]) < 65536:
        raise ValueError(f"{text!r}: write inet:host:port, or inet:[address]:port for IPv6")
    return TcpAddress(text, match["literal"] or match["host"], int(match["port"]))


def _parse_unix(text: str) -> UnixAddress:
    match = _UNIX.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r}: write unix:/path, or with options unix:/path:mode=660:group=postfix")
    options = dict(option.split("=", 1) for option in match["options"].split(":")[1:])
    try:
        mode = int(options.get("mode", "666"), 8)
        if not 0 <= mode <= 0o777:
            raise ValueError
        user = pwd.getpwnam(options["user"]).pw_uid if "user" in options else -1
        group = grp.getgrnam(options["group"]).gr_gid if "group" in options else -1
    except ValueError:
        raise ValueError(f"{text!r}: the mode must be octal, like 660") from None
    except KeyError as error:
        raise ValueError(f"{text!r}: {error.args[0]}") from None
    return UnixAddress(text, match["path"], mode, user, group)


def _parse_systemd(text: str) -> SystemdAddress:
    match = _SYSTEMD.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r}: write systemd:domain=UNIX:index=0 (or INET, INET6; or name=...)")
    passed = len(_PASSED)
    index = _PASSED.index(match["name"]) if match["name"] in _PASSED else int(match["index"] or passed)
    if index >= passed:
        raise ValueError(f"{text!r}: systemd passed {passed} sockets, and not this one (sd_listen_fds(3))")
    return SystemdAddress(text, _FIRST_PASSED + index)
