"""Where a memcached is, as memcache_table(5) writes it."""

from __future__ import annotations

import os
import re
import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, TCP6ClientEndpoint, UNIXClientEndpoint
from twisted.internet.interfaces import IProtocolFactory, IStreamClientEndpoint

if TYPE_CHECKING:
    from socketmap_memcache.memcache.greeting import Greeter

_INET = re.compile(r"(?:(?:\[(?P<literal>[^\]]+)\]|(?P<host>[^:\[\]]*)):)?(?P<port>[^:\[\]]+)")

#: Bytes of the path of a UNIX socket, on Linux: unix(7). Twisted does not hear of it if there are more.
_LONGEST_PATH = 107


@attrs.frozen
class Server:
    """The address of a server.

    :ivar name: as it was written; two servers with the same name are one.
    :ivar host: name or address; empty for a UNIX socket.
    :ivar port: 1 to 65535; 0 for a UNIX socket.
    :ivar path: of the UNIX socket, else empty.
    :ivar tls: whether it is spoken to in TLS only.
    """

    name: str
    host: str = ""
    port: int = 0
    path: str = ""
    tls: bool = False

    @classmethod
    def parse(cls, text: str) -> Server:
        """Read ``inet:host:port``, ``inet:[address]:port``, ``inet:port``, ``unix:/path``. No host is localhost.

        ``tls:`` in place of ``inet:`` is for a server that speaks TLS (``memcached -Z``).
        The port may be a name of services(5). ``local:`` is another word for ``unix:``, as with Postfix.

        :raises ValueError: anything else, with the reason.
        """
        kind, colon, rest = text.partition(":")
        if kind in {"unix", "local"} and rest:
            if len(os.fsencode(rest)) > _LONGEST_PATH:
                raise ValueError(f"{text!r}: the path of a UNIX socket has at most {_LONGEST_PATH} bytes")
            return cls(text, path=rest)
        if kind not in {"inet", "tls"} or not colon:
            raise ValueError(
                f"{text!r} is not a server: write inet:host:port, inet:[address]:port, tls:host:port or unix:/path"
            )
        match = _INET.fullmatch(rest)
        if match is None:
            raise ValueError(f"{text!r}: write {kind}:host:port, or {kind}:[address]:port for IPv6")
        host = match["literal"] or match["host"] or "localhost"
        return cls(text, host=host, port=_port(match["port"], text), tls=kind == "tls")

    @property
    def has_address(self) -> bool:
        """Whether it is a path or an address, and not a name whose addresses may change."""
        return bool(self.path) or is_address(self.host)

    @property
    def place(self) -> str | tuple[str, int]:
        """What two servers cannot have in common, however they are written: the path, or host and port."""
        if self.path:
            return self.path
        return (str(ip_address(self.host)) if is_address(self.host) else self.host.lower().rstrip(".")), self.port

    def connect(
        self, reactor: Any, factory: IProtocolFactory, timeout: float, greeter: Greeter | None = None
    ) -> Deferred[Any]:
        """Connect a protocol of the factory's; fails after ``timeout`` seconds at most, name look-up included.

        :param greeter: does what comes first on a connection to this server, within the same time.
        """
        endpoint = self._endpoint(reactor, timeout)
        attempt: Deferred[Any] = endpoint.connect(factory) if greeter is None else greeter.connect(endpoint, factory)
        # The time limit of Twisted's endpoints leaves out the time that it takes to resolve the name.
        timer = reactor.callLater(timeout, attempt.cancel)

        def stop_timer(result: Any) -> Any:
            if timer.active():
                timer.cancel()
            return result

        return attempt.addBoth(stop_timer)

    def _endpoint(self, reactor: Any, timeout: float) -> IStreamClientEndpoint:
        if self.path:
            return UNIXClientEndpoint(reactor, self.path, timeout=timeout)
        if not is_address(self.host):
            return HostnameEndpoint(reactor, self.host, self.port, timeout=timeout, attemptDelay=0.05)
        endpoint = TCP6ClientEndpoint if ":" in self.host else TCP4ClientEndpoint
        return endpoint(reactor, self.host, self.port, timeout=timeout)


def is_address(host: str) -> bool:
    """Whether it is an IP address, of either kind, and not a name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _port(text: str, server: str) -> int:
    if not text.isdecimal():
        try:
            return socket.getservbyname(text, "tcp")
        except OSError:
            raise ValueError(f"{server!r}: unknown port {text!r}") from None
    if not 0 < int(text) < 65536:
        raise ValueError(f"{server!r}: port {text} is not between 1 and 65535")
    return int(text)
