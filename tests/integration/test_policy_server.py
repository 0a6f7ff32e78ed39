"""The policy server with policies that other packages bring: the example, and one that does what a policy must not."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from .harness.launch import TWISTD, assert_clean
from .harness.policy import PolicyClient, request
from .harness.processes import Server, accepts, find_program, free_port, scratch_directory, wait_until
from .harness.service import Service

EXAMPLE = Path(__file__).parents[2] / "examples" / "policy"
BLOCKED = b"REJECT 5.7.1 We have had enough of this"

#: A policy that does as the sender says.
FAULTY = """\
from twisted.internet.defer import Deferred, fail
from zope.interface import implementer

from socketmap_memcache.policies.interface import DUNNO, IPolicy, IPolicyType


@implementer(IPolicy)
class Faulty:
    name = "faulty"
    fail_action = b"DEFER faulty"

    def decide(self, request):
        sender = request.get(b"sender")
        if sender == b"hang":
            return Deferred()
        if sender == b"fail":
            return fail(ValueError("as told"))
        if sender == b"malformed":
            return b"OK\\n\\naction=OK"
        return DUNNO if sender != b"raise" else 1 / 0

    def close(self):
        pass


@implementer(IPolicyType)
class FaultyType:
    name = "faulty"
    parameters = {}

    def open(self, parameters, context):
        return Faulty()


faulty = FaultyType()
"""


@pytest.fixture(scope="module")
def packages() -> Iterator[Path]:
    """Where the example is, and a package with a policy that is faulty, and one that cannot even be imported."""
    with scratch_directory() as directory:
        shutil.copytree(EXAMPLE, directory, dirs_exist_ok=True)
        plugins = directory / "twisted" / "plugins"
        (plugins / "faulty.py").write_text(FAULTY)
        (plugins / "broken.py").write_text("import no_such_module\n")
        yield directory


def with_packages(directory: Path) -> dict[str, str]:
    """Give an environment in which the packages in a directory are found."""
    path = os.pathsep.join(filter(None, [str(directory), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}


def make_service(directory: Path, packages: Path, config: str, *listen: str) -> Service:
    config += f"\nblocked_senders_table = texthash:{packages}/blocked_senders\n"
    return Service(directory, config, policy_listen=listen, env=with_packages(packages))


@pytest.fixture(scope="module")
def shared(packages: Path) -> Iterator[Service]:
    with scratch_directory() as directory:
        config = "policies = faulty blocked_senders\npolicy_timeout = 1s\n"
        listen = [f"unix:{directory}/policy.sock", f"inet:127.0.0.1:{free_port()}"]
        with make_service(directory, packages, config, *listen) as service:
            yield service


@pytest.fixture
def client(shared: Service) -> Iterator[PolicyClient]:
    with PolicyClient(shared.policy_addresses[0]) as client:
        yield client


def ask(client: PolicyClient, sender: str) -> bytes:
    return client.ask({"protocol_state": "RCPT", "sender": sender})


class TestExample:
    def test_policy(self, shared: Service) -> None:
        """It refuses who is in its table, in any case, and has no opinion on others, nor on bounces."""
        for address in shared.policy_addresses:
            with PolicyClient(address) as client:
                assert ask(client, "Spammer@example.com") == BLOCKED
                assert ask(client, "alice@example.com") == b"DUNNO"
                assert ask(client, "") == b"DUNNO"
                assert client.ask({"protocol_state": "DATA"}) == b"DUNNO"
        assert not accepts(f"unix:{shared.config_path.parent}/socketmap.sock")

    def test_readme(self) -> None:
        """It runs as its README says, and the command that is printed then asks it."""
        find_program("nc")
        address = f"inet:127.0.0.1:{free_port()}"
        command = [*TWISTD, "--pidfile=", "-n", "socketmap-memcache", "--config", "main.cf"]
        with scratch_directory() as directory:
            shutil.copytree(EXAMPLE, directory, dirs_exist_ok=True)
            service = Server(
                [*command, "--set", f"policy_listen={address}"],
                directory / "log",
                env=with_packages(directory),
                cwd=directory,
            )
            with service:
                wait_until(lambda: "try: " in service.log and accepts(address), "the service listens")
                (line,) = re.findall(r"try: (.*)", service.log)
                for sender, action in (("alice", b"DUNNO"), ("spammer", BLOCKED)):
                    ran = subprocess.run(
                        ["sh", "-c", line.replace("alice", sender)], capture_output=True, check=True, timeout=60
                    )
                    assert ran.stdout == b"action=%b\n\n" % action
            assert_clean(service.log)


class TestBadInput:
    @pytest.mark.parametrize(
        "garbage, reason",
        [
            (b"GET / HTTP/1.0\r\n\r\n", "not name=value"),
            (b"\n", "not name=value"),
            (b"sender=alice@example.com\n\n", "request=smtpd_access_policy is missing"),
            (request({"request": "junk"}), "request=smtpd_access_policy is missing"),
            (request({"sender": "a\0b"}), "NUL"),
            (request({f"name{number}": "" for number in range(10_000)}), "request of more than"),
            (request({f"n{number}": "" for number in range(1000)}), "more than 1000 attributes"),
            (b"a" * 2**20, "more than 65536 bytes"),
            (request({"sender": "a" * 2**20}), "more than 65536 bytes"),
            (bytes(range(256)) + b"\n\n", "NUL"),
        ],
    )
    def test_closed(self, shared: Service, garbage: bytes, reason: str) -> None:
        """What is no request closes that connection without a reply, with one line in the log; others go on."""
        for address in shared.policy_addresses:
            before = len(shared.log)
            with PolicyClient(address) as bad, PolicyClient(address) as good:
                assert ask(bad, "spammer@example.com") == BLOCKED
                with suppress(OSError):  # the service does not read all of it
                    bad.send_raw(garbage)
                with suppress(ConnectionError):
                    assert bad.closed()
                assert ask(good, "spammer@example.com") == BLOCKED
            lines = shared.log[before:].splitlines()
            assert [reason in line for line in lines] == [True], lines

    def test_after_others(self, client: PolicyClient) -> None:
        """Requests before a bad one are answered, also when that takes a while, and those after it are not."""
        client.send_raw(request({"sender": "hang"}) + request({}) + b"junk\n\n" + request({}))
        assert [client.receive(), client.receive()] == [b"DEFER faulty", b"DUNNO"]
        assert client.closed()

    def test_no_end(self, shared: Service, client: PolicyClient) -> None:
        """A request without an end waits for it, and holds up nobody; without it there is no reply."""
        client.send_raw(request({"sender": "spammer@example.com"})[:-1])
        with PolicyClient(shared.policy_addresses[0]) as other:
            assert ask(other, "") == b"DUNNO"
        client.send_raw(b"\n")
        assert client.receive() == BLOCKED
        client.send_raw(request({})[:-1])
        client.socket.shutdown(socket.SHUT_WR)
        assert client.closed()

    def test_unusual(self, client: PolicyClient) -> None:
        """Attributes may be missing, unknown, empty, 8-bit, twice, and large."""
        for attributes in ({}, {"x": ""}, {"sender": b"\xff\xfe"}, {"sender": "ü@example.com", "x": "y" * 60_000}):
            assert client.ask(attributes) == b"DUNNO"
        client.send_raw(b"sender=a\r\nsender=spammer@example.com\r\nrequest=smtpd_access_policy\r\n\r\n")
        assert client.receive() == BLOCKED


class TestRequests:
    def test_order(self, client: PolicyClient) -> None:
        """Many requests at once are answered in their order, whichever is decided first."""
        senders = ["hang", *["spammer@example.com", "alice@example.com", "", "malformed"] * 300]
        actions = [b"DEFER faulty", *[BLOCKED, b"DUNNO", b"DUNNO", b"DEFER faulty"] * 300]
        assert client.ask_all([{"sender": sender} for sender in senders]) == actions

    def test_bytes_one_by_one(self, client: PolicyClient) -> None:
        """A request may come in pieces."""
        for byte in request({"sender": "spammer@example.com"}):
            client.send_raw(bytes([byte]))
        assert client.receive() == BLOCKED


class TestFaults:
    def test_hangs(self, shared: Service, client: PolicyClient) -> None:
        """A policy that never answers costs its clients the time limit; then its fail action holds. Others go on."""
        begin = time.monotonic()
        client.send_raw(request({"sender": "hang"}))
        with PolicyClient(shared.policy_addresses[1]) as other:
            assert ask(other, "spammer@example.com") == BLOCKED
            assert time.monotonic() - begin < 0.9
        assert client.receive() == b"DEFER faulty"
        assert 0.9 < time.monotonic() - begin < 10
        assert "policy faulty: no action within 1 s; counted as DEFER faulty" in shared.log
        assert ask(client, "spammer@example.com") == BLOCKED

    @pytest.mark.parametrize("sender", ["raise", "fail", "malformed"])
    def test_fails(self, client: PolicyClient, sender: str) -> None:
        """A policy that raises, fails, or says what Postfix could not use, gets its fail action; requests go on."""
        assert client.ask_all([{"sender": sender}, {}]) == [b"DEFER faulty", b"DUNNO"]

    def test_logged(self, packages: Path) -> None:
        """A fault is logged with its traceback, and once for many; that of a package not used does no harm."""
        with scratch_directory() as directory:
            listen = f"unix:{directory}/policy.sock"
            with make_service(directory, packages, "policies = faulty\n", listen) as service:
                assert "No module named 'no_such_module'" in service.log
                with PolicyClient(listen) as client:
                    client.ask_all([{"sender": "raise"}] * 100)
                wait_until(lambda: "division by zero; counted as DEFER faulty" in service.log, "the log line")
            assert service.log.count("counted as DEFER faulty") == 1
            assert service.log.count("ZeroDivisionError") == 1


class TestReload:
    def test_policies(self, packages: Path) -> None:
        """SIGHUP opens the policies anew, for open connections, too; a configuration with errors changes nothing."""
        with scratch_directory() as directory:
            listen = f"unix:{directory}/policy.sock"
            table = f"blocked_senders_table = texthash:{directory}/table"
            (directory / "table").write_text("alice@example.com old\n")
            with (
                make_service(directory, packages, f"policies = blocked_senders\n{table}\n", listen) as service,
                PolicyClient(listen) as client,
            ):
                # The last entry of a name wins, so the table of make_service is in use.
                assert ask(client, "spammer@example.com") == BLOCKED
                assert ask(client, "alice@example.com") == b"DUNNO"
                service.configure(f"policies = faulty blocked_senders\n{table}\npolicy_timeout = 1s\n")
                service.reload()
                wait_until(lambda: "serving policy faulty, policy blocked_senders" in service.log, "the reload")
                assert ask(client, "alice@example.com") == b"REJECT old"
                assert ask(client, "hang") == b"DEFER faulty"
                service.configure(f"policies = blocked_sender\n{table}\n")
                service.reload()
                wait_until(lambda: "reload refused" in service.log, "the refusal")
                assert "unknown policy 'blocked_sender'" in service.log
                assert "did you mean 'blocked_senders'?" in service.log
                assert ask(client, "alice@example.com") == b"REJECT old"
                service.configure("tables = t=static:x\n")
                service.reload()
                wait_until(lambda: "serving t" in service.log, "the reload")
                assert ask(client, "alice@example.com") == b"DUNNO"
