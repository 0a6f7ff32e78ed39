"""``socketmap-memcache greylist`` beside the service that it looks into."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .harness.greylist_command import COMMAND, greylist, serve
from .harness.memcached import Memcached
from .harness.policy import PolicyClient, request
from .harness.processes import scratch_directory, wait_until, write_config
from .harness.service import Service

MAIL = {
    "client_address": "192.0.2.7",
    "client_name": "mx.example.com",
    "sender": "alice+list@example.com",
    "recipient": "bob@example.org",
}
TRIPLET = ("192.0.2.7", "alice@example.com", "bob@example.org")
KEY = "t/192.0.2.0/alice@example.com/bob@example.org"
DEFERRED = b"DEFER_IF_PERMIT Greylisted, see http://postgrey.schweikert.ch/help/example.org.html"


@pytest.fixture
def directory() -> Iterator[Path]:
    with scratch_directory() as scratch:
        yield scratch


@pytest.fixture
def memcached(directory: Path) -> Iterator[Memcached]:
    with Memcached(directory) as server:
        yield server


def ask(service: Service, **changes: str) -> bytes:
    with PolicyClient(service.policy_addresses[0]) as client:
        return client.ask({**MAIL, **changes})


def operate(service: Service) -> None:
    """See what the service has stored, and change what it will do."""
    config = service.config_path
    assert ask(service) == DEFERRED
    second = int(time.time())
    row = json.loads(greylist(config, "list", "--json", "--client", TRIPLET[0]).stdout)
    assert (row["key"], row["state"]) == (KEY, "waiting")
    wait_until(lambda: int(time.time()) > second, "the next second, in which it is not new any more")
    assert b"is deferred: early-retry" in greylist(config, "show", *TRIPLET).stdout
    assert greylist(config, "release", *TRIPLET).stdout == f"released: {KEY} (was known)\n".encode()
    assert ask(service) == b"DUNNO"
    greylist(config, "release", TRIPLET[0], "", "New@example.org")
    assert ask(service, sender="", recipient="new@example.org") == b"DUNNO"
    stats = json.loads(greylist(config, "stats", "--json").stdout)
    assert stats["triplets"]["passed"] == 2
    assert greylist(config, "forget", TRIPLET[0]).stdout.count(b"forgotten: t/") == 2
    assert greylist(config, "list").stdout == b""
    assert ask(service, recipient="new@example.org") == DEFERRED


def test_lmdb(directory: Path) -> None:
    """On an lmdb table, all operations see what the running service does, and it goes by what they change."""
    with serve(directory, f"lmdb:{directory}/greylist") as service:
        operate(service)


def test_memcached_with_backup(directory: Path, memcached: Memcached) -> None:
    """On memcached with a backup too."""
    backup = f"memcache = {memcached.address}\nbackup = lmdb:{directory}/greylist\n"
    cf = write_config(directory / "greylist.cf", backup)
    with serve(directory, f"memcache:{cf}") as service:
        operate(service)


def test_memcached_alone(directory: Path, memcached: Memcached) -> None:
    """On memcached without a backup there are single triplets only; what needs a walk says so."""
    cf = write_config(directory / "greylist.cf", f"memcache = {memcached.address}\n")
    with serve(directory, f"memcache:{cf}") as service:
        config = service.config_path
        assert ask(service) == DEFERRED
        for arguments in (["list"], ["stats"], ["forget", TRIPLET[0]]):
            error = greylist(config, *arguments, status=1).stderr
            assert error.startswith(b"socketmap-memcache greylist: error: greylist_table cannot be walked through")
            assert error.count(b"\n") == 1
            assert b"give it a backup" in error
        greylist(config, "release", *TRIPLET)
        assert ask(service) == b"DUNNO"
        assert greylist(config, "forget", *TRIPLET).stdout.endswith(f"forgotten: {KEY}\n".encode())
        memcached.stop()
        error = greylist(config, "show", *TRIPLET, status=1).stderr
        assert error.splitlines()[-1].startswith(b"socketmap-memcache greylist: error: ")


def test_test(directory: Path) -> None:
    """A request that is tested gets what the service answers, with the reason, and leaves nothing behind."""
    (directory / "clients").write_text("/^good[.]/\n")
    with serve(directory, f"lmdb:{directory}/greylist", f"greylist_client_whitelist = {directory}/clients") as service:
        config = service.config_path
        for changes in ({}, {"client_name": "good.example.com"}, {"sasl_username": "bob"}, {"client_address": "what"}):
            attributes = {**MAIL, **changes}
            output = greylist(config, "test", stdin=request(attributes)).stdout.decode()
            if not changes:
                assert output.endswith(f"would store {KEY} = {output.split()[-4]} for 172801 s\n")
            assert f"answer     {ask(service, **changes).decode()}\n" in output
        greylist(config, "forget", "192.0.2.7")
        assert greylist(config, "list").stdout == b""


def test_any_bytes(directory: Path) -> None:
    """Arguments and records of any bytes are taken, and nothing harms the terminal."""
    commands: list[list[str | bytes]] = [
        ["show", "192.0.2.7", b"\xff\x1b[2J@x", b"\xe9 @y\x07"],
        ["list", "--sender", b"*\xff*"],
        ["list"],
        ["show", b"\xff", "a", "b"],
    ]
    with serve(directory, f"lmdb:{directory}/greylist") as service:
        ask(service, sender="\x1b[2Ja@x", recipient="\x9b@y")
        ask(service, sender="a@x\u202e", recipient="\xfc@y")
    for operation, *others in commands:
        argv = [*COMMAND, operation, "--config", str(service.config_path), *others]
        done = subprocess.run(argv, capture_output=True, check=False, timeout=60)
        output = (done.stdout + done.stderr).decode()
        assert "Traceback" not in output
        assert output.replace("\n", "").isprintable()


def test_help() -> None:
    """The command tells what it can do."""
    done = subprocess.run([*COMMAND, "--help"], capture_output=True, check=True, timeout=60)
    for operation in (b"list", b"show", b"release", b"forget", b"stats", b"import-postgrey", b"test"):
        assert b"\n    " + operation in done.stdout
