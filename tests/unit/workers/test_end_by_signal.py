from __future__ import annotations

import signal

from twisted.internet.error import ProcessTerminated
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from socketmap_memcache.workers.process import WorkerProcess


class TestEndBySignal(SynchronousTestCase):
    def test_named_and_nameless(self) -> None:
        """Whatever signal has ended a worker, its parent hears of the end, with the name where there is one."""
        ends: list[str] = []
        for number in (signal.SIGKILL, signal.SIGRTMIN + 3):
            worker = WorkerProcess(
                1, 0.0, lambda _: None, lambda: None, lambda _: None, lambda _, how: ends.append(how)
            )
            worker.processEnded(Failure(ProcessTerminated(signal=number)))
        assert ends == ["was killed by SIGKILL", f"was killed by signal {signal.SIGRTMIN + 3}"]
