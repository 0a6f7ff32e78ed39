"""``redis:`` tables against real Redis servers and sentinels, which die, hang, and change their roles."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest

from .harness.certificates import Authority
from .harness.launch import assert_clean
from .harness.map_command import run_map
from .harness.memcached import Memcached
from .harness.policy import PolicyClient
from .harness.processes import free_port, scratch_directory, wait_until, write_config
from .harness.redis import MASTER, RedisServer, Sentinel
from .harness.service import Service
from .harness.socketmap import SocketmapClient, ask

#: What docs/redis.rst says.
PERMISSIONS = ["+get", "+set", "+del", "+mget", "+scan", "+ping", "+select", "+role"]
MAIL = {"client_address": "192.0.2.7", "client_name": "mx.example.com", "sender": "alice@example.com"}
ODD_KEYS = [
    b"*",
    b"a b",
    b"\\[x]?",
    b"%s",
    b'"quoted"',
    "straße@example.org".encode(),
    b"k" * 600,
    b"\x01\x7f",
    b"a\0b",
]


@attrs.frozen
class Site:
    """One service with tables in one Redis.

    :ivar directory: where all is.
    """

    directory: Path
    redis: RedisServer
    memcached: Memcached
    service: Service

    def ask(self, name: str, key: bytes = b"key") -> bytes:
        return ask(self.service.addresses[0], name, key)

    def table(self, name: str = "t") -> str:
        return f"redis:{self.directory}/{name}.cf"


def write_password(directory: Path, password: str) -> Path:
    path = directory / f"password-{password}"
    path.write_text(f"{password}\n")
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with scratch_directory() as directory, RedisServer(directory) as redis, Memcached(directory) as memcached:
        usual = f"hosts = {redis.address}\ntimeout = 1s\nretry_interval = 1s\n"
        user = "username = mail\nprefix = mail:\npassword_file = "
        redis.command("ACL", "SETUSER", "mail", "on", ">right", "~mail:*", *PERMISSIONS)
        for name, text in {
            "t": usual,
            "ttl": f"{usual}prefix = ttl:\nttl = 2s\n",
            "other": f"{usual}db = 1\n",
            "right": f"{usual}{user}{write_password(directory, 'right')}\n",
            "wrong": f"{usual}{user}{write_password(directory, 'wrong')}\n",
            "partial": f"{usual}prefix = partial:\npartial_keys = address\nrecipient_delimiter = +\n",
            "cached": f"memcache = {memcached.address}\nbackup = redis:{directory}/t.cf\n",
        }.items():
            write_config(directory / f"{name}.cf", text)
        maps = [f"{name}=redis:{directory}/{name}.cf" for name in ("t", "ttl", "right", "wrong", "partial")]
        maps.append(f"cached=memcache:{directory}/cached.cf")
        with Service(directory, f"tables = {' '.join(maps)}\n") as service:
            yield Site(directory, redis, memcached, service)


class TestOperations:
    def test_map_command(self, site: Site) -> None:
        """Entries are stored, looked up, replaced, walked through and deleted; nothing else is touched."""
        site.redis.command("SET", "socketmap", "no entry")
        site.redis.command("SET", "socketmap:", "no entry")
        site.redis.command("RPUSH", "socketmap:list", "no string")
        site.redis.command("SET", "socketmap:key", "one")
        assert run_map("-r", "-i", site.table(), stdin=b"Key two\nother three\n").returncode == 0
        assert site.ask("t", b"KEY") == b"OK two"
        assert sorted(run_map("-s", site.table()).stdout.splitlines()) == [b"key\ttwo", b"other\tthree"]
        assert run_map("-d", "key", site.table()).returncode == 0
        assert site.ask("t", b"KEY") == b"NOTFOUND "
        assert site.ask("t", b"list").startswith(b"PERM ")

    def test_ttl(self, site: Site) -> None:
        """An entry is missing when its time to live is over."""
        assert run_map("-i", site.table("ttl"), stdin=b"key value\n").returncode == 0
        assert 0 < int(site.redis.command("PTTL", "ttl:key")[1:]) <= 2000
        assert site.ask("ttl") == b"OK value"
        wait_until(lambda: site.ask("ttl") == b"NOTFOUND ", "the entry has ended")

    def test_many(self, site: Site) -> None:
        """A walk through thousands of keys gives each one once."""
        lines = [b"many%d value%d" % (number, number) for number in range(3000)]
        assert run_map("-i", site.table("other"), stdin=b"\n".join(lines) + b"\n").returncode == 0
        walked = run_map("-s", site.table("other")).stdout.replace(b"\t", b" ").splitlines()
        assert sorted(walked) == sorted(lines)

    def test_odd_keys(self, site: Site) -> None:
        """Keys may have any bytes, and are found by look-ups that are sent together; what is not UTF-8 is missing."""
        for number, key in enumerate(ODD_KEYS):
            folded = key.decode().casefold().encode()
            site.redis.command("SET", b"socketmap:" + folded, str(number))
        with SocketmapClient(site.service.addresses[0]) as client:
            expected = [b"OK %d" % number for number in range(len(ODD_KEYS))]
            assert client.ask_all("t", ODD_KEYS) == expected
            assert client.ask_all("t", [b"\xff", b"", b"*?", b"nothing"]) == [b"NOTFOUND "] * 4

    def test_partial_keys(self, site: Site) -> None:
        """The first of an address's partial keys that exists counts; the extension is put back, as Postfix does."""
        site.redis.command("SET", "partial:@example.org", "domain")
        site.redis.command("SET", "partial:bob@example.org", "bob")
        assert site.ask("partial", b"Bob+x@example.org") == b"OK bob+x"
        assert site.ask("partial", b"carol@example.org") == b"OK domain"
        assert site.ask("partial", b"carol@example.com") == b"NOTFOUND "

    def test_password(self, site: Site) -> None:
        """With the right password look-ups are answered; with a wrong one they fail, and the log says why, once."""
        assert run_map("-r", "-i", site.table("right"), stdin=b"key value\n").returncode == 0
        assert site.ask("right") == b"OK value"
        assert run_map("-s", site.table("right")).stdout == b"key\tvalue\n"
        for _ in range(2):
            assert site.ask("wrong").startswith(b"TEMP ")
        assert site.service.log.count("is down: ") == site.service.log.count("WRONGPASS") == 1


class TestFaults:
    def test_killed(self, site: Site) -> None:
        """While Redis is away look-ups fail at once, but not those that memcached answers; then all is as before."""
        site.redis.command("SET", "socketmap:key", "value")
        assert site.ask("t") == site.ask("cached") == b"OK value"
        wait_until(lambda: site.memcached.get(b"key"), "memcached has the value")
        site.redis.kill()
        begin = time.monotonic()
        for _ in range(50):
            assert site.ask("t").startswith(b"TEMP ")
            assert site.ask("cached") == b"OK value"
            assert site.ask("cached", b"missing").startswith(b"TEMP ")
        assert time.monotonic() - begin < 1
        site.redis.start()
        site.redis.command("SET", "socketmap:key", "new")
        wait_until(lambda: site.ask("t") == b"OK new", "Redis is found again", 3)
        wait_until(lambda: site.ask("cached", b"missing") == b"NOTFOUND ", "Redis is found again as a backup", 3)
        assert "Traceback" not in site.service.log

    def test_hangs(self, site: Site) -> None:
        """While Redis hangs each look-up ends within its time, and soon at once; then all is as before."""
        site.redis.command("SET", "socketmap:key", "value")
        assert site.ask("t") == b"OK value"
        site.redis.freeze()
        try:
            begin = time.monotonic()
            with SocketmapClient(site.service.addresses[0]) as client:
                replies = client.ask_all("t", [b"key%d" % number for number in range(100)])
            assert {reply.partition(b" ")[0] for reply in replies} <= {b"TIMEOUT", b"TEMP"}
            assert time.monotonic() - begin < 2

            def fails_at_once() -> bool:
                begin = time.monotonic()
                assert site.ask("t").partition(b" ")[0] in {b"TIMEOUT", b"TEMP"}
                return time.monotonic() - begin < 0.3

            wait_until(fails_at_once, "look-ups fail at once", 4)
        finally:
            site.redis.thaw()
        wait_until(lambda: site.ask("t") == b"OK value", "Redis is found again", 4)


def test_tls() -> None:
    """Each side is sure of the other, or look-ups fail, with a reason in the log."""
    with scratch_directory() as directory:
        authority, other = Authority(directory), Authority(directory, "other")
        server, mine = authority.issue("server", "DNS:localhost,IP:127.0.0.1"), authority.issue("mine")
        port = free_port()
        options = [f"--tls-{name}" for name in ("port", "ca-cert-file", "cert-file", "key-file")]
        values = [str(port), str(authority.path), str(server.path), str(server.key_path)]
        known = f"tls_ca_file = {authority.path}\n"
        own = f"tls_cert_file = {mine.path}\ntls_key_file = {mine.key_path}\n"
        redis = RedisServer(directory, options=[word for pair in zip(options, values, strict=True) for word in pair])
        tables = {
            "good": (f"hosts = tls:127.0.0.1:{port}\n{known}{own}", ""),
            "unnamed": (
                f"hosts = tls:127.0.0.1:{port}\n{known}{own}tls_server_name = redis.example\n",
                "it is not for redis",
            ),
            "unknown": (
                f"hosts = tls:127.0.0.1:{port}\ntls_ca_file = {other.path}\n{own}",
                "certificate verify failed",
            ),
            "nobody": (f"hosts = tls:127.0.0.1:{port}\n{known}", "client certificate"),
            "clear": (f"hosts = tls:127.0.0.1:{redis.port}\n{known}{own}", "speak TLS"),
            "secret": (f"hosts = inet:127.0.0.1:{port}\n", "connection lost"),
        }
        for name, (cf, _) in tables.items():
            write_config(directory / f"{name}.cf", f"{cf}timeout = 2s\n")
        maps = " ".join(f"{name}=redis:{directory}/{name}.cf" for name in tables)
        with redis, Service(directory, f"tables = {maps}\n") as service:
            redis.command("SET", "socketmap:key", "value")
            for name, (_, reason) in tables.items():
                begin = time.monotonic()
                reply = ask(service.addresses[0], name)
                assert reply == b"OK value" if name == "good" else reply.startswith(b"TEMP "), (name, reply)
                assert time.monotonic() - begin < 3
                assert any(f"{name}.cf is down" in line and reason in line for line in service.log.splitlines()) or (
                    name == "good"
                ), service.log


@contextmanager
def greylisting(directory: Path, lines: str) -> Iterator[Service]:
    """Serve a greylist in a Redis."""
    table = write_config(directory / "greylist.cf", f"timeout = 1s\nretry_interval = 1s\nprefix = greylist:\n{lines}")
    config = f"policies = greylist\ngreylist_table = redis:{table}\ngreylist_delay = 1s\n"
    config += "greylist_fail_action = DEFER no store\n"
    with Service(directory, config, policy_listen=[f"inet:127.0.0.1:{free_port()}"]) as service:
        yield service


def greylist(service: Service, recipient: str) -> bytes:
    """Return the first word of the action for a mail."""
    with PolicyClient(service.policy_addresses[0]) as client:
        return client.ask({**MAIL, "recipient": f"{recipient}@example.org"}).partition(b" ")[0]


def is_master(server: RedisServer) -> bool:
    return server.command("ROLE").startswith(b"*3\r\n$6\r\nmaster")


@contextmanager
def replicated(directory: Path) -> Iterator[tuple[RedisServer, RedisServer]]:
    """Start a master and its replica."""
    one = RedisServer(directory, "one")
    with one, RedisServer(directory, "two", ["--replicaof", "127.0.0.1", str(one.port)]) as two:
        wait_until(lambda: b"connected" in two.command("ROLE"), "the replica is connected")
        yield one, two


class TestFailover:
    @pytest.mark.parametrize("hangs", [False, True])
    def test_sentinel(self, hangs: bool) -> None:
        """When the master dies, or hangs, the replica that is promoted is used, without a restart."""
        with scratch_directory() as directory, replicated(directory) as (master, replica):
            sentinel = Sentinel(directory, "sentinel", master, password="asked")
            dead = f"inet:127.0.0.1:{free_port()}"
            lines = f"sentinels = {dead} {sentinel.address}\nsentinel_name = {MASTER}\n"
            lines += f"sentinel_password_file = {write_password(directory, 'asked')}\n"
            with sentinel, greylisting(directory, lines) as service:
                assert greylist(service, "bob") == b"DEFER_IF_PERMIT"
                wait_until(lambda: b"bob" in replica.command("KEYS", "greylist:*bob*"), "bob is on the replica")
                wait_until(lambda: b"slave" in sentinel_view(sentinel), "the sentinel knows the replica")
                if hangs:
                    master.freeze()
                else:
                    master.kill()
                wait_until(lambda: greylist(service, "bob") != b"DEFER", "the new master is found", 8)
                assert is_master(replica)
                wait_until(lambda: greylist(service, "bob") in {b"PREPEND", b"DUNNO"}, "bob's delay is over", 5)
                assert greylist(service, "new") == b"DEFER_IF_PERMIT"
                assert b"new" in replica.command("KEYS", "greylist:*new*")
                assert "Traceback" not in service.log

    def test_hosts(self) -> None:
        """Of several hosts the master is used, also when it has become another one."""
        with scratch_directory() as directory, replicated(directory) as (one, two):
            lines = f"hosts = {two.address} {one.address}\n"
            with greylisting(directory, lines) as service:
                assert greylist(service, "bob") == b"DEFER_IF_PERMIT"
                wait_until(lambda: b"bob" in two.command("KEYS", "greylist:*bob*"), "bob is on the replica")
                two.command("REPLICAOF", "NO", "ONE")
                one.command("REPLICAOF", "127.0.0.1", str(two.port))
                assert greylist(service, "carol") == b"DEFER_IF_PERMIT"
                assert b"carol" in two.command("KEYS", "greylist:*carol*")
                wait_until(lambda: greylist(service, "bob") in {b"PREPEND", b"DUNNO"}, "bob's delay is over", 5)

    def test_greylist(self) -> None:
        """A greylist in Redis defers a mail once, and its records end by themselves."""
        with (
            scratch_directory() as directory,
            RedisServer(directory) as redis,
            greylisting(directory, f"hosts = {redis.address}\n") as service,
        ):
            assert greylist(service, "bob") == b"DEFER_IF_PERMIT"
            keys = redis.command("KEYS", "greylist:*").split(b"\r\n")[2::2]
            assert keys
            assert all(int(redis.command("TTL", key)[1:]) > 3600 for key in keys)
            wait_until(lambda: greylist(service, "bob") == b"PREPEND", "the delay is over", 5)
            assert greylist(service, "bob") == b"DUNNO"
            assert_clean(service.log)


def sentinel_view(sentinel: Sentinel) -> bytes:
    """Return what a sentinel knows of the replicas."""
    return sentinel.command("SENTINEL", "REPLICAS", MASTER)
