"""What the log calls a client."""

from __future__ import annotations

import os
import socket
from unittest.mock import Mock

from twisted.internet.address import HostnameAddress, IPv4Address, IPv6Address, UNIXAddress

from socketmap_memcache.listeners.peer import peer_name


def test_tcp() -> None:
    """A client over TCP is its address and port."""
    assert peer_name(Mock(getPeer=lambda: IPv4Address("TCP", "192.0.2.1", 1234))) == "[192.0.2.1]:1234"
    assert peer_name(Mock(getPeer=lambda: IPv6Address("TCP", "2001:db8::1", 1234))) == "[2001:db8::1]:1234"


def test_unix() -> None:
    """A client of a UNIX socket is its process and user."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        name = peer_name(Mock(getPeer=lambda: UNIXAddress(None), getHandle=lambda: ours))
    assert name == f"process {os.getpid()} of uid {os.getuid()}"


def test_other() -> None:
    """Anything else is what Twisted calls it."""
    assert peer_name(Mock(getPeer=lambda: HostnameAddress(b"host", 1))) == "HostnameAddress(hostname=b'host', port=1)"
