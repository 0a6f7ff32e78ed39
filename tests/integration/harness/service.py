"""The service itself, as an administrator runs it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from socket import SHUT_WR

from .processes import Server, connect, write_config

# Seconds from listening to running.
_LONGEST_START = 10


class Service(Server):
    """``twistd -n socketmap-memcache`` in a process of its own.

    :ivar config_path: the service's main.cf; write it with :meth:`configure`.
    :ivar addresses: where it listens for socketmap: look-ups, ``unix:/path`` or ``inet:host:port``.
    :ivar policy_addresses: the same for policy requests.
    """

    def __init__(
        self,
        directory: Path,
        config: str,
        *,
        listen: Sequence[str] = (),
        policy_listen: Sequence[str] = (),
        twistd_options: Sequence[str] = (),
        options: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Write the configuration; nothing is started.

        :param config: lines for main.cf, without ``socketmap_listen`` and ``policy_listen``.
        :param listen: socketmap_listen; if empty, one UNIX socket in ``directory``, or none with ``policy_listen``.
        :param policy_listen: policy_listen, for a configuration with ``policies``.
        :param twistd_options: go before the plugin's name, for example ``("--uid", "nobody")``.
        :param env: the environment; that of the tests if ``None``.
        :param options: go after ``--config FILE``, for example ``("--set", "tables=")``.
        """
        self.policy_addresses = list(policy_listen)
        self.addresses = list(listen)
        if not listen and not policy_listen:
            self.addresses.append(f"unix:{directory / 'socketmap.sock'}")
        self.config_path = directory / "main.cf"
        self.configure(config)
        twistd = [sys.executable, str(Path(__file__).with_name("twistd.py")), "-n", "--pidfile=", *twistd_options]
        plugin = ["socketmap-memcache", "--config", str(self.config_path), *options]
        super().__init__([*twistd, *plugin], directory / "service.log", env=env)

    def configure(self, config: str) -> None:
        """Write main.cf anew, with the same addresses; :meth:`reload` makes the service read it."""
        listen = f"socketmap_listen = {' '.join(self.addresses)}\n"
        if self.policy_addresses:
            listen += f"policy_listen = {' '.join(self.policy_addresses)}\n"
        write_config(self.config_path, listen + config)

    def ready(self) -> bool:
        return all(map(_serves, [*self.addresses, *self.policy_addresses]))

    def reload(self) -> None:
        """Send SIGHUP. It returns at once: wait for what should change."""
        self.send_signal(signal.SIGHUP)

    def map(self, name: str, address: str | None = None) -> str:
        """Return the Postfix name of a served map, ``socketmap:unix:/path:name``."""
        return f"socketmap:{address or self.addresses[0]}:{name}"


def _serves(address: str) -> bool:
    """Return whether the reactor runs: a service that only listens may still be about to log, or to handle signals."""
    try:
        with connect(address, _LONGEST_START) as connection:
            connection.shutdown(SHUT_WR)
            return connection.recv(1) == b""
    except OSError:
        return False
