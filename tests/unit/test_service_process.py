from __future__ import annotations

import errno
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import Any

from twisted.internet import reactor as real_reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.task import deferLater
from twisted.logger import capturedLogs
from twisted.trial.unittest import TestCase

from socketmap_memcache.errors import CannotStart
from socketmap_memcache.protocols.netstring import encode
from socketmap_memcache.service import SocketmapMemcacheService

from .service_tests import any_starts_with


class TestRealReactor(TestCase):
    """The service on real sockets, with real threads and signals."""

    timeout = 20

    @inlineCallbacks
    def wait_for(self, condition: Callable[[], bool]) -> Generator[Deferred[Any], Any, None]:
        while not condition():
            yield deferLater(real_reactor, 0.005)

    @inlineCallbacks
    def ask(self, path: str, request: bytes) -> Generator[Deferred[Any], Any, bytes]:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            client.sendall(encode(request))
            client.shutdown(socket.SHUT_WR)
            client.setblocking(False)
            reply = bytearray()
            while True:
                try:
                    chunk = client.recv(1000)
                except BlockingIOError:
                    yield deferLater(real_reactor, 0.002)
                    continue
                if not chunk:
                    return bytes(reply)
                reply += chunk

    @inlineCallbacks
    def test_life(self) -> Generator[Deferred[Any], Any, None]:
        """It starts, answers, reloads upon SIGHUP, refuses an address that is taken, and stops, also twice over."""
        directory = tempfile.TemporaryDirectory(prefix="service-")
        self.addCleanup(directory.cleanup)
        config, path = Path(directory.name, "main.cf"), f"{directory.name}/s"
        service = None
        for _ in range(2):
            config.write_text(f"socketmap_listen = unix:{path}\ntables = a=static:x\n")
            if service is None:
                service = SocketmapMemcacheService(str(config), [], real_reactor)
            service.privilegedStartService()
            service.startService()
            reply = yield self.ask(path, b"a k")
            assert reply in {b"4:OK x,", b"4:OK y,"}
            config.write_text(f"socketmap_listen = unix:{path}\ntables = a=static:y\n")
            with capturedLogs() as logs:
                os.kill(os.getpid(), signal.SIGHUP)
                yield self.wait_for(partial(any_starts_with, logs, "reloaded"))
            reply = yield self.ask(path, b"a k")
            assert reply == b"4:OK y,"
            second = SocketmapMemcacheService(str(config), [], real_reactor)
            refused = self.assertRaises(CannotStart, second.privilegedStartService)
            reason = f"[Errno {errno.EADDRINUSE}] another process listens there"
            assert refused.code == f"Couldn't listen on unix:{path}: {reason}."
            yield service.stopService()
            assert not os.path.lexists(path)
