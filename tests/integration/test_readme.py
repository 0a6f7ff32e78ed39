"""README.rst is right: its commands run, and its configuration works, in places where a test may put it."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from socketmap_memcache.policies.greylist.settings import PARAMETERS

from .harness.memcached import Memcached
from .harness.policy import PolicyClient
from .harness.postfix import Postfix, needs_root
from .harness.processes import Server, accepts, free_port, scratch_directory, wait_until, write_config
from .harness.service import Service
from .harness.smtp import ask_recipient, ask_recipients
from .harness.socketmap import ask

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.rst").read_text()

#: The mail that the README has as an example for greylisting.
MAIL = {
    "client_address": "192.0.2.7",
    "client_name": "mx.example.com",
    "sender": "alice@example.com",
    "recipient": "bob@example.org",
}


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


def installed(command: str) -> str:
    """Return a command with what is installed for the tests in place of what the README installs."""
    return command.replace("/opt/socketmap-memcache/bin", str(Path(sys.executable).parent))


def wait_out() -> None:
    """Let a delay of one second pass."""
    time.sleep(1.05)


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
        port, policy_port = free_port(), free_port()
        postfix = Postfix(directory, {"virtual_alias_domains": "example.com"})
        queue = postfix.postconf("-h", "queue_directory")
        (directory / "etc").mkdir()
        (directory / "lib").mkdir()
        (Path(queue) / "socketmap-memcache").mkdir()
        moved = {
            "inet:127.0.0.1:11211": memcached.address,
            "inet:127.0.0.1:10020": f"inet:127.0.0.1:{port}",
            "127.0.0.1 10020": f"127.0.0.1 {port}",
            "inet:127.0.0.1:10023": f"inet:127.0.0.1:{policy_port}",
            "/opt/socketmap-memcache": str(directory / "opt"),
            "/var/spool/postfix": queue,
            "/etc/postfix": str(directory / "etc"),
            "/var/lib/socketmap-memcache": str(directory / "lib"),
        }
        with memcached:
            yield Place(directory, moved, memcached, postfix)


def test_try_it(place: Place) -> None:
    """``make run`` serves the quickstart, and the commands give alice's address, and the answers of greylisting."""
    assert commands("make run") == ["make run"]
    made = subprocess.run(["make", "--dry-run", "run"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    (example, command) = re.findall(r"^cd (\S+) && \S+/bin/(twistd .*)$", made, re.MULTILINE)[0]
    copy = place.directory / "quickstart"
    shutil.copytree(ROOT / example, copy, ignore=shutil.ignore_patterns("*.lmdb"))
    addresses = [place.move("inet:127.0.0.1:10020"), place.move("inet:127.0.0.1:10023")]
    changes = f"--set socketmap_listen={addresses[0]} --set policy_listen={addresses[1]} --set greylist_delay=1s"
    command = f"{Path(sys.executable).parent}/{command} {changes}"
    with Command(command, place.directory / "quickstart.log", addresses, copy) as server:
        with_postfix, without = (place.move(line) for line in commands("nc -N"))
        assert in_shell(with_postfix, place.environment, ROOT) == "alice@mail.example.com\n"
        assert in_shell(without, place.environment, ROOT) == "25:OK alice@mail.example.com,"
        wait_until(lambda: server.log.count("try: ") == 3, "all commands are printed")
        *_, last = re.findall("try: (.*)", server.log)
        answers = re.findall(r"``(action=[^`]*)``", README)[:3]
        for answer in answers:
            pattern = re.sub(r"\d+", r"\\d+", answer.replace("...", ".*"))
            assert re.fullmatch(pattern, in_shell(last, place.environment, ROOT).strip())
            wait_out()


@needs_root
def test_use_it(place: Place) -> None:
    """Installed, configured and started as the README says, it serves what main.cf asks for, by TCP and UNIX socket."""
    clone = place.directory / "clone"
    others = shutil.ignore_patterns(".git", ".venv*", "build", "*.egg-info", ".*_cache", ".coverage*", "__pycache__")
    shutil.copytree(ROOT, clone, ignore=others)
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


@needs_root
def test_greylisting(place: Place) -> None:
    """Greylisting as the README configures it defers and lets pass, for a real smtpd; its commands do what they say."""
    address = place.move("inet:127.0.0.1:10023")
    main_cf = write_config(place.directory / "greylisting.cf", place.move(config("greylist-main.cf")))
    options = f"--config {main_cf} --set policy_listen={address} --set greylist_delay=1s"
    run = installed(commands("bin/twistd")[1])
    server = Command(f"{run} {options}", place.directory / "greylisting.log", [address], place.directory)
    with scratch_directory() as directory:
        postfix = Postfix(directory, {"relay_domains": "example.org"})
        postfix_cf = postfix.config_directory / "main.cf"
        write_config(postfix_cf, postfix_cf.read_text() + place.move(config("postfix-greylist")))
        with postfix:
            assert ask_recipient(postfix.port, "bob@example.org").code == 250  # while the service does not run
            with server:
                reply = ask_recipient(postfix.port, "bob@example.org")
                assert reply.code == 450
                assert "Greylisted" in reply.text
                wait_out()
                assert ask_recipient(postfix.port, "bob@example.org").code == 250
                assert "action=greylist, reason=new, client_name=" in server.log
                operate(place, address, options)


def operate(place: Place, address: str, options: str) -> None:
    """Run the README's commands for greylisting, beside a service whose delay is a second."""

    def run(command: str) -> str:
        return in_shell(f"{installed(command)} {options}", place.environment, place.directory)

    show, release = commands("greylist list")
    explain = "\n".join(commands("greylist test"))
    with PolicyClient(address) as client:
        assert client.ask(MAIL).startswith(b"DEFER_IF_PERMIT Greylisted")
        assert ", first seen " in run(explain)
        assert all(text in run(show) for text in ("192.0.2", MAIL["sender"], MAIL["recipient"]))
        assert "127.0.0" not in run(show)
        run(release)
        assert client.ask(MAIL) == b"DUNNO"
        assert "reason     triplet found" in run(explain)


def test_shared_greylist(place: Place) -> None:
    """Two hosts with the README's ``.cf`` file have one greylist; when it is lost, that of the next host counts."""
    hosts = []
    for name in ("a", "b"):
        etc = place.directory / name
        etc.mkdir()

        def move(text: str, etc: Path = etc) -> str:
            text = text.replace("/etc/socketmap-memcache", str(etc)).replace("/var/lib/socketmap-memcache", str(etc))
            return text.replace("inet:memcached.example.com:11211", place.memcached.address)

        write_config(etc / "greylist.cf", move(config("greylist.cf")))
        lines = re.sub(r"greylist_table = .*\n", move(config("greylist-shared")), config("greylist-main.cf"))
        hosts.append(Service(etc, f"{lines}greylist_delay = 1s\n", policy_listen=[f"unix:{etc}/policy.sock"]))
    with hosts[0] as first, hosts[1] as second:
        clients = [PolicyClient(host.policy_addresses[0]) for host in (first, second)]
        with clients[0] as one, clients[1] as other:
            assert one.ask(MAIL).startswith(b"DEFER_IF_PERMIT Greylisted")
            wait_out()
            assert other.ask(MAIL).startswith(b"PREPEND X-Greylist: delayed ")
            assert one.ask(MAIL) == b"DUNNO"
            unknown = {**MAIL, "sender": "unknown@example.com"}  # to the other
            assert one.ask(unknown).startswith(b"DEFER_IF_PERMIT Greylisted")
            wait_out()
            assert one.ask(unknown).startswith(b"PREPEND X-Greylist: delayed ")
            place.memcached.flush()
            assert other.ask(MAIL) == b"DUNNO"
            for client in (other, one):
                assert client.ask(unknown).startswith(b"DEFER_IF_PERMIT Greylisted")


def test_partial_keys(place: Place) -> None:
    """With the README's ``.cf`` file an address is found without its extension, and by its domain."""
    cf = write_config(place.directory / "partial-keys.cf", place.move(config("partial-keys.cf")))
    place.memcached.set(b"aliases:alice@example.com", b"alice@mail.example.com")
    place.memcached.set(b"aliases:@example.com", b"postmaster@mail.example.com")
    with Service(place.directory, f"tables = aliases=memcache:{cf}\n") as service:
        (address,) = service.addresses
        assert ask(address, "aliases", b"alice+news@example.com") == b"OK alice+news@mail.example.com"
        assert ask(address, "aliases", b"carol@example.com") == b"OK postmaster@mail.example.com"


def test_systemd_units(place: Place) -> None:
    """The units for systemd start what is installed, with a directory, and where the README has Postfix ask."""
    service, socket = (configparser.ConfigParser(interpolation=None), configparser.ConfigParser(interpolation=None))
    service.read(ROOT / "examples/systemd/socketmap-memcache.service")
    socket.read(ROOT / "examples/systemd/socketmap-memcache.socket")
    assert f"unix:{socket['Socket']['ListenStream']}" in README
    assert PARAMETERS["greylist_table"] == f"lmdb:/var/lib/{service['Service']['StateDirectory']}/greylist"
    assert PARAMETERS["greylist_table"] in config("greylist-main.cf")
    twistd, arguments = service["Service"]["ExecStart"].split(" ", 1)
    assert twistd == "/opt/socketmap-memcache/bin/twistd"
    (tcp,) = re.findall(r"socketmap_listen = (inet:\S+)", config("service-main.cf"))
    assert tcp in arguments
    free_tcp = f"inet:127.0.0.1:{free_port()}"
    arguments = arguments.replace(tcp, free_tcp)
    policies = "policies = greylist\ngreylist_table = memory:\n"
    config_file = write_config(place.directory / "units.cf", f"tables = t=static:1\n{policies}")
    unit = (ROOT / "examples/systemd/socketmap-memcache.socket").read_text()
    (policy_option,) = re.findall("--set policy_listen=.*", unit)
    activated = (
        "import os, socket, sys\n"
        "listening = [socket.socket(socket.AF_UNIX) for _ in range(2)]\n"
        "for number, each in enumerate(listening):\n"
        "    each.bind(sys.argv[1 + number])\n"
        "    each.listen()\n"
        "for number, each in enumerate([os.dup(each.fileno()) for each in listening], 3):\n"
        "    os.dup2(each, number)\n"
        "    os.set_inheritable(number, True)\n"
        "os.environ.update(LISTEN_FDS='2', LISTEN_PID=str(os.getpid()))\n"
        "os.execv(sys.argv[3], sys.argv[3:])\n"
    )
    path, policy_path = place.directory / "activated", place.directory / "activated-policy"
    program = write_config(place.directory / "activate.py", activated)
    launch = f"{sys.executable} {program} {path} {policy_path} {Path(sys.executable).parent}/twistd"
    command = f"{launch} {arguments} {policy_option} --config {config_file}"
    with Command(command, place.directory / "units.log", [f"unix:{path}"], place.directory) as server:
        wait_until(lambda: server.log.count("listening on systemd:") == 2, "it listens")
        assert ask(f"unix:{path}", "t") == b"OK 1"
        assert ask(free_tcp, "t") == b"OK 1"
        with PolicyClient(f"unix:{policy_path}") as client:
            assert client.ask(MAIL).startswith(b"DEFER_IF_PERMIT Greylisted")
    assert path.exists()


def test_every_command_is_tested() -> None:
    """All literal blocks of the README are those that the tests here run."""
    tested = ("make run", "nc -N", "pip install .", "bin/twistd", "postmap -q", "greylist list", "greylist test")
    for block in re.findall(r"::\n\n((?:    .*\n)+)", README):
        assert any(text in block for text in tested), block
    assert set(re.findall(r":name: (\S+)", README)) == {
        "service-main.cf",
        "memcache-aliases.cf",
        "postfix-tcp",
        "postfix-unix",
        "partial-keys.cf",
        "greylist-main.cf",
        "postfix-greylist",
        "greylist-shared",
        "greylist.cf",
    }
