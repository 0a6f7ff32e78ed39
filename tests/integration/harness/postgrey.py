"""A real postgrey, with its database and its lists below a directory of the test's."""

from __future__ import annotations

import grp
import os
import pwd
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

from .policy import PolicyClient
from .processes import Server, accepts, find_program, free_port, wait_until


class Postgrey(Server):
    """A postgrey on a free port, as the user who runs the tests; it keeps its database when it is started again.

    It logs to :attr:`log`, a line for each decision. A request may set the time of its decision, in seconds since the
    epoch, by the attribute ``policy_test_time``.

    :ivar address: ``inet:127.0.0.1:port``.
    :ivar database: the directory of ``postgrey.db`` and ``postgrey_clients.db``.
    :ivar client_whitelist: the file; :ivar recipient_whitelist: the other.
    """

    def __init__(
        self,
        directory: Path,
        options: Sequence[str] = (),
        client_whitelist: str = "",
        recipient_whitelist: str = "",
    ) -> None:
        """:param directory: gets a directory ``postgrey``, which must be this postgrey's alone.

        :param options: more of postgrey's, for example ``("--delay=60", "--privacy")``.
        :param client_whitelist: the content of that file; the list of the package is not used.
        :param recipient_whitelist: likewise.
        """
        port = free_port()
        self.address = f"inet:127.0.0.1:{port}"
        self.database = directory / "postgrey"
        self.database.mkdir(exist_ok=True)
        self.client_whitelist = self.database / "whitelist_clients"
        self.client_whitelist.write_text(client_whitelist)
        self.recipient_whitelist = self.database / "whitelist_recipients"
        self.recipient_whitelist.write_text(recipient_whitelist)
        argv = [
            find_program("postgrey"),
            f"--inet=127.0.0.1:{port}",
            f"--dbdir={self.database}",
            f"--user={pwd.getpwuid(os.geteuid()).pw_name}",
            f"--group={grp.getgrgid(os.getegid()).gr_name}",
            f"--whitelist-clients={self.client_whitelist}",
            f"--whitelist-recipients={self.recipient_whitelist}",
            *options,
        ]
        super().__init__(argv, self.database / "stderr")

    def ready(self) -> bool:
        """Return whether it answers; until then it would not survive a SIGHUP. It warns in its log."""
        try:
            with PolicyClient(self.address) as client:
                return client.ask({}) == b"DUNNO"
        except (OSError, EOFError):
            return False

    def stop(self) -> int:
        """End it in good order, so that all is in its database."""
        if self.running:
            self.child.terminate()
            self._wake_until(lambda: not self.running, "postgrey has ended")
        return super().stop()

    def reload(self) -> None:
        """Let it read the lists again, and wait until it has."""
        before = self.log.count("HUP received")
        self.send_signal(signal.SIGHUP)
        self._wake_until(lambda: self.log.count("HUP received") > before, "postgrey has read its lists again")

    def _wake_until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for the effect of a signal, which postgrey may notice no sooner than at the next connection."""

        def woken() -> bool:
            accepts(self.address)
            return condition()

        wait_until(woken, what)
