"""``lmdb:`` tables beside Postfix's own programs, beside other processes, and when something goes wrong."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any, cast

import attrs
import pytest
from twisted.internet.defer import Deferred

from socketmap_memcache.errors import LookupTimeout
from socketmap_memcache.tables.lmdb import LmdbStore, open_lmdb
from socketmap_memcache.tables.lmdb_file import Transaction, acquire, release
from socketmap_memcache.tables.registry import TableContext
from socketmap_memcache.tables.store import Kind, Operation
from socketmap_memcache.tables.store_table import STORE_TIMEOUT, StoreTable
from tests.unit.tables.thread_clock import ThreadClock

from .harness.postfix import Postfix
from .harness.processes import PATIENCE, find_program, scratch_directory, wait_until

WRITER = Path(__file__).parent / "harness" / "lmdb_writer.py"

# Holds an exclusive lock on a file until its standard input ends.
LOCKER = (
    "import fcntl, sys\n"
    "file = open(sys.argv[1], 'r+b')\n"
    "fcntl.lockf(file, fcntl.LOCK_EX)\n"
    "print('locked', flush=True)\n"
    "sys.stdin.read()\n"
)

# Uses a table that was opened before a fork, in the parent and in the child, as a daemon's start does.
FORKER = (
    "import os, sys\n"
    "from pathlib import Path\n"
    "from socketmap_memcache.tables.lmdb import LmdbStore\n"
    "from socketmap_memcache.tables.store import Kind as K, Operation as O\n"
    "store = LmdbStore('x', Path(sys.argv[1]))\n"
    "child = os.fork()\n"
    "if child:\n"
    "    assert os.waitpid(child, 0)[1] == 0\n"
    "key = b'parent' if child else b'child'\n"
    "print(store.execute([O(K.UPDATE, key, b'v'), O(K.LOOKUP, b'child')]))\n"
)


@attrs.define
class Clients:
    reactor: ThreadClock = attrs.Factory(ThreadClock)


@attrs.define
class Site:
    """A directory with lmdb: files, and Postfix's postmap.

    :ivar name: of a table, without ``.lmdb``; there is no file at first.
    """

    postfix: Postfix
    name: Path
    clock: ThreadClock = attrs.Factory(ThreadClock)

    @property
    def path(self) -> Path:
        return self.name.with_suffix(".lmdb")

    def postmap(self, *arguments: str | bytes | Path, stdin: bytes | None = None) -> bytes:
        """Run postmap on the table and return its output; there must not be a complaint."""
        run = self.postfix.postmap(*arguments, f"lmdb:{self.name}", stdin=stdin)
        assert run.stderr == b""
        return run.stdout

    def make(self, content: dict[bytes, bytes], *options: str) -> None:
        """Make the table with postmap."""
        self.name.write_bytes(b"".join(b"%s %s\n" % item for item in content.items()))
        self.postmap(*options)

    def open(self) -> StoreTable:
        context = TableContext(clients=cast("Any", Clients(self.clock)))
        return open_lmdb(str(self.name), context)

    def result(self, answer: Deferred[Any]) -> Any:
        results: list[Any] = []
        answer.addBoth(results.append)
        while not results:
            self.clock.run_call()
        return results[0]

    def entries(self) -> list[tuple[bytes, bytes]]:
        """Walk through the table."""
        table = self.open()
        cursor = table.cursor()
        entries = []
        while (entry := self.result(cursor.next())) is not None:
            entries.append(entry)
        table.close()
        return entries


@pytest.fixture
def site() -> Iterator[Site]:
    with scratch_directory() as directory:
        yield Site(Postfix(directory), directory / "table")


@pytest.fixture
def source(request: pytest.FixtureRequest) -> random.Random:
    """What the cases are made with; a failed test shows the option that repeats them."""
    seed = request.config.getoption("--differential-seed")
    print(f"--differential-seed={seed}")
    return random.Random(f"{seed} {request.node.name}")


def generate(source: random.Random, count: int = 400) -> dict[bytes, bytes]:
    """Make keys and values that postmap takes from a text."""
    characters = "abcxyzABCXYZ0189@.+-_=/!~\u00e4\u00d6\u00df\u0130\u4e2d\U0001f40d"

    def text(longest: int, more: str = "") -> str:
        return "".join(source.choices(characters + more, k=source.randint(1, longest)))

    content: dict[str, str] = {}
    for _ in range(count):
        key = text(source.choice([2, 8, 60]))
        if key.casefold() not in map(str.casefold, content):
            content[key] = " ".join(text(source.choice([2, 40, 2000]), ',:;"\t').split()) or "-"
    return {key.encode(): value.encode() for key, value in content.items()}


def shown(content: Sequence[tuple[bytes, bytes]]) -> bytes:
    return b"".join(b"%s\t%s\n" % item for item in content)


@contextmanager
def running(argv: Sequence[str | Path], stdin: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program that is killed at the end if it runs still."""
    child = subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.PIPE if stdin else subprocess.DEVNULL
    )
    try:
        with child:
            try:
                yield child
            finally:
                child.kill()
    finally:
        child.wait(PATIENCE)


def writer(site: Site, prefix: str, count: int, *more: int) -> list[str | Path]:
    return [sys.executable, WRITER, site.name, prefix, str(count), *map(str, more)]


def output(child: subprocess.Popen[bytes]) -> list[str]:
    """Wait for the end of a process that must not complain, and return the lines that it has printed."""
    printed, complaints = child.communicate(timeout=PATIENCE)
    assert complaints == b""
    return printed.decode().splitlines()


class TestFormat:
    @pytest.mark.parametrize("options", [(), ("-N",), ("-n",), ("-f",), ("-n", "-f")])
    def test_made_by_postmap(self, site: Site, source: random.Random, options: tuple[str, ...]) -> None:
        """A file that postmap made is walked through as postmap shows it, and look-ups give what postmap gives."""
        content = generate(source)
        site.make(content, *options)
        assert shown(site.entries()) == site.postmap("-s")
        keys = [*content, *(key.swapcase() for key in list(content)[:50]), b"missing", b"k" * 511, b"k" * 5000]
        table = site.open()
        values = [(key, site.result(table.lookup(key))) for key in keys]
        table.close()
        found = [(key, value) for key, value in values if value is not None]
        assert len(found) > len(keys) / 10
        assert shown(found) == site.postmap("-q", "-", stdin=b"".join(key + b"\n" for key in keys))

    @pytest.mark.parametrize("options", [(), ("-n",)])
    def test_made_here(self, site: Site, source: random.Random, options: tuple[str, ...]) -> None:
        """What is stored, replaced and deleted here is what postmap shows and finds, with a ttl or without."""
        site.make({b"first": b"value", b"deleted": b"value"}, *options)
        table = site.open()
        content = {b"first": b"value"}
        for key, value in generate(source).items():
            content[key.decode().casefold().encode()] = value
            site.result(table.update(key, b"old"))
            site.result(table.update(key, value, ttl=source.choice([None, 1000])))
        key = b'two words "and more"' + b"k" * 480
        content[key] = b"v"
        assert site.result(table.update(key, b"v")) is True
        assert site.result(table.delete(b"Deleted")) is True
        assert site.postmap("-s") == shown(sorted(content.items()))
        stdin = b"".join(key + b"\n" for key in content)
        assert site.postmap("-q", "-", stdin=stdin) == shown(list(content.items()))
        table.close()

    def test_mixed_use(self, site: Site) -> None:
        """Postmap changes and makes anew what is open here, and each side sees what the other did."""
        site.make({b"a": b"1", b"b": b"2"})
        table = site.open()
        assert site.result(table.update(b"c", b"3")) is True
        site.postmap("-d", "a")
        site.postmap("-i", stdin=b"d 4\n")
        assert site.postmap("-s") == b"b\t2\nc\t3\nd\t4\n"
        assert [site.result(table.lookup(key)) for key in (b"a", b"b", b"c", b"d")] == [None, b"2", b"3", b"4"]
        site.make({b"e": b"5"})
        assert [site.result(table.lookup(key)) for key in (b"d", b"e")] == [None, b"5"]
        site.path.unlink()
        site.make({b"f": b"6"})
        assert [site.result(table.lookup(key)) for key in (b"e", b"f")] == [None, b"6"]
        table.close()

    def test_growth(self, site: Site) -> None:
        """A file grows beyond its map by postmap's hand and by this service's, and the other can still use it."""
        config = site.postfix.config_directory / "main.cf"
        config.write_text(f"{config.read_text()}lmdb_map_size = 65536\n")
        site.make({b"a": b"1"})
        table = site.open()
        assert site.result(table.lookup(b"a")) == b"1"
        many = {b"%d" % number: b"v" * 100 for number in range(5000)}
        site.make(many)
        assert [site.result(table.lookup(key)) for key in (b"a", b"0", b"4999")] == [None, b"v" * 100, b"v" * 100]
        many = dict.fromkeys(many, b"w" * 1000)
        answers = [table.update(*item) for item in many.items()]
        assert all(site.result(answer) is True for answer in answers)
        assert site.postmap("-s") == shown(sorted(many.items()))
        table.close()


class TestLocks:
    @contextmanager
    def transaction(self, site: Site, write: bool) -> Iterator[None]:
        """Be inside a transaction, while another table of the same file is opened and closed."""
        begun, end = Event(), Event()

        def work(transaction: Transaction) -> None:  # noqa: ARG001
            begun.set()
            end.wait(PATIENCE)

        file = acquire(site.path)
        thread = Thread(target=file.transact, args=(work, write))
        thread.start()
        try:
            assert begun.wait(PATIENCE)
            site.open().close()
            yield
        finally:
            end.set()
            thread.join(PATIENCE)
            release(file)

    def check_waits(self, site: Site, *arguments: str) -> None:
        """Check that postmap, which is killed then, does not come to an end."""
        argv: list[str | Path] = [
            find_program("postmap"),
            "-c",
            site.postfix.config_directory,
            *arguments,
            f"lmdb:{site.name}",
        ]
        with running(argv) as child, pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.5)

    def test_writing(self, site: Site) -> None:
        """Nobody of Postfix's reads while this service writes."""
        site.make({b"a": b"1"})
        with self.transaction(site, write=True):
            self.check_waits(site, "-q", "a")
        with self.transaction(site, write=False):
            assert site.postmap("-q", "a") == b"1\n"

    def test_reading(self, site: Site) -> None:
        """Nobody of Postfix's writes while this service reads."""
        site.make({b"a": b"1"})
        with self.transaction(site, write=False):
            self.check_waits(site, "-d", "a")
        assert site.postmap("-q", "a") == b"1\n"

    def test_hanging(self, site: Site) -> None:
        """While somebody holds a lock, a table has time-outs and others work; an update of that time is never made."""
        site.make({b"a": b"1"})
        table = site.open()
        other_site = Site(site.postfix, site.name.with_name("other"), site.clock)
        other_site.make({b"b": b"2"})
        other = other_site.open()
        with running([sys.executable, "-c", LOCKER, site.path], stdin=True) as locker:
            assert locker.stdout is not None
            assert locker.stdout.readline() == b"locked\n"
            update = table.update(b"a", b"new")
            wait_until(lambda: not table._waiting, "the thread has taken the update")
            lookup = table.lookup(b"a")
            assert site.result(other.lookup(b"b")) == b"2"
            site.clock.advance(STORE_TIMEOUT)
            for answer in (update, lookup):
                assert site.result(answer).check(LookupTimeout)
            assert site.result(other.lookup(b"b")) == b"2"
        assert site.result(table.lookup(b"a")) == b"1"
        for opened in (table, other):
            opened.close()

    def test_writers(self, site: Site) -> None:
        """Processes of this service and postmap that write and read at once lose nothing."""
        site.make({b"%d" % number: b"-" for number in range(20)})
        with running(writer(site, "a", 1000)) as first, running(writer(site, "b", 1000)) as second:
            for number in range(20):
                assert site.postmap("-q", str(number)) == b"-\n"
                site.postmap("-d", str(number))
            for child in (first, second):
                assert sorted(map(int, output(child))) == list(range(1000))
        keys = [key for key, _ in site.entries()]
        assert keys == sorted(b"%s%d" % (prefix, number) for prefix in (b"a", b"b") for number in range(1000))

    def test_fork(self, site: Site) -> None:
        """A table that was opened before a fork works after it, in both processes."""
        site.make({b"a": b"1"})
        argv: list[str | Path] = [sys.executable, "-c", FORKER, site.path]
        run = subprocess.run(argv, capture_output=True, check=True, timeout=PATIENCE)
        assert run.stdout == b"[True, b'v']\n" * 2
        assert site.postmap("-s") == b"a\t1\nchild\tv\nparent\tv\n"


class TestTrouble:
    def test_killed(self, site: Site, source: random.Random) -> None:
        """A writer that is killed in the middle leaves a file with every acknowledged update, for postmap and here."""
        site.make({b"a": b"1"})
        for prefix in ("x", "y", "z"):
            with running(writer(site, prefix, 10_000)) as child:
                assert child.stdout is not None
                acknowledged = [child.stdout.readline() for _ in range(source.randint(100, 2000))]
                child.kill()
                acknowledged += child.stdout.readlines()
            expected = {b"%s%d" % (prefix.encode(), int(line)) for line in acknowledged if line.endswith(b"\n")}
            assert len(expected) < 10_000
            entries = site.entries()
            assert expected <= {key for key, _ in entries}
            assert all(value.endswith(b"x" * 200) for key, value in entries if key != b"a")
            assert site.postmap("-s") == shown(entries)

    def test_full(self, site: Site) -> None:
        """A file that cannot grow gives an error; nothing acknowledged is lost, and look-ups go on."""
        site.make({b"a": b"1"})
        with running(writer(site, "k", 10_000, 300_000)) as child:
            *acknowledged, error, found = output(child)
        assert error.startswith(f"{site.path}: ")
        assert "File too large" in error or "Input/output error" in error  # the latter where a part was written
        assert found.startswith("b'value of 0, ")
        assert len(acknowledged) > 100
        keys = [key for key, _ in site.entries()]
        assert set(keys) >= {b"k%d" % int(number) for number in acknowledged}
        assert site.postmap("-q", "a") == b"1\n"
        store = LmdbStore("lmdb:x", site.path)
        assert store.execute([Operation(Kind.UPDATE, b"new", b"v")]) == [True]
        store.close()
