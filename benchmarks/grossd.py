"""A real grossd, Debian's package ``gross``: greylisting in C, with threads, and in RAM only."""

from __future__ import annotations

from pathlib import Path

from tests.integration.harness.policy import PolicyClient
from tests.integration.harness.processes import Server, find_program, free_port


class Grossd(Server):
    """A grossd on a free port, which delays whatever is new and asks no DNS lists.

    It logs to :attr:`log`, a line for each decision. For its status it listens on port 5522 of 127.0.0.1, which cannot
    be changed: there is one grossd on a host.

    :ivar address: ``inet:127.0.0.1:port``.
    """

    def __init__(self, directory: Path, delay: int) -> None:
        """:param directory: is made, and gets its files.

        :param delay: seconds until a triplet passes.
        """
        directory.mkdir()
        port = free_port()
        self.address = f"inet:127.0.0.1:{port}"
        config = directory / "grossd.conf"
        parameters = {
            "host": "127.0.0.1",
            "port": port,
            "protocol": "postfix",
            "grey_threshold": 0,  # delay everybody, not only those in DNS lists
            "grey_delay": delay,
            "grey_mask": 32,
        }
        config.write_text("".join(f"{name} = {value}\n" for name, value in parameters.items()))
        super().__init__([find_program("grossd"), "-d", "-r", "-f", str(config)], directory / "grossd.log")

    def ready(self) -> bool:
        """Return whether it answers."""
        request = {"client_address": "192.0.2.1", "sender": "ready@example.com", "recipient": "ready@example.org"}
        try:
            with PolicyClient(self.address) as client:
                return b"DEFER" in client.ask(request).upper()
        except (OSError, EOFError):
            return False

    def stop(self) -> int:
        """Kill it: there is nothing to save."""
        self.kill()
        return self.child.returncode
