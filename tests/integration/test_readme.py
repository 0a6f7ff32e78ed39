"""README.rst is right: its commands run, and its configuration works, in places where a test may put it."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from .harness.memcached import Memcached
from .harness.postfix import Postfix, needs_root
from .harness.processes import Server, accepts, free_port, scratch_directory, wait_until, write_config
from .harness.smtp import ask_recipients
from .harness.socketmap import ask

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.rst").read_text()


def commands(containing: str) -> list[str]:
    """Return the lines of the first literal block that contains a text."""
    blocks = re.findall(r"::\n\n((?:    .*\n)+)", README)
    block = next(block for block in blocks if containing in block)
    return [line.strip() for line in block.splitlines()]


def config(name: str) -> str:
    """Return the contents of a named code block."""
    match = re.search(rf"\.\. code-block:: ini\n   :name: {re.escape(name)}\n\n((?:   .*\n|\n)+)", README)
    assert match is not None, name
    return re.sub(r"^   ", "", match[1], flags=re.MULTILINE)


def in_shell(command: str, environment: dict[str, str], cwd: Path) -> str:
    """Return what a command prints.

    :raises subprocess.CalledProcessError: it failed.
    """
    ran = subprocess.run(["sh", "-c", command], env=environment, cwd=cwd, capture_output=True, check=True, timeout=300)
    return ran.stdout.decode()


@attrs.frozen
class Place:
    """Directories of a test's own that stand for those of the README.

    :ivar moved: what stands for what.
    """

    directory: Path
    moved: dict[str, str]
    memcached: Memcached
    postfix: Postfix

    def move(self, text: str) -> str:
        for there, here in self.moved.items():
            text = text.replace(there, here)
        return text

    @property
    def environment(self) -> dict[str, str]:
        path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
        return {**os.environ, "PATH": path, "MAIL_CONFIG": str(self.postfix.config_directory)}


class Command(Server):
    """A server that a command line of the README starts."""

    def __init__(self, command: str, log: Path, accepting: list[str], cwd: Path) -> None:
        self._accepting = accepting
        super().__init__(["sh", "-c", f"exec {command}"], log, cwd=cwd)

    def ready(self) -> bool:
        return all(map(accepts, self._accepting))


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with scratch_directory() as directory:
        memcached = Memcached(directory, tcp=True)
        port = free_port()
        postfix = Postfix(directory, {"virtual_alias_domains": "example.com"})
        queue = postfix.postconf("-h", "queue_directory")
        (directory / "etc").mkdir()
        (Path(queue) / "socketmap-memcache").mkdir()
        moved = {
            "inet:127.0.0.1:11211": memcached.address,
            "inet:127.0.0.1:10020": f"inet:127.0.0.1:{port}",
            "127.0.0.1 10020": f"127.0.0.1 {port}",
            "/opt/socketmap-memcache": str(directory / "opt"),
            "/var/spool/postfix": queue,
            "/etc/postfix": str(directory / "etc"),
        }
        with memcached:
            yield Place(directory, moved, memcached, postfix)


def test_try_it(place: Place) -> None:
    """``make run`` serves the quickstart, and the two commands below it give alice's address."""
    assert commands("make run") == ["make run"]
    made = subprocess.run(["make", "--dry-run", "run"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    (example, command) = re.findall(r"^cd (\S+) && \S+/bin/(twistd .*)$", made, re.MULTILINE)[0]
    address = place.move("inet:127.0.0.1:10020")
    command = f"{Path(sys.executable).parent}/{command} --set socketmap_listen={address}"
    with Command(command, place.directory / "quickstart.log", [address], ROOT / example):
        with_postfix, without = (place.move(line) for line in commands("nc -N"))
        assert in_shell(with_postfix, place.environment, ROOT) == "alice@mail.example.com\n"
        assert in_shell(without, place.environment, ROOT) == "25:OK alice@mail.example.com,"


@needs_root
def test_use_it(place: Place) -> None:
    """Installed, configured and started as the README says, it serves what main.cf asks for, by TCP and UNIX socket."""
    clone = place.directory / "clone"
    shutil.copytree(ROOT, clone, ignore=shutil.ignore_patterns(".git", ".venv*", "build", "*.egg-info", ".*_cache"))
    for command in commands("pip install ."):
        in_shell(place.move(command), place.environment, clone)
    etc = place.directory / "etc"
    main_cf = write_config(place.directory / "main.cf", place.move(config("service-main.cf")))
    write_config(etc / "memcache-aliases.cf", place.move(config("memcache-aliases.cf")))
    write_config(etc / "aliases-backup", "bob@example.com bob@mail.example.com\n")
    place.memcached.set(b"aliases:alice@example.com", b"alice@mail.example.com")
    check, run = (f"{place.move(command)} --config {main_cf}" for command in commands("bin/twistd"))
    assert in_shell(check, place.environment, place.directory).endswith("no errors\n")
    addresses = [
        place.move("inet:127.0.0.1:10020"),
        place.move("unix:/var/spool/postfix/socketmap-memcache/socketmap.sock"),
    ]
    # Two smtpds, one for each way to reach the service.
    files, unix_port = place.postfix.config_directory, free_port()
    unix_map = place.move(config("postfix-unix")).strip().replace(" = ", "=")
    write_config(files / "main.cf", (files / "main.cf").read_text() + place.move(config("postfix-tcp")))
    unix_smtpd = f"{unix_port} inet n - n - - smtpd -o {unix_map}\n"
    write_config(files / "master.cf", (files / "master.cf").read_text() + unix_smtpd)
    with Command(run, place.directory / "service.log", addresses, place.directory):
        by_postmap = re.findall(r"::\n\n    (postmap -q .*)\n\n", README)
        assert [in_shell(place.move(line), place.environment, ROOT) for line in by_postmap] == [
            "alice@mail.example.com\n"
        ]
        with place.postfix:
            wait_until(lambda: accepts(f"inet:127.0.0.1:{unix_port}"), "the second smtpd listens")
            for port in (place.postfix.port, unix_port):
                replies = ask_recipients(port, ["alice@example.com", "bob@example.com", "x@example.com"])
                assert [reply.code for reply in replies] == [250, 250, 550]
    assert place.memcached.get(b"aliases:bob@example.com") == b"bob@mail.example.com"


def test_systemd_units(place: Place) -> None:
    """The units for systemd start what is installed, on a socket that is where the README has it."""
    service, socket = (configparser.ConfigParser(interpolation=None), configparser.ConfigParser(interpolation=None))
    service.read(ROOT / "examples/systemd/socketmap-memcache.service")
    socket.read(ROOT / "examples/systemd/socketmap-memcache.socket")
    assert f"unix:{socket['Socket']['ListenStream']}" in README
    twistd, arguments = service["Service"]["ExecStart"].split(" ", 1)
    assert twistd == "/opt/socketmap-memcache/bin/twistd"
    config_file = write_config(place.directory / "units.cf", "tables = t=static:1\n")
    activated = (
        "import os, socket, sys\n"
        "listening = socket.socket(socket.AF_UNIX)\n"
        "listening.bind(sys.argv[1])\n"
        "listening.listen()\n"
        "os.dup2(listening.fileno(), 3)\n"
        "os.set_inheritable(3, True)\n"
        "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))\n"
        "os.execv(sys.argv[2], sys.argv[2:])\n"
    )
    path = place.directory / "activated"
    program = write_config(place.directory / "activate.py", activated)
    command = (
        f"{sys.executable} {program} {path} {Path(sys.executable).parent}/twistd {arguments} --config {config_file}"
    )
    with Command(command, place.directory / "units.log", [f"unix:{path}"], place.directory) as server:
        wait_until(lambda: "listening on systemd:" in server.log, "it listens")
        assert ask(f"unix:{path}", "t") == b"OK 1"
    assert path.exists()


def test_every_command_is_tested() -> None:
    """All literal blocks of the README are those that the tests here run."""
    tested = ("make run", "nc -N", "pip install .", "bin/twistd", "postmap -q")
    for block in re.findall(r"::\n\n((?:    .*\n)+)", README):
        assert any(text in block for text in tested), block
    assert set(re.findall(r":name: (\S+)", README)) == {
        "service-main.cf",
        "memcache-aliases.cf",
        "postfix-tcp",
        "postfix-unix",
    }
