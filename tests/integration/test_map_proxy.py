"""``socketmap-memcache map`` beside postmap where a proxymap(8) and proxywrite do the work, and with ``-f``."""

from __future__ import annotations

import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import attrs
import pytest

from .harness.map_command import Outcome, run_map
from .harness.memcached import Memcached
from .harness.postfix import Postfix, needs_root
from .harness.processes import scratch_directory, write_config

pytestmark = needs_root

ENTRIES = {
    "low": "1",
    "Cap": "2",
    "cap": "3",
    "\u00fc": "4",
    "\u00dc": "5",
    "Cap@Example.Com": "6",
    "cap@example.com": "7",
}
KEYS = "low\nLOW\ncap\nCap\nCAP\n\u00fc\n\u00dc\ncap@example.com\nCap@Example.Com\n\n\udcff\n".encode(
    errors="surrogateescape"
)


@attrs.frozen
class Site:
    """A Postfix that may read all tables, and change those in files of its own."""

    postfix: Postfix
    folder: Path
    memcached: Memcached

    def run_both(self, *arguments: str, stdin: bytes = b"") -> list[Outcome]:
        theirs = self.postfix.postmap(*arguments, stdin=stdin)
        return [Outcome.of(theirs), Outcome.of(self.run_ours(*arguments, stdin=stdin))]

    def run_ours(self, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return run_map("-c", str(self.postfix.config_directory), *arguments, stdin=stdin)

    def compare(self, *arguments: str, stdin: bytes = b"") -> Outcome:
        """Run both, and give what they agree on."""
        theirs, ours = self.run_both(*arguments, stdin=stdin)
        assert ours == theirs, arguments
        return ours


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with scratch_directory() as folder, Memcached(folder) as memcached:
        with closing(sqlite3.connect(folder / "db")) as database, database:
            database.execute("CREATE TABLE t (k, v)")
            database.executemany("INSERT INTO t VALUES (?, ?)", ENTRIES.items())
        (folder / "db").chmod(0o644)
        query = f"dbpath = {folder}/db\nquery = SELECT v FROM t WHERE k = '%s'\n"  # noqa: S608
        write_config(folder / "sqlite", query)
        write_config(folder / "domain", f"{query}domain = example.com\n")
        write_config(folder / "texthash", "low 1\nCap 2\n")
        write_config(folder / "regexp", "/^low$/ found\n")
        cache = f"memcache = {memcached.address}\nkey_format = f:%s\n"
        write_config(folder / "none.cf", cache)
        write_config(folder / "behind.cf", f"{cache}backup = btree:{folder}/query-btree\n")
        write_config(folder / "proxied.cf", f"{cache}backup = proxy:btree:{folder}/query-btree\n")
        files = [
            f"{kind}:{folder}/{use}-{kind}"
            for kind in KINDS
            for use in ("query", "theirs", "ours", "to-theirs", "to-ours")
        ]
        caches = [f"memcache:{folder}/none.cf", f"memcache:{folder}/behind.cf"]
        others = [f"sqlite:{folder}/sqlite", f"sqlite:{folder}/domain", f"texthash:{folder}/texthash"]
        others += [f"regexp:{folder}/regexp", "static:v", "inline:{low=1,Cap=2}"]
        maps = {"proxy_write_maps": [*files, *caches], "proxy_read_maps": [*files, *caches, *others]}
        parameters = {name: " ".join(f"proxy:{table}" for table in tables) for name, tables in maps.items()}
        postfix = Postfix(folder, {**parameters, "local_recipient_maps": ""})
        entries = "".join(f"{key} {value}\n" for key, value in ENTRIES.items()).encode()
        for table in files:
            Path(table.partition(":")[2]).write_text("")
            assert postfix.postmap(table).returncode == 0
            assert postfix.postmap("-if", table, stdin=entries).returncode == 0
        postfix.adopt(folder.glob("*-*.*"))
        with postfix:
            yield Site(postfix, folder, memcached)


KINDS = ("btree", "hash", "lmdb")
PROXIED = [
    *("btree:{}/query-btree", "hash:{}/query-hash", "lmdb:{}/query-lmdb", "sqlite:{}/domain", "texthash:{}/texthash"),
    *("regexp:{}/regexp", "static:v", "inline:{{low=1,Cap=2}}", "memcache:{}/none.cf", "memcache:{}/behind.cf"),
]
OTHERS = ["sqlite:{}/sqlite", "sqlite:{}/domain", "memcache:{}/behind.cf", "memcache:{}/proxied.cf"]


@pytest.mark.parametrize("name", [*OTHERS, *(f"proxy:{table}" for table in PROXIED)])
def test_case(site: Site, name: str) -> None:
    """Which keys are found, with -f and without, is what postmap finds, through a proxymap and without."""
    table = name.format(site.folder)
    for options in ("-q", "-fq"):
        if "memcache:" in name:
            site.memcached.flush()
            site.memcached.set_many({b"f:low": b"1", b"f:Cap": b"2", b"f:cap": b"3"})
        assert site.compare(options, "-", table, stdin=KEYS).stdout


@pytest.mark.parametrize("kind", KINDS)
def test_delete(site: Site, kind: str) -> None:
    """Deletes through a proxywrite have postmap's outcome, key by key, with -f and without."""
    outcomes = []
    for side, run in (("theirs", site.postfix.postmap), ("ours", site.run_ours)):
        table = f"proxy:{kind}:{site.folder}/{side}-{kind}"
        ran = [run(option, key, table) for option, key in (("-d", "LOW"), ("-fd", "CAP"), ("-fd", "Cap"))]
        ran += [run("-d", "-", table, stdin=text.encode()) for text in ("CAP\n\u00dc\nlow\n", "low\n\n")]
        outcomes.append([Outcome.of(each) for each in ran])
        left = site.postfix.postmap("-s", table.removeprefix("proxy:")).stdout
        assert sorted(left.decode().splitlines()) == ["Cap@Example.Com\t6", "cap@example.com\t7", "\u00dc\t5"]
    assert outcomes[1] == outcomes[0]
    assert [outcome.status for outcome in outcomes[0]] == [0, 1, 0, 0, 1]


def test_delete_cached(site: Site) -> None:
    """Deletes in a cache through a proxywrite have postmap's outcome."""
    table = f"proxy:memcache:{site.folder}/none.cf"
    outcomes = []
    for run in (site.postfix.postmap, site.run_ours):
        site.memcached.set_many({b"f:low": b"1", b"f:Cap": b"2"})
        one = (("-d", "LOW"), ("-d", "low"), ("-fd", "CAP"), ("-fd", "Cap"))
        outcomes.append([Outcome.of(run(option, key, table)) for option, key in one])
    assert outcomes[1] == outcomes[0]
    assert [outcome.status for outcome in outcomes[0]] == [0, 1, 1, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_update(site: Site, kind: str) -> None:
    """Entries are stored through a proxywrite, which postmap cannot do, as postmap stores them without one."""
    lists = []
    changes = [("-i", b"New 1\nnew 2\n\xc3\x84 v\n"), ("-ir", b"LOW 3\n"), ("-iw", b"low 4\nother 5\n")]
    changes += [("-if", b"Cap 6\nCAP 7\n")]
    for side in ("to-theirs", "to-ours"):
        table = f"{kind}:{site.folder}/{side}-{kind}"
        for option, entries in changes:
            if side == "to-theirs":
                ran = site.postfix.postmap(option, table, stdin=entries)
            else:
                ran = site.run_ours(option, f"proxy:{table}", stdin=entries)
            assert (ran.returncode, ran.stdout) == (0, b"")
            warned = {"-i": b"new", "-if": b"Cap"}.get(option)
            assert ran.stderr.count(b"duplicate entry: ") == (warned is not None)
            assert warned is None or b'duplicate entry: "%b"' % warned in ran.stderr
        lists.append(sorted(site.postfix.postmap("-s", table).stdout.splitlines()))
    assert lists[1] == lists[0]
    assert {b"low\t3", b"Cap\t2", b"CAP\t7", b"new\t1", b"other\t5"} <= set(lists[0])
    refused = site.postfix.postmap("-i", f"proxy:{kind}:{site.folder}/theirs-{kind}", stdin=b"a 1\n")
    assert b"proxy does not support bulk-mode creation" in refused.stderr


def test_refused(site: Site) -> None:
    """A change of a table that Postfix only lets read is refused."""
    assert site.compare("-d", "low", f"proxy:sqlite:{site.folder}/sqlite").status == 1
    ran = site.run_ours("-i", f"proxy:sqlite:{site.folder}/sqlite", stdin=b"a 1\n")
    assert ran.returncode == 1
    assert b"proxy_write_maps" in ran.stderr
