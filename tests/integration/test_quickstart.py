"""The example that a newcomer runs first, and the commands that the service prints for trying it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from .harness.launch import TWISTD, assert_clean
from .harness.postfix import Postfix
from .harness.processes import Server, accepts, find_program, free_port, scratch_directory, wait_until, write_config
from .harness.service import Service
from .harness.socketmap import SocketmapClient

ROOT = Path(__file__).parents[2]
QUICKSTART = "examples/quickstart"


@pytest.fixture
def scratch() -> Iterator[Path]:
    with scratch_directory() as directory:
        yield directory


class Quickstart(Server):
    """What ``make run`` starts, on free ports.

    :ivar directory: a copy of the example, in which nothing has been remembered yet.
    """

    def __init__(self, scratch: Path) -> None:
        self.directory = scratch / "quickstart"
        shutil.copytree(ROOT / QUICKSTART, self.directory, ignore=shutil.ignore_patterns("*.lmdb"))
        self.address, self.policy_address = (f"inet:127.0.0.1:{free_port()}" for _ in range(2))
        addresses = [f"socketmap_listen={self.address}", f"policy_listen={self.policy_address}"]
        options = ["--config", "main.cf", *(word for address in addresses for word in ("--set", address))]
        argv = [*TWISTD, "--pidfile=", "-n", "socketmap-memcache", *options]
        super().__init__(argv, scratch / "log", cwd=self.directory)

    def ready(self) -> bool:
        return "listening on" in self.log and accepts(self.address) and accepts(self.policy_address)

    def to_try(self) -> list[str]:
        """Return the commands that it prints for people to try."""
        return re.findall(r"try: (.*)", self.log)


def in_shell(command: str, environment: Mapping[str, str]) -> bytes:
    """Return what a command line prints."""
    ran = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, check=True, timeout=60)
    return ran.stdout


class TestQuickstart:
    def test_commands_to_try(self, scratch: Path) -> None:
        """It prints what is served and commands for look-ups, and these give the answer as they are printed."""
        find_program("nc")
        environment = {**os.environ, "MAIL_CONFIG": str(Postfix(scratch).config_directory)}
        environment["PATH"] += ":/usr/sbin"
        with Quickstart(scratch) as quickstart:
            assert "serving aliases = memcache:" in quickstart.log
            with_postfix, without, _ = quickstart.to_try()
            assert in_shell(with_postfix, environment) == b"alice@mail.example.com\n"
            assert in_shell(without, environment) == b"25:OK alice@mail.example.com,"
        assert_clean(quickstart.log)

    def test_greylisting(self, scratch: Path) -> None:
        """It prints the delay, and a command that is deferred at first and passes after it, also after a restart."""
        quickstart = Quickstart(scratch)
        before = set(quickstart.directory.iterdir())
        with quickstart:
            assert "asking policy greylist: what is new waits 5 s" in quickstart.log
            *_, command = quickstart.to_try()
            text = b"Greylisted, see http://postgrey.schweikert.ch/help/example.org.html"
            assert in_shell(command, os.environ) == b"action=DEFER_IF_PERMIT " + text + b"\n\n"
            time.sleep(5.1)
            assert in_shell(command, os.environ).startswith(b"action=PREPEND X-Greylist: delayed ")
            assert in_shell(command, os.environ) == b"action=DUNNO\n\n"
        with quickstart:
            assert in_shell(command, os.environ) == b"action=DUNNO\n\n"
        assert_clean(quickstart.log)
        (made,) = set(quickstart.directory.iterdir()) - before
        assert f"{QUICKSTART}/{made.name}" in (ROOT / ".gitignore").read_text().splitlines()

    def test_unix_command_to_try(self, scratch: Path) -> None:
        """The commands for a UNIX socket give the answer, too."""
        with Service(scratch, "tables = t=inline:{alice@example.com=value}\n") as service:
            without = re.findall(r"try: (printf .*)", service.log)[0]
            assert in_shell(without, os.environ) == b"8:OK value,"

    def test_edit(self, scratch: Path) -> None:
        """An edit of the file is seen: a new address soon, a changed one when its ttl is over."""
        quickstart = Quickstart(scratch)
        aliases, cf = quickstart.directory / "aliases", quickstart.directory / "aliases.cf"
        assert "\nttl = 10\n" in cf.read_text()
        write_config(cf, cf.read_text().replace("\nttl = 10\n", "\nttl = 2\n"))
        with quickstart, SocketmapClient(quickstart.address) as client:
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
