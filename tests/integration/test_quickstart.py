"""The example that a newcomer runs first, and the commands that the service prints for trying it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from .harness.launch import TWISTD, assert_clean
from .harness.postfix import Postfix
from .harness.processes import Server, accepts, find_program, free_port, scratch_directory, wait_until, write_config
from .harness.service import Service
from .harness.socketmap import SocketmapClient

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"


@pytest.fixture
def scratch() -> Iterator[Path]:
    with scratch_directory() as directory:
        yield directory


class Quickstart(Server):
    """What ``make run`` starts, on a free port."""

    def __init__(self, scratch: Path, directory: Path) -> None:
        self.address = f"inet:127.0.0.1:{free_port()}"
        options = ["--config", "main.cf", "--set", f"socketmap_listen={self.address}"]
        super().__init__([*TWISTD, "--pidfile=", "-n", "socketmap-memcache", *options], scratch / "log", cwd=directory)

    def ready(self) -> bool:
        return accepts(self.address)

    def to_try(self) -> list[str]:
        """Return the commands that it prints for people to try."""
        return re.findall(r"try: (.*)", self.log)


def in_shell(command: str, environment: Mapping[str, str]) -> bytes:
    """Return what a command line prints."""
    ran = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, check=True, timeout=60)
    return ran.stdout


class TestQuickstart:
    def test_commands_to_try(self, scratch: Path) -> None:
        """It prints what is served and two commands, and these give the answer as they are printed."""
        find_program("nc")
        environment = {**os.environ, "MAIL_CONFIG": str(Postfix(scratch).config_directory)}
        environment["PATH"] += ":/usr/sbin"
        with Quickstart(scratch, QUICKSTART) as quickstart:
            assert "serving aliases = memcache:" in quickstart.log
            with_postfix, without = quickstart.to_try()
            assert in_shell(with_postfix, environment) == b"alice@mail.example.com\n"
            assert in_shell(without, environment) == b"25:OK alice@mail.example.com,"
        assert_clean(quickstart.log)

    def test_unix_command_to_try(self, scratch: Path) -> None:
        """The commands for a UNIX socket give the answer, too."""
        with Service(scratch, "tables = t=inline:{alice@example.com=value}\n") as service:
            without = re.findall(r"try: (printf .*)", service.log)[0]
            assert in_shell(without, os.environ) == b"8:OK value,"

    def test_edit(self, scratch: Path) -> None:
        """An edit of the file is seen: a new address soon, a changed one when its ttl is over."""
        directory = scratch / "quickstart"
        shutil.copytree(QUICKSTART, directory)
        aliases, cf = directory / "aliases", directory / "aliases.cf"
        assert "\nttl = 10\n" in cf.read_text()
        write_config(cf, cf.read_text().replace("\nttl = 10\n", "\nttl = 2\n"))
        with Quickstart(scratch, directory) as quickstart, SocketmapClient(quickstart.address) as client:
            assert client.ask("aliases", b"alice@example.com") == b"OK alice@mail.example.com"
            assert client.ask("aliases", b"dora@example.com") == b"NOTFOUND "
            aliases.write_text(
                aliases.read_text().replace("alice@mail", "anna@mail") + "dora@example.com dora@mail.example.com\n"
            )
            wait_until(
                lambda: client.ask("aliases", b"dora@example.com") == b"OK dora@mail.example.com", "the new address"
            )
            wait_until(
                lambda: client.ask("aliases", b"alice@example.com") == b"OK anna@mail.example.com",
                "the changed address",
            )
