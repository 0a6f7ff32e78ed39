"""Several services with one greylist, and stores that die, forget, or take their time: no mail waits for ever."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest

from .harness.launch import assert_clean
from .harness.memcached import Memcached
from .harness.policy import PolicyClient
from .harness.processes import Server, free_port, scratch_directory, wait_until, write_config
from .harness.scripted import Get, scripted_memcached
from .harness.service import Service
from .harness.socketmap import SocketmapClient

COMMAND = str(Path(sys.executable).with_name("socketmap-memcache"))
EXAMPLE = Path(__file__).parents[2] / "examples" / "policy"
DEFERRED = b"DEFER_IF_PERMIT Greylisted, see http://postgrey.schweikert.ch/help/example.org.html"
DELAY = 1.0
MAIL = {"client_address": "192.0.2.7", "client_name": "mx.example.com", "sender": "alice@example.com"}


class Host(Service):
    """A mail exchanger's service; its memcached, and perhaps a backup, may be those of others too."""

    def __init__(
        self,
        directory: Path,
        name: str,
        memcached: str,
        *lines: str,
        cf: Sequence[str] = (),
        backup: bool = False,
    ) -> None:
        """:param lines: more for main.cf; :param cf: more for the file of the table."""
        place = directory / name
        place.mkdir()
        cf_lines = [f"memcache = {memcached}", *cf]
        if backup:
            cf_lines.append(f"backup = lmdb:{directory}/backup")
        self._table = write_config(place / "greylist.cf", "".join(f"{line}\n" for line in cf_lines))
        (place / "recipients").write_text("slow@example.org delay=1h\n")
        shutil.copytree(EXAMPLE, place / "policy", ignore=shutil.ignore_patterns("dropin.cache"))
        path = [str(place / "policy"), *filter(None, [os.environ.get("PYTHONPATH")])]
        super().__init__(
            place,
            self.text(*lines),
            listen=[f"unix:{place}/socketmap.sock"],
            policy_listen=[f"inet:127.0.0.1:{free_port()}"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        )

    def text(self, *lines: str) -> str:
        """Give a main.cf, without where to listen."""
        place = self._table.parent
        usual = [
            "policies = blocked_senders greylist",
            f"blocked_senders_table = texthash:{place}/policy/blocked_senders",
            f"greylist_table = memcache:{self._table}",
            "greylist_delay = 1s",
            f"greylist_recipient_access = texthash:{place}/recipients",
            "tables = t=static:answer",
        ]
        return "\n".join([*usual, *lines, ""])

    def ask(self, recipient: str, **changes: str) -> bytes:
        """Return the action for a mail to somebody at example.org."""
        with PolicyClient(self.policy_addresses[0]) as client:
            return client.ask({**MAIL, "recipient": f"{recipient}@example.org", **changes})

    def command(self, *arguments: str) -> str:
        """Run ``socketmap-memcache greylist`` here."""
        operation, *others = arguments
        argv = [COMMAND, "greylist", operation, "--config", str(self.config_path), *others]
        done = subprocess.run(argv, capture_output=True, check=True, text=True, timeout=60)
        return done.stdout

    def assert_logged(self, text: str) -> None:
        wait_until(lambda: text in self.log, f"in the log: {text}", 5)


@contextmanager
def started(*servers: Server) -> Iterator[None]:
    """Start servers at the same time, and stop them."""
    with ThreadPoolExecutor() as threads:
        try:
            list(threads.map(lambda server: server.start(), servers))
            yield
        finally:
            list(threads.map(lambda server: server.stop(), servers))


@attrs.frozen
class Site:
    """Two hosts with one memcached.

    :ivar directory: where all is.
    """

    directory: Path
    memcached: Memcached
    first: Host
    second: Host

    @property
    def hosts(self) -> tuple[Host, Host]:
        return self.first, self.second


@contextmanager
def make_site(*lines: str, cf: Sequence[str] = (), backup: bool = False) -> Iterator[Site]:
    with scratch_directory() as directory:
        memcached = Memcached(directory)
        first, second = (Host(directory, name, memcached.address, *lines, cf=cf, backup=backup) for name in "ab")
        with started(memcached, first, second):
            yield Site(directory, memcached, first, second)


@pytest.fixture(scope="module")
def backed() -> Iterator[Site]:
    """Both have the same backup."""
    lines = ["greylist_auto_whitelist_clients = 2", "policy_timeout = 5s"]
    with make_site(*lines, cf=["timeout = 1", "max_try = 1"], backup=True) as site:
        yield site


@pytest.fixture(scope="module")
def alone() -> Iterator[Site]:
    """There is no backup."""
    with make_site("policy_timeout = 2s") as site:
        yield site


@pytest.fixture
def directory() -> Iterator[Path]:
    with scratch_directory() as scratch:
        yield scratch


def wait_out() -> None:
    """Let the delay pass."""
    time.sleep(DELAY + 0.05)


def delayed(action: bytes) -> bool:
    """Say whether an action is the header of what passes for the first time."""
    return action.startswith(b"PREPEND X-Greylist: delayed ")


def seconds_since(begin: float) -> float:
    return time.monotonic() - begin


class TestShared:
    def test_one_greylist(self, backed: Site) -> None:
        """What one host has deferred passes at the other, and is counted for the client at both."""
        first, second, memcached = backed.first, backed.second, backed.memcached
        assert first.ask("bob") == DEFERRED
        assert second.ask("slow") == DEFERRED
        wait_out()
        assert first.ask("slow") == DEFERRED
        first.assert_logged("reason=early-retry (35")
        assert delayed(second.ask("bob"))
        assert first.ask("bob") == second.ask("bob") == b"DUNNO"
        # A client is counted once an hour, so let that hour be over.
        assert (memcached.get(b"c/192.0.2.7") or b"").startswith(b"1,")
        memcached.set(b"c/192.0.2.7", b"1,%d" % (time.time() - 3601))
        assert first.ask("carol") == DEFERRED
        wait_out()
        assert delayed(first.ask("carol"))
        first.assert_logged("whitelisted: mx.example.com[192.0.2.7]")
        assert second.ask("slow") == second.ask("new") == b"DUNNO"
        second.assert_logged("action=pass, reason=client AWL")
        assert second.ask("new", client_address="192.0.2.8") == DEFERRED
        for host in backed.hosts:
            assert_clean(host.log)

    def test_command(self, backed: Site) -> None:
        """What the command does at one host holds at both."""
        first, second = backed.hosts
        client = {"client_address": "2001:db8::7"}
        triplet = ("2001:db8::7", "alice@example.com", "slow@example.org")
        assert first.ask("slow", **client) == DEFERRED
        rows = second.command("list", "--json", "--client", "2001:db8::7").splitlines()
        assert [json.loads(row)["recipient"] for row in rows] == ["slow@example.org"]
        second.command("release", *triplet)
        assert first.ask("slow", **client) == second.ask("slow", **client) == b"DUNNO"
        first.command("forget", *triplet)
        assert second.ask("slow", **client) == first.ask("slow", **client) == DEFERRED

    def test_memcached_dies(self, backed: Site) -> None:
        """While memcached is away, and when it comes back empty, nothing is forgotten that is in the backup."""
        first, second, memcached = backed.first, backed.second, backed.memcached
        client = {"client_address": "198.51.100.7"}
        for recipient in ("passed", "early", "slow"):
            assert first.ask(recipient, **client) == DEFERRED
        wait_out()
        assert delayed(first.ask("passed", **client))
        memcached.kill()
        for host in (second, first):
            assert host.ask("passed", **client) == b"DUNNO"
            assert host.ask("slow", **client) == DEFERRED
            host.assert_logged("action=greylist, reason=early-retry (35")
        assert delayed(second.ask("early", **client))
        assert second.ask("meanwhile", **client) == DEFERRED
        memcached.start()
        wait_out()
        assert delayed(first.ask("meanwhile", **client))
        for host in (first, second):
            for recipient in ("passed", "early", "meanwhile"):
                assert host.ask(recipient, **client) == b"DUNNO"
            assert host.ask("slow", **client) == DEFERRED
            host.ask("back", **client)
            key = b"t/198.51.100.0/alice@example.com/back@example.org"
            wait_until(lambda: memcached.get(key), "memcached is used again")  # noqa: B023
            assert memcached.delete(key)
            assert "no store" not in host.log
            assert "Traceback" not in host.log


class TestMemcachedAlone:
    def test_dies(self, alone: Site) -> None:
        """Without memcached, which has no backup, mail flows at once; when it is back, what it forgot waits again."""
        host = alone.first
        assert host.ask("bob") == DEFERRED
        alone.memcached.kill()
        begin = time.monotonic()
        assert [host.ask(recipient) for recipient in ("bob", "carol", "slow")] == [b"DUNNO"] * 3
        assert seconds_since(begin) < 1.9
        host.assert_logged("action=pass, reason=no store, client_name=mx.example.com")
        assert host.log.count("; answered DUNNO") == 1
        alone.memcached.start()
        for each in alone.hosts:
            wait_until(lambda: each.ask("slow") == DEFERRED, "memcached is found again")  # noqa: B023
        assert host.ask("bob") == DEFERRED
        wait_out()
        assert delayed(host.ask("bob"))

    def test_forgets(self, alone: Site) -> None:
        """A memcached that always is empty again defers a mail twice at each host, and then it passes."""
        client = {"client_address": "198.51.100.7"}
        for attempt in range(2):
            for host in alone.hosts:
                alone.memcached.flush()
                assert host.ask("bob", **client) == DEFERRED, attempt
            wait_out()
        for host in alone.hosts:
            alone.memcached.flush()
            assert delayed(host.ask("bob", **client))
            host.assert_logged("reason=forgotten by the store, delay=")
            assert host.ask("bob", **client) == b"DUNNO"  # the record is there again


class TestDeadStores:
    def test_fail_action(self, directory: Path) -> None:
        """Without any store the fail action is the answer, by default mail flows; the other policies are asked."""
        host = Host(directory, "host", f"unix:{directory}/nobody", backup=True)
        backup = directory / "backup.lmdb"
        with started(host):
            assert host.ask("slow") == DEFERRED
            backup.unlink()
            assert host.ask("slow") == host.ask("bob") == b"DUNNO"
            host.assert_logged("action=pass, reason=no store")

            fail_action = "greylist_fail_action = DEFER_IF_PERMIT 4.3.0 Greylisting is broken"
            host.configure(host.text("policies = greylist blocked_senders", fail_action))
            host.reload()  # it makes the file
            wait_until(lambda: "reloaded" in host.log, "the reload")
            assert host.ask("slow") == DEFERRED
            backup.write_bytes(bytes(8192))
            assert host.ask("new") == b"DEFER_IF_PERMIT 4.3.0 Greylisting is broken"
            host.assert_logged("action=greylist, reason=no store")
            assert host.ask("new", sasl_username="alice") == b"DUNNO"
            assert host.ask("new", sasl_username="alice", sender="spammer@example.com").startswith(b"REJECT")

            host.configure(host.text(fail_action, "greylist_training_mode = yes"))
            backup.unlink()
            host.reload()
            wait_until(lambda: host.log.count("reloaded") == 2, "the reload")
            backup.unlink()
            assert host.ask("new") == b"DUNNO"


class TestSlowStores:
    def test_hangs(self, alone: Site) -> None:
        """While memcached hangs each answer comes in time, and what does not need it at once; then all is as before."""
        host = alone.first
        new = [f"new{number}" for number in range(100)]
        assert host.ask("before") == DEFERRED
        alone.memcached.freeze()
        try:
            with ThreadPoolExecutor(len(new)) as threads:
                begin = time.monotonic()
                waiting = [threads.submit(host.ask, recipient) for recipient in new]
                for _ in range(10):
                    once = time.monotonic()
                    assert host.ask("new", sasl_username="alice") == b"DUNNO"
                    assert host.ask("new", sender="spammer@example.com").startswith(b"REJECT")
                    with SocketmapClient(host.addresses[0]) as client:
                        assert client.ask("t", b"key") == b"OK answer"
                    assert seconds_since(once) < 1.5
                    time.sleep(0.02)
                assert {each.result() for each in waiting} == {b"DUNNO"}
                assert 1.9 < seconds_since(begin) < 5
            host.assert_logged("policy greylist: no action within 2 s; counted as DUNNO")
        finally:
            alone.memcached.thaw()
        wait_until(lambda: host.ask("slow") == DEFERRED, "memcached is found again")
        assert delayed(host.ask("before"))
        assert "Traceback" not in host.log

    def test_hangs_with_backup(self, backed: Site) -> None:
        """While memcached hangs and there is time for it, the backup decides."""
        client = {"client_address": "203.0.113.7"}
        assert backed.first.ask("known", **client) == DEFERRED
        backed.memcached.freeze()
        try:
            begin = time.monotonic()
            assert delayed(backed.second.ask("known", **client))  # a second has been lost with memcached
            assert backed.first.ask("hung", **client) == DEFERRED
            assert seconds_since(begin) < 8
        finally:
            backed.memcached.thaw()
        wait_until(lambda: delayed(backed.second.ask("hung", **client)), "the delay is over", 5)

    def test_slow(self, directory: Path) -> None:
        """A store that takes 2 s for each look-up is asked in vain; one that is just in time decides."""

        def script(get: Get) -> bool:
            get.wait(2 if b"slow@" in get.key else 0.2)
            get.send(b"END\r\n")
            return True

        with scripted_memcached(directory / "sock", script) as server:
            lines = ["policy_timeout = 1s", "greylist_auto_whitelist_clients = 0", "greylist_fail_action = DEFER slow"]
            host = Host(directory, "host", server.address, *lines, cf=["timeout = 10"])
            with started(host):
                assert host.ask("bob") == DEFERRED
                begin = time.monotonic()
                assert host.ask("slow") == b"DEFER slow"
                assert 0.9 < seconds_since(begin) < 1.9

    def test_locked(self, directory: Path) -> None:
        """While another program has the lock on the file, mail flows; afterwards it is greylisted."""
        table = f"greylist_table = lmdb:{directory}/backup"
        host = Host(directory, "host", "unix:/nobody", table, "policy_timeout = 1s")
        with started(host):
            assert host.ask("before") == DEFERRED
            with (directory / "backup.lmdb").open("rb+") as file:
                fcntl.lockf(file, fcntl.LOCK_EX)
                begin = time.monotonic()
                with ThreadPoolExecutor(10) as threads:
                    waiting = [threads.submit(host.ask, f"new{number}") for number in range(10)]
                    assert host.ask("new", sasl_username="alice") == b"DUNNO"
                    assert seconds_since(begin) < 0.9
                    assert {each.result() for each in waiting} == {b"DUNNO"}
                assert 0.9 < seconds_since(begin) < 4
            assert delayed(host.ask("before"))
            assert host.ask("slow") == DEFERRED
