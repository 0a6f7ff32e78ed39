from __future__ import annotations

from .plain_listener import StreamTests


class TestIdleTimeoutAgain(StreamTests):
    def test_set_often(self) -> None:
        """An idle time that is set again and again to what it is, by reloads, does not keep an idle client."""
        for _ in range(20):
            self.clock.advance(30)
            self.factory.idle_timeout = 400
        assert self.client.is_aborted()
