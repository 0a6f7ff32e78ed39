"""Every extension of ``memcache:`` tables in one file, with real servers: TLS, logins, signatures, replicas, leases."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import attrs
import pytest

from socketmap_memcache.memcache.ring import Ring
from socketmap_memcache.memcache.server_list import parse_server_list

from .harness.certificates import Authority, Certificate
from .harness.launch import assert_clean
from .harness.map_command import run_map
from .harness.memcached import Memcached
from .harness.postfix import Postfix
from .harness.processes import free_port, scratch_directory, wait_until, write_config
from .harness.secured_memcached import SecuredMemcached
from .harness.service import Service
from .harness.socketmap import SocketmapClient, ask

pytest.importorskip("socketmap_memcache.memcache.tls")

USER = ("postfix", "hidden-password")
KEYS = {b"user%d@example.com" % number: b"value of %d" % number for number in range(40)}
MISSING = [b"nobody%d@example.com" % number for number in range(10)]

#: Everything; each line may be changed by a reload.
LINES = {
    "memcache": "{servers}",
    "tls_ca_file": "{d}/ca.pem",
    "tls_cert_file": "{d}/client.pem",
    "tls_key_file": "{d}/client.key",
    "username": "postfix",
    "password_file": "{d}/password",
    "signing_key_file": "{d}/keys",
    "signing_name": "aliases",
    "replicas": "2",
    "memcache_failure": "next",
    "failover_ttl": "5s",
    "lease": "yes",
    "lease_timeout": "2s",
    "stale_ttl": "1m",
    "negative_ttl": "30s",
    "local_ttl": "1s",
    "timeout": "1",
    "max_try": "1",
}

#: What reloads change, one after the other; ``None`` takes a line out.
CHANGES: list[dict[str, str | None]] = [
    {"local_ttl": None},
    {"signing_key_file": "{d}/other-keys"},
    {"signing_key_file": None, "signing_name": None, "key_format": "clear:%s"},
    {"replicas": None},
    {"memcache_failure": None, "failover_ttl": None},
    {"lease": None, "lease_timeout": None, "stale_ttl": None},
    {"negative_ttl": None},
    {"memcache": "{first}", "replicas": None, "memcache_failure": None, "failover_ttl": None},
    {"memcache": "{{ {first}, weight=3 }}, {second}"},
    {"tls_ca_file": "{d}/both.pem"},
    {"key_format": "other:%s"},
    {"timeout": "2"},
    {},
]


@attrs.frozen
class Site:
    directory: Path
    memcacheds: list[SecuredMemcached]
    client: Certificate
    postfix: Postfix

    @property
    def servers(self) -> list[str]:
        return [memcached.address for memcached in self.memcacheds]

    def write(self, name: str, **changes: str | None) -> str:
        """Write the file of a table, with all lines but for the changes, and give the table."""
        lines = {**LINES, "key_format": f"{name}:%s", **changes}
        text = "".join(f"{name} = {value}\n" for name, value in lines.items() if value is not None)
        first, second, *_ = self.servers
        whole = text.format(d=self.directory, servers=", ".join(self.servers), first=first, second=second)
        return f"memcache:{write_config(self.directory / f'{name}.cf', whole)}"

    @contextmanager
    def serving(self, name: str, table: str) -> Iterator[Service]:
        place = self.directory / f"service-{name}"
        place.mkdir()
        with Service(place, f"tables = aliases={table}\n") as service:
            yield service
        for sign in ("Traceback", "#error", "#critical", USER[1]):
            assert sign not in service.log, service.log

    def homes(self, key: bytes) -> list[SecuredMemcached]:
        """Give the servers that have a key, the first to be asked first."""
        servers = parse_server_list(", ".join(self.servers))
        order = Ring([(each.label, each.weight) for each in servers]).order(key)
        return [self.memcacheds[index] for index in order[:2]]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with scratch_directory() as directory, ExitStack() as stack:
        ca = Authority(directory)
        shown, client = ca.issue("server", "IP:127.0.0.1"), ca.issue("client")
        (directory / "both.pem").write_bytes(ca.path.read_bytes() + Authority(directory, "other").path.read_bytes())
        for name, text in (("password", USER[1]), ("keys", "ab" * 32), ("other-keys", "cd" * 32)):
            (directory / name).touch(0o600)
            (directory / name).write_text(text + "\n")
        memcacheds = [
            stack.enter_context(SecuredMemcached(directory / f"mc{number}", shown=shown, clients=ca, user=USER))
            for number in range(3)
        ]
        postfix = Postfix(directory)
        yield Site(directory, memcacheds, client, postfix)


def fill(table: str) -> None:
    done = run_map("-i", table, stdin=b"".join(b"%b %b\n" % entry for entry in KEYS.items()))
    assert (done.returncode, done.stderr) == (0, b"")


class Load:
    """Clients that ask for all keys all the time.

    :ivar wrong: the keys that were answered otherwise than they should be, with the answers.
    """

    def __init__(self, service: Service, clients: int = 2) -> None:
        self.answers: Counter[bytes] = Counter()
        self.wrong: list[tuple[bytes, bytes]] = []
        self._service = service
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def _run(self) -> None:
        expected = {**{key: b"OK " + value for key, value in KEYS.items()}, **dict.fromkeys(MISSING, b"NOTFOUND ")}
        with SocketmapClient(self._service.addresses[0]) as client:
            while not self._ended.is_set():
                answers = client.ask_all("aliases", list(expected))
                self.answers.update(answers)
                self.wrong += [
                    (key, answer) for key, answer in zip(expected, answers, strict=True) if answer != expected[key]
                ]

    @contextmanager
    def running(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._ended.set()
            for thread in self._threads:
                thread.join()

    def wait(self, answers: int) -> None:
        """Wait for so many answers more."""
        enough = self.answers.total() + answers
        wait_until(lambda: self.answers.total() > enough, "clients are answered")


def test_served(site: Site) -> None:
    """Postfix finds what there is, and not what there is not, with every server up, and with each of them away."""
    table = site.write("served", backup=f"lmdb:{site.directory}/served")
    fill(table)
    with site.serving("served", table) as service, (load := Load(service)).running():
        key, value = next(iter(KEYS.items()))
        done = site.postfix.postmap("-q", key.decode(), service.map("aliases"))
        assert (done.stdout.strip(), done.stderr) == (value, b"")
        for memcached in site.memcacheds:
            for away, back in ((memcached.kill, memcached.start), (memcached.freeze, memcached.thaw)):
                away()
                load.wait(500)
                back()
                load.wait(500)
    assert load.wrong == []


def test_forged(site: Site) -> None:
    """A value that somebody has forged on one server is found on the other one; that on both is as good as evicted."""
    table = site.write("forged", local_ttl=None, lease=None, lease_timeout=None, stale_ttl=None, negative_ttl=None)
    fill(table)
    key, value = next(iter(KEYS.items()))
    with site.serving("forged", table) as service:
        for number, memcached in enumerate(site.homes(b"forged:" + key)):
            assert ask(service.addresses[0], "aliases", key) == b"OK " + value
            memcached.fill(b"forged:" + key, b"forged", site.client)
            if number:
                memcached.kill()
        assert ask(service.addresses[0], "aliases", key) == b"NOTFOUND "
        assert service.log.count(f"what {site.homes(b'forged:' + key)[0].address} has for key") == 1
        site.homes(b"forged:" + key)[1].start()


def test_map_command(site: Site) -> None:
    """The map command changes entries on all of their servers; the service serves what they have now."""
    table = site.write("changed", backup=f"lmdb:{site.directory}/changed", local_ttl=None)
    fill(table)
    key, new = next(iter(KEYS)), MISSING[0]
    with site.serving("changed", table) as service:
        answers = [ask(service.addresses[0], "aliases", each) for each in (key, new)]
        assert answers == [b"OK " + KEYS[key], b"NOTFOUND "]
        assert run_map("-i", table, stdin=new + b" added\n").returncode == 0
        assert run_map("-d", key, table).returncode == 0
        answers = [ask(service.addresses[0], "aliases", each) for each in (key, new)]
        assert answers == [b"NOTFOUND ", b"OK added"]


def test_ipv6() -> None:
    """A server with an IPv6 address can be one of several."""
    with scratch_directory() as directory, ExitStack() as stack:
        memcacheds = [
            stack.enter_context(Memcached(directory, place=f"{host}:{free_port()}")) for host in ("[::1]", "127.0.0.1")
        ]
        servers = ", ".join(memcached.address for memcached in memcacheds)
        table = f"memcache:{write_config(directory / 'table.cf', f'memcache = {servers}')}"
        fill(table)
        service = stack.enter_context(Service(directory, f"tables = aliases={table}\n"))
        for key, value in KEYS.items():
            assert ask(service.addresses[0], "aliases", key) == b"OK " + value
        for memcached in memcacheds:
            assert sum(memcached.get(key) is not None for key in KEYS) > 5
        assert_clean(service.log)


def test_knowledge_outlives_a_reload() -> None:
    """That a server was emptied is known after a reload, too: what it misses is not missing when the other is away."""
    with scratch_directory() as directory, ExitStack() as stack:
        emptied, killed = memcacheds = [
            stack.enter_context(Memcached(directory, place=f"127.0.0.1:{free_port()}")) for _ in range(2)
        ]
        servers = ", ".join(memcached.address.replace("127.0.0.1", "localhost") for memcached in memcacheds)
        text = f"memcache = {servers}\nreplicas = 2\nttl = 0\nmax_try = 1\n"
        table = f"memcache:{write_config(directory / 'table.cf', text)}"
        fill(table)
        service = stack.enter_context(Service(directory, f"tables = aliases={table}\n"))
        with SocketmapClient(service.addresses[0]) as client:
            expected = [b"OK " + value for value in KEYS.values()]
            assert client.ask_all("aliases", list(KEYS)) == expected
            emptied.restart()
            assert client.ask_all("aliases", list(KEYS)) == expected
            service.reload()
            wait_until(partial(reloaded, service, 1), "reloaded")
            assert client.ask_all("aliases", list(KEYS)) == expected
            killed.kill()
            assert {answer[:5] for answer in client.ask_all("aliases", list(KEYS))} == {b"TEMP "}


def reloaded(service: Service, times: int) -> bool:
    return service.log.count("reloaded ") == times


def test_reload(site: Site) -> None:
    """A reload that changes any of the parameters under load makes no answer wrong."""
    backup = f"lmdb:{site.directory}/reloaded"
    table = site.write("reloaded", backup=backup)
    fill(table)
    with site.serving("reloaded", table) as service, (load := Load(service)).running():
        for number, changes in enumerate(CHANGES, 1):
            load.wait(200)
            site.write("reloaded", backup=backup, **changes)
            service.reload()
            wait_until(partial(reloaded, service, number), f"reloaded with {changes}")
    assert load.wrong == []
