from __future__ import annotations

import socket

from twisted.trial.unittest import SynchronousTestCase

from socketmap_memcache.listeners.endpoints import TcpAddress


class TestAddressOfAName(SynchronousTestCase):
    def test_both_families(self) -> None:
        """Where a name has an IPv6 and an IPv4 address, a socket for workers is at the IPv4 one, as that without."""
        found = [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
        ]
        self.patch(socket, "getaddrinfo", lambda *_arguments, **_options: found)
        with TcpAddress("", "localhost", 0).bind() as listening:
            assert listening.getsockname()[0] == "127.0.0.1"
