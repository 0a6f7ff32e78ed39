from __future__ import annotations

import signal

from twisted.logger import capturedLogs

from socketmap_memcache.service import SocketmapMemcacheService

from .logs import texts
from .service_tests import ServiceTests

LISTENS = "tables = a=static:x\nsocketmap_listen = inet:127.0.0.1:"


class TestReloading(ServiceTests):
    def changes(self, service: SocketmapMemcacheService, text: str) -> list[str]:
        self.path.write_text(text)
        with capturedLogs() as logs:
            done = service.reload()
            self.reactor.pool.run()
        self.successResultOf(done)
        return [line for line in texts(logs) if line.endswith("that takes a restart")]

    def test_changed_since_the_start(self) -> None:
        """Each reload names what is not as it was at the start; what is so again is not named."""
        service = self.start(f"{LISTENS}1\n")
        for _ in range(2):
            assert self.changes(service, f"{LISTENS}2\nworkers = 2\n") == [
                "socketmap_listen has changed: that takes a restart",
                "workers has changed: that takes a restart",
            ]
        assert self.changes(service, f"{LISTENS}1\n") == []

    def test_listens_nowhere(self) -> None:
        """A service that listens nowhere gives the signal's former handler back, too."""
        before = signal.getsignal(signal.SIGHUP)
        service = self.start("tables = a=static:x\nsocketmap_listen =\n")
        assert signal.getsignal(signal.SIGHUP) != before
        self.successResultOf(service.stopService())
        assert signal.getsignal(signal.SIGHUP) is before
