from __future__ import annotations

import signal

from twisted.internet.defer import maybeDeferred
from twisted.internet.error import ConnectionDone

from socketmap_memcache.protocols.netstring import encode
from socketmap_memcache.service import SocketmapMemcacheService
from tests.unit.listeners.transports import Client

from .service_tests import ServiceTests


class TestStop(ServiceTests):
    def test_idle(self) -> None:
        """A service without clients stops at once, without a timer left, and gives SIGHUP back."""
        before = signal.getsignal(signal.SIGHUP)
        service = self.start("tables = a=static:x\n")
        assert signal.getsignal(signal.SIGHUP) != before
        self.successResultOf(service.stopService())
        assert signal.getsignal(signal.SIGHUP) == before
        assert self.reactor.getDelayedCalls() == []

    def test_never_started(self) -> None:
        """A service that was never started can be stopped."""
        self.successResultOf(maybeDeferred(self.make("tables = a=static:x\n").stopService))

    def start_with_look_up(self) -> tuple[SocketmapMemcacheService, Client]:
        """Start a service, and leave it with a look-up that takes five seconds to fail."""
        cf = self.path.with_name("x.cf")
        cf.write_text("memcache = inet:192.0.2.1:1\ntimeout = 5\nbackup = static:x\n")
        service = self.start(f"tables = a=memcache:{cf}\nshutdown_timeout = 7s\n")
        client = Client(service._factory)
        client.send(encode(b"a k"))
        return service, client

    def test_drains(self) -> None:
        """What is in flight is answered before the end, and no new request is read."""
        service, client = self.start_with_look_up()
        done = maybeDeferred(service.stopService)
        assert not client.is_reading()
        self.reactor.advance(5)
        assert client.received() == b"4:OK x,"
        assert client.is_closed()
        self.assertNoResult(done)
        client.leave(ConnectionDone())
        self.successResultOf(done)
        self.reactor.advance(10)
        assert self.reactor.getDelayedCalls() == []

    def test_cut(self) -> None:
        """A client that is not answered, or does not leave, within shutdown_timeout is cut off."""
        service, client = self.start_with_look_up()
        done = maybeDeferred(service.stopService)
        self.reactor.advance(6.9)
        assert not client.is_aborted()
        self.reactor.advance(0.1)
        assert client.is_aborted()
        client.leave(ConnectionDone())
        self.successResultOf(done)
