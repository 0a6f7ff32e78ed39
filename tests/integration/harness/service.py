"""The service itself, as an administrator runs it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from .processes import Server, accepts, write_config


class Service(Server):
    """``twistd -n socketmap-memcache`` in a process of its own.

    :ivar config_path: the service's main.cf; write it with :meth:`configure`.
    :ivar addresses: where it listens for socketmap: look-ups, ``unix:/path`` or ``inet:host:port``.
    """

    def __init__(
        self,
        directory: Path,
        config: str,
        *,
        listen: Sequence[str] = (),
        twistd_options: Sequence[str] = (),
        options: Sequence[str] = (),
    ) -> None:
        """Write the configuration; nothing is started.

        :param config: lines for main.cf, without ``socketmap_listen``.
        :param listen: socketmap_listen; one UNIX socket in ``directory`` if empty.
        :param twistd_options: go before the plugin's name, for example ``("--uid", "nobody")``.
        :param options: go after ``--config FILE``, for example ``("--set", "tables=")``.
        """
        self.addresses = list(listen) or [f"unix:{directory / 'socketmap.sock'}"]
        self.config_path = directory / "main.cf"
        self.configure(config)
        twistd = [sys.executable, str(Path(__file__).with_name("twistd.py")), "-n", "--pidfile=", *twistd_options]
        plugin = ["socketmap-memcache", "--config", str(self.config_path), *options]
        super().__init__([*twistd, *plugin], directory / "service.log")

    def configure(self, config: str) -> None:
        """Write main.cf anew, with the same addresses; :meth:`reload` makes the service read it."""
        write_config(self.config_path, f"socketmap_listen = {' '.join(self.addresses)}\n{config}")

    def ready(self) -> bool:
        return all(map(accepts, self.addresses))

    def reload(self) -> None:
        """Send SIGHUP. It returns at once: wait for what should change."""
        self.send_signal(signal.SIGHUP)

    def map(self, name: str, address: str | None = None) -> str:
        """Return the Postfix name of a served map, ``socketmap:unix:/path:name``."""
        return f"socketmap:{address or self.addresses[0]}:{name}"
