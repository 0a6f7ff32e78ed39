"""Several services, as on several hosts, share a memcached in front of a backup that is dear."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs
import pytest

from socketmap_memcache.memcache.server_list import parse_server_list

from .harness.launch import assert_clean
from .harness.memcached import Memcached
from .harness.nutcracker import Nutcracker
from .harness.processes import scratch_directory, wait_until, write_config
from .harness.scripted import Get, scripted_memcached
from .harness.service import Service
from .harness.slow_backup import SlowBackup, slow_backup
from .harness.socketmap import SocketmapClient, ask

#: Seconds that a look-up in the backup takes.
DEAR = 0.3

#: ``lease_timeout``, in seconds.
PATIENCE = 2

TABLES = {
    "lease": f"lease = yes\nlease_timeout = {PATIENCE}\n",
    "stale": f"lease = yes\nttl = 1\nstale_ttl = 8\nlease_timeout = {PATIENCE}\n",
    "keeping": f"lease = yes\nstale_ttl = 60\nlease_timeout = {PATIENCE}\n",
    "negative": "lease = yes\nnegative_ttl = 60\n",
    "only_negative": "negative_ttl = 60\n",
}


@attrs.frozen
class Site:
    memcached: Memcached
    backup: SlowBackup
    services: list[Service]

    def clients(self, count: int) -> list[SocketmapClient]:
        """Connect so many clients, to each of the services in turn."""
        return [SocketmapClient(self.services[n % len(self.services)].addresses[0]) for n in range(count)]

    def ask(self, table: str, key: bytes = b"key") -> list[bytes]:
        """Ask all services, one after the other."""
        return [ask(service.addresses[0], table, key) for service in self.services]


@contextmanager
def site(folder: Path, address: str, memcached: Memcached, backup: SlowBackup) -> Iterator[Site]:
    names = []
    for name, lines in TABLES.items():
        text = f"memcache = {address}\nkey_format = {name}:%s\nbackup = {backup.table}\n{lines}"
        names.append(f"    {name}=memcache:{write_config(folder / f'{name}.cf', text)}\n")
    with ExitStack() as stack:
        services = []
        for host in ("one", "two"):
            place = folder / host
            place.mkdir(exist_ok=True)
            services.append(stack.enter_context(Service(place, f"tables =\n{''.join(names)}")))
        yield Site(memcached, backup, services)


@pytest.fixture(scope="module")
def running() -> Iterator[Site]:
    with (
        scratch_directory() as folder,
        Memcached(folder) as memcached,
        slow_backup(folder / "backup.sock", DEAR) as backup,
        site(folder, memcached.address, memcached, backup) as both,
    ):
        yield both


@pytest.fixture
def cold(running: Site) -> Iterator[Site]:
    """Begin with nothing in the cache."""
    running.memcached.flush()
    running.backup.askers.clear()
    running.backup.value = b"kept"
    yield running
    for service in running.services:
        assert_clean(service.log)


def ask_at_once(clients: list[SocketmapClient], table: str) -> set[bytes]:
    """Let all clients ask for the same key at the same time, and give the different replies."""
    for client in clients:
        client.send(table, b"key")
    replies = {client.receive() for client in clients}
    for client in clients:
        client.close()
    return replies


def test_stampede(cold: Site) -> None:
    """200 clients on two hosts ask for a cold key: the backup is asked once, and all get its value."""
    assert ask_at_once(cold.clients(200), "lease") == {b"OK kept"}
    assert len(cold.backup.askers) == 1
    assert cold.memcached.get(b"lease:key") == b"kept"
    assert cold.ask("lease") == [b"OK kept"] * 2
    assert len(cold.backup.askers) == 1


def test_missing(cold: Site) -> None:
    """With ``negative_ttl`` that holds for a key that does not exist, too, and it is not asked for again."""
    cold.backup.value = None
    assert ask_at_once(cold.clients(200), "negative") == {b"NOTFOUND "}
    assert cold.ask("negative") == [b"NOTFOUND "] * 2
    assert len(cold.backup.askers) == 1


def test_missing_without_leases(cold: Site) -> None:
    """Without leases ``negative_ttl`` holds after the first answer."""
    cold.backup.value = None
    assert cold.ask("only_negative") == [b"NOTFOUND "] * 2
    wait_until(lambda: cold.memcached.get(b"only_negative:key") is not None, "the cache has heard of it")
    cold.backup.askers.clear()
    assert cold.ask("only_negative") == [b"NOTFOUND "] * 2
    assert cold.backup.askers == []


def test_missing_and_not_kept(cold: Site) -> None:
    """Without ``negative_ttl`` each host asks for itself, and nobody waits longer than two queries take."""
    cold.backup.value = None
    started = time.monotonic()
    assert ask_at_once(cold.clients(200), "lease") == {b"NOTFOUND "}
    assert time.monotonic() - started < PATIENCE
    assert len(cold.backup.askers) == 2


def test_utf8(cold: Site) -> None:
    """Keys beyond ASCII have leases, too."""
    key = "müller@example.com".encode()
    assert cold.ask("lease", key) == [b"OK kept"] * 2
    assert len(cold.backup.askers) == 1
    assert cold.memcached.get(b"lease:" + key) == b"kept"


def test_stale(cold: Site) -> None:
    """After its ttl the old value is served at once, while one of all asks the backup for the new one."""
    assert cold.ask("stale") == [b"OK kept"] * 2
    cold.backup.value = b"new"
    replies: list[bytes] = []
    longest = 0.0
    with SocketmapClient(cold.services[0].addresses[0]) as one, SocketmapClient(cold.services[1].addresses[0]) as two:
        deadline = time.monotonic() + 10
        while replies[-2:] != [b"OK new"] * 2 and time.monotonic() < deadline:
            for client in (one, two):
                asked = time.monotonic()
                replies.append(client.ask("stale", b"key"))
                longest = max(longest, time.monotonic() - asked)
    assert replies[-2:] == [b"OK new"] * 2
    assert set(replies) == {b"OK kept", b"OK new"}
    assert longest < DEAR
    assert len(cold.backup.askers) == 2  # the cold key, and once for the new value


def test_updated_meanwhile(cold: Site) -> None:
    """What is put into the cache while the winner asks the backup stays there."""
    clients = cold.clients(2)
    for client in clients:
        client.send("lease", b"key")
    wait_until(lambda: cold.backup.askers, "the backup is asked")
    cold.memcached.set(b"lease:key", b"updated")
    assert {client.receive() for client in clients} == {b"OK kept", b"OK updated"}
    for client in clients:
        client.close()
    assert cold.ask("lease") == [b"OK updated"] * 2
    assert cold.memcached.get(b"lease:key") == b"updated"


def test_with_all_else() -> None:
    """Leases work on a ring of servers, with replicas, signed values and a cache in the process, too."""
    with (
        scratch_directory() as folder,
        ExitStack() as stack,
        slow_backup(folder / "backup.sock", DEAR) as backup,
    ):
        servers = [stack.enter_context(Memcached(folder, tcp=True)) for _ in range(3)]
        keys = folder / "keys"
        keys.touch(0o600)
        keys.write_text("0123456789abcdef" * 4 + "\n")
        addresses = ", ".join(server.address for server in servers)
        layers = f"\nreplicas = 2\nsigning_key_file = {keys}\nlocal_ttl = 1"
        both = stack.enter_context(site(folder, addresses + layers, servers[0], backup))
        for table in ("lease", "keeping", "negative"):
            backup.askers.clear()
            backup.value = None if table == "negative" else b"kept"
            reply = b"NOTFOUND " if table == "negative" else b"OK kept"
            assert ask_at_once(both.clients(50), table) == {reply}
            assert both.ask(table) == [reply] * 2
            assert len(backup.askers) == 1
        for service in both.services:
            assert_clean(service.log)


def test_old_memcached() -> None:
    """With a memcached of before 1.6 look-ups go on without leases; the log says so, once for each table."""

    def miss(get: Get) -> bool:
        get.send(b"END\r\n")
        return True

    with (
        scratch_directory() as folder,
        scripted_memcached(folder / "old.sock", miss) as old,
        slow_backup(folder / "backup.sock", 0.02) as backup,
    ):
        table = write_config(folder / "t.cf", f"memcache = {old.address}\nbackup = {backup.table}\nlease = yes\n")
        with Service(folder, f"tables = lease=memcache:{table}\n") as service:
            for _ in range(5):
                assert ask(service.addresses[0], "lease") == b"OK kept"
            assert service.log.count("look-ups go on without leases") == 1
            assert "its reply to mg is b'ERROR'" in service.log
            assert service.log.count("#warn") == 1


def test_proxy() -> None:
    """Behind a proxy, which knows no leases, look-ups go on without; the log says so, once for each table."""
    with (
        scratch_directory() as folder,
        Memcached(folder) as memcached,
        Nutcracker(folder, parse_server_list(memcached.address)) as proxy,
        slow_backup(folder / "backup.sock", 0.02) as backup,
        site(folder, proxy.address, memcached, backup) as both,
    ):
        for number, service in enumerate(both.services):
            for table in ("lease", "keeping"):
                for key in (b"a%d" % number, b"b%d" % number, b"a%d" % number):
                    assert ask(service.addresses[0], table, key) == b"OK kept"
            assert service.log.count("without leases") == 2
        assert len(backup.askers) == 8


def test_winner_dies() -> None:
    """When the winner is killed, the others' answers come after a bounded time, and are right."""
    with (
        scratch_directory() as folder,
        Memcached(folder) as memcached,
        slow_backup(folder / "backup.sock", DEAR) as backup,
        site(folder, memcached.address, memcached, backup) as both,
    ):
        clients = both.clients(20)
        started = time.monotonic()
        for client in clients:
            client.send("keeping", b"key")
        wait_until(lambda: backup.askers, "the backup is asked")
        (winner,) = [service for service in both.services if service.pid == backup.askers[0]]
        winner.kill()
        (other,) = [service for service in both.services if service is not winner]
        survivors = clients[both.services.index(other) :: 2]
        assert {client.receive() for client in survivors} == {b"OK kept"}
        assert time.monotonic() - started < PATIENCE + DEAR + 1.5
        assert len(backup.askers) == 2
        for client in clients:
            client.close()
        wait_until(lambda: memcached.get(b"keeping:key") in {None, b"kept"}, "the dead winner's mark is gone")
        assert ask(other.addresses[0], "keeping") == b"OK kept"
        assert_clean(other.log)
