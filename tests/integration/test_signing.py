"""Signed values in a real memcached, which somebody else can write to as well; Postfix asks the service."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from socketmap_memcache.memcache.signature import Signature
from socketmap_memcache.memcache.signing_keys import SigningKey

from .harness.map_command import run_map
from .harness.memcached import Memcached
from .harness.postfix import Postfix
from .harness.processes import scratch_directory, wait_until, write_config
from .harness.service import Service

SECRET = b"0123456789abcdef"
NEW_SECRET = b"fedcba9876543210"

USER = "user@example.com"
OTHER = "other@example.com"

DOCS = Path(__file__).parents[2] / "docs" / "signing.rst"

#: The tables: all have the same keys in the same memcached.
BACKED, BARE, LEASED, LOCAL = TABLES = ("backed", "bare", "leased", "local")


@attrs.frozen
class Site:
    folder: Path
    memcached: Memcached
    service: Service
    postfix: Postfix

    def table(self, name: str) -> str:
        return f"memcache:{self.folder}/{name}.cf"

    def ask(self, table: str, key: str = USER) -> str | None:
        """Give what Postfix hears from the service.

        :raises AssertionError: it hears of a failure.
        """
        done = self.postfix.postmap("-q", key, self.service.map(table))
        assert done.stderr == b""
        assert done.returncode == (0 if done.stdout else 1)
        return done.stdout.decode().strip() or None

    def signed(self, value: str, *, table: str = BARE, key: str = USER, ttl: int = 0, secret: bytes = SECRET) -> bytes:
        """Give what a host with this secret stores."""
        signature = Signature([SigningKey.of(secret)], self.table(table).encode(), time.time)
        return signature.sign(key.encode(), value.encode(), ttl)

    def write_keys(self, *secrets: bytes) -> None:
        (self.folder / "keys").write_text("".join(f"{secret.hex()}\n" for secret in secrets))


def documented(folder: Path, memcached: Memcached) -> list[str]:
    """Give the ``.cf`` files that the documentation shows, with files and an address of the test's."""
    blocks = re.findall(r"::\n\n((?:    .*\n)+)", DOCS.read_text())
    made = {
        "memcache": memcached.address,
        "backup": f"inline:{{ {USER}=backup, {OTHER}=other-backup }}",
        "signing_key_file": str(folder / "keys"),
    }
    files = []
    for block in blocks:
        if " memcache = " in block:
            lines = [line.strip().split(" = ") for line in block.splitlines()]
            files.append("".join(f"{name} = {made.get(name, value)}\n" for name, value in lines))
    return files


@pytest.fixture(scope="module")
def everything() -> Iterator[Site]:
    with scratch_directory() as folder, Memcached(folder) as memcached:
        backed, local = documented(folder, memcached)
        write_config(folder / f"{BACKED}.cf", backed)
        write_config(folder / f"{BARE}.cf", "".join(line for line in backed.splitlines(True) if "backup" not in line))
        write_config(folder / f"{LEASED}.cf", f"{backed}lease = yes\nnegative_ttl = 60\n")
        write_config(folder / f"{LOCAL}.cf", local)
        (folder / "keys").touch(0o600)
        service = Service(folder, "tables =" + "".join(f" {n}=memcache:{folder}/{n}.cf" for n in TABLES))
        site = Site(folder, memcached, service, Postfix(folder))
        site.write_keys(SECRET)
        with service:
            yield site


@pytest.fixture
def site(everything: Site) -> Iterator[Site]:
    everything.memcached.flush()
    yield everything
    everything.write_keys(SECRET)


def reload(site: Site) -> None:
    """Let the service read its files again, and wait until it has."""
    before = site.service.log.count("reload")
    site.service.reload()
    wait_until(lambda: site.service.log.count("reload") > before, "the service has read its files again")


def test_signed(site: Site) -> None:
    """What one process stores is signed in memcached, and found by another one that has the key."""
    assert run_map("-i", "-r", site.table(BARE), stdin=f"{USER} value\n".encode()).returncode == 0
    stored = site.memcached.get(USER.encode())
    assert stored is not None
    assert re.fullmatch(rb"sig1:[0-9a-f]{8}:[A-Za-z0-9+/]{24}:\d{10}:value", stored)
    assert site.ask(BARE) == "value"
    # The other table has stored nothing; and then it has, in the same place.
    assert site.ask(BACKED) == "backup"
    wait_until(lambda: (site.memcached.get(USER.encode()) or b"").endswith(b":backup"), "the answer is in the cache")
    assert site.ask(BACKED) == "backup"
    assert site.ask(BARE) is None


def test_ours(site: Site) -> None:
    """The values that these tests make are those that the service makes."""
    site.memcached.set(USER.encode(), site.signed("value"))
    assert site.ask(BARE) == "value"
    site.memcached.set(USER.encode(), site.signed("value", table=BACKED))
    assert site.ask(BACKED) == "value"


def bad(site: Site, table: str, case: str) -> bytes:
    """Give what somebody puts into the cache for :data:`USER`."""
    good = site.signed("evil", table=table)
    if case == "unsigned":
        return b"evil"
    if case == "forged":
        return site.signed("evil", table=table, secret=b"not one of the keys")
    if case == "changed":
        return site.signed("good", table=table).replace(b"good", b"evil")
    if case == "prolonged":
        return re.sub(rb":\d{10}:", b":0000000000:", site.signed("evil", table=table, ttl=60))
    if case == "moved from another key":
        return site.signed("evil", table=table, key=OTHER)
    if case == "moved from another table":
        return site.signed("evil", table=BACKED if table == BARE else BARE)
    if case == "truncated":
        return good[:-1]
    if case == "nothing left":
        return good[:49]
    raise ValueError(case)


@pytest.mark.parametrize(
    "case",
    [
        "unsigned",
        "forged",
        "changed",
        "prolonged",
        "moved from another key",
        "moved from another table",
        "truncated",
        "nothing left",
    ],
)
def test_not_served(site: Site, case: str) -> None:
    """A value that was not signed for its place is as good as evicted: the backup answers, or it is missing."""
    site.memcached.set(USER.encode(), bad(site, BARE, case))
    assert site.ask(BARE) is None
    for table in (BACKED, LEASED):
        site.memcached.set(USER.encode(), bad(site, table, case))
        assert site.ask(table) == "backup"
        wait_until(lambda: (site.memcached.get(USER.encode()) or b"").endswith(b":backup"), "the answer is cached")
        assert site.ask(table) == "backup"


def test_replayed_late(site: Site) -> None:
    """A value that is written back after its time is as good as evicted."""
    stored = site.signed("old", ttl=1)
    site.memcached.set(USER.encode(), stored)
    assert site.ask(BARE) == "old"
    wait_until(lambda: site.ask(BARE) is None, "the value's time is over")
    site.memcached.set(USER.encode(), stored)
    assert site.ask(BARE) is None
    assert site.memcached.get(USER.encode()) == stored


def test_nobody(site: Site) -> None:
    """That the backup does not have a key is signed as well: nobody can make an address vanish."""
    for marker in (b"\0missing", b""):
        site.memcached.set(USER.encode(), marker)
        assert site.ask(LEASED) == "backup"
    assert site.ask(LEASED, "nobody@example.com") is None
    wait_until(lambda: (site.memcached.get(b"nobody@example.com") or b"").startswith(b"sig1:"), "the answer is cached")
    assert site.ask(LEASED, "nobody@example.com") is None


def test_log(site: Site) -> None:
    """The log says where a value was that was not accepted, and nothing of a key that signs."""
    site.memcached.set(USER.encode(), b"evil")
    assert site.ask(BARE) is None
    log = site.service.log
    assert re.search(rf"memcache:\S+bare.cf: what unix:\S+ has for key b'{USER}' has", log)
    assert not re.search(f"{SECRET.hex()}|{SECRET.decode()}", log)


def test_rotation(site: Site) -> None:
    """A new key first verifies, then signs, and then the old one goes, without a value that is not served before."""
    site.memcached.set(OTHER.encode(), site.signed("old", key=OTHER))
    for secrets in ((SECRET, NEW_SECRET), (NEW_SECRET, SECRET)):
        site.write_keys(*secrets)
        reload(site)
        site.memcached.set(USER.encode(), site.signed("new", secret=NEW_SECRET))
        assert (site.ask(BARE), site.ask(BARE, OTHER)) == ("new", "old")
        site.memcached.delete(USER.encode())
        assert site.ask(BACKED) == "backup"
        wait_until(lambda: site.memcached.get(USER.encode()), "the backup's answer is cached")
        stored = site.memcached.get(USER.encode())
        assert stored is not None
        assert stored.split(b":")[1] == SigningKey.of(secrets[0]).id
    site.write_keys(NEW_SECRET)
    reload(site)
    assert site.ask(BARE, OTHER) is None
    assert site.ask(BACKED) == "backup"
    site.write_keys(SECRET)
    reload(site)


def test_keys_for_everybody(site: Site) -> None:
    """Where every user may read the keys, check says what to run, and a reload leaves all as it was."""
    keys = site.folder / "keys"
    keys.chmod(0o644)
    site.memcached.set(USER.encode(), site.signed("value"))
    try:
        command = str(Path(sys.executable).with_name("socketmap-memcache"))
        argv = [command, "check", "--config", str(site.service.config_path)]
        done = subprocess.run(argv, capture_output=True, check=False, timeout=60)
        assert done.returncode == 1
        assert f"{keys}: every user may use these signing keys; run: chmod o= {keys}" in done.stderr.decode()
        reload(site)
        assert site.ask(BARE) == "value"
    finally:
        keys.chmod(0o600)


def test_local(site: Site) -> None:
    """With local_ttl a value that was found is given again for that time, and the one in memcached after it."""
    site.memcached.set(USER.encode(), b"first")
    assert site.ask(LOCAL) == "first"
    site.memcached.set(USER.encode(), b"second")
    assert site.ask(LOCAL) == "first"
    wait_until(lambda: site.ask(LOCAL) == "second", "the time is over")
