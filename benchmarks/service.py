"""The service as it is after an installation: compiled, and started by twistd without the tests' own wrapper."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.integration.harness.service import Service


class InstalledService(Service):
    """``twistd -n socketmap-memcache``.

    :ivar environment: what it is started with.
    """

    def __init__(self, directory: Path, config: str, *, with_tls: bool = True, **addresses: Sequence[str]) -> None:
        """:param directory: is made; it gets the files of this service alone.

        :param addresses: ``listen`` and ``policy_listen``, as for :class:`Service`.
        :param with_tls: whether the libraries of the extra ``tls`` are installed. Twisted loads them where they are,
            needed or not.
        """
        directory.mkdir()
        self.environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        if not with_tls:
            hiding = directory / "without-tls"
            hiding.mkdir()
            (hiding / "OpenSSL.py").write_text("raise ImportError('not installed')\n")
            self.environment["PYTHONPATH"] = str(hiding)
        super().__init__(directory, config, env=self.environment, **addresses)
        self.argv = [str(Path(sys.executable).with_name("twistd")), *self.argv[2:]]
