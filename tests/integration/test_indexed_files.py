"""Files that postmap made are read here, files changed here are read by postmap, and ``sqlite:`` answers as Postfix."""

from __future__ import annotations

import itertools
import random
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from socketmap_memcache.errors import ConfigurationError, TableError
from socketmap_memcache.tables.interface import ITable
from tests.unit.tables.store_reactor import StoreReactor

from .harness.processes import wait_until
from .oracle import ODD_BYTES, Oracle, at_once

Entries = dict[bytes, bytes]

CHARACTERS = [*"abcxyz0189", *".-_+=@@", "\u00fc", "\u00df", "\u4e2d", "\U0001f600", "\u0434"]


@pytest.fixture(params=["hash", "btree", "cdb"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["hash", "btree"])
def writable(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def generate(source: random.Random, count: int) -> Entries:
    """Return entries with keys that are folded already; some keys and values are long.

    No key has 1,000 bytes: of a hash that was made with -n and has longer ones, Berkeley DB does not find all keys.
    """

    def text(blanks: str, longest: int) -> str:
        length = source.choice([1, 2, 5, 20, source.choice([100, longest])])
        drawn = "".join(source.choices([*CHARACTERS, *blanks], k=length)).strip(" ")
        return drawn or "x"

    return {text("", 250).casefold().encode(): text('  ,:"\\%', 3000).encode() for _ in range(count)}


def source_text(entries: Entries) -> bytes:
    return b"".join(b"%s\t%s\n" % entry for entry in entries.items())


class Table:
    """A table over a file that postmap makes."""

    def __init__(self, oracle: Oracle, kind: str, entries: Entries, *options: str) -> None:
        self.oracle = oracle
        self.kind = kind
        self.path = Path(oracle.write(source_text(entries)))
        self.spec = f"{kind}:{self.path}"
        self.reactor = StoreReactor()
        self.postmap(*options)
        self.table: ITable = self.reactor.context().open_table(self.spec)

    def postmap(self, *options: str) -> None:
        done = self.oracle.postfix.postmap(*options, self.spec)
        assert done.returncode == 0, done.stderr

    def lookup(self, key: bytes) -> bytes | None:
        return self.reactor.result(self.table.lookup(key))

    def found(self, keys: list[bytes]) -> Entries:
        """Return what is found here."""
        answers = [(key, self.table.lookup(key)) for key in keys]
        values = [(key, self.reactor.result(answer)) for key, answer in answers]
        return {key: value for key, value in values if value is not None}

    def walk(self) -> list[tuple[bytes, bytes]]:
        cursor = self.table.cursor()
        entries = []
        while (entry := self.reactor.result(cursor.next())) is not None:
            entries.append(entry)
        return entries

    def sequence(self) -> list[tuple[bytes, bytes]]:
        """Return what postmap -s prints."""
        done = self.oracle.postfix.postmap("-s", self.spec)
        assert done.returncode == 0, done.stderr
        lines = [line.split(b"\t", 1) for line in done.stdout.split(b"\n") if line]
        return [(key, value) for key, value in lines]

    def check(self, keys: list[bytes]) -> None:
        """Compare with postmap."""
        found, complaints = self.oracle.postmap(self.spec, keys)
        assert "fatal" not in complaints
        assert self.found(keys) == found
        if self.kind == "cdb":  # postmap -s cdb: is refused by some versions
            return
        walked, sequence = self.walk(), self.sequence()
        if self.kind == "hash":
            walked.sort()
            sequence.sort()
        assert walked == sequence


def others(entries: Entries) -> list[bytes]:
    """Return keys that are like those in a table, most of which are not in it."""
    some = list(entries)[:200]
    changed = [*(key + b"x" for key in some), *(key[:-1] for key in some if key.isascii()), b"\xff", b"", b"@"]
    return [key for key in dict.fromkeys(changed) if key not in entries]


class TestMadeByPostmap:
    @pytest.mark.parametrize("options", [(), ("-N",), ("-n",), ("-f",)], ids=lambda options: "".join(options) or "-")
    def test_read(self, oracle: Oracle, source: random.Random, kind: str, options: tuple[str, ...]) -> None:
        """Generated tables have the same entries here and there, in every form that postmap makes."""
        entries = generate(source, 1000)
        table = Table(oracle, kind, entries, *options)
        keys = list(entries) + others(entries)
        keys += [key for key in (key.decode().swapcase().encode() for key in list(entries)[:100]) if key not in keys]
        table.check(keys)
        assert len(table.found(keys)) >= len(entries)

    def test_empty(self, oracle: Oracle, kind: str) -> None:
        """A table of an empty source is empty."""
        table = Table(oracle, kind, {})
        assert table.lookup(b"a") is None
        assert table.walk() == []

    def test_made_again(self, oracle: Oracle, source: random.Random, kind: str) -> None:
        """A table that postmap makes again while it is open has the new entries."""
        table = Table(oracle, kind, {b"a": b"1"})
        assert table.lookup(b"a") == b"1"
        entries = generate(source, 1000) | {b"a": b"2"}
        table.path.write_bytes(source_text(entries))
        table.postmap()
        wait_until(lambda: table.lookup(b"a") == b"2", "the new table is read", 5)
        table.check([*entries, *others(entries)])

    def test_made_again_under_load(self, oracle: Oracle, source: random.Random, kind: str) -> None:
        """While postmap makes a table again and again, no look-up misses an entry that is in all of them, nor fails."""
        entries = generate(source, 3000)
        table = Table(oracle, kind, entries)
        keys = itertools.cycle(entries)

        def make_again() -> None:
            for _ in range(10):
                table.postmap()

        again = threading.Thread(target=make_again)
        again.start()
        count = 0
        while again.is_alive():
            asked = list(itertools.islice(keys, 20))
            assert table.found(asked) == {key: entries[key] for key in asked}
            count += 1
        again.join()
        assert count > 10


class TestChangedHere:
    def test_updates(self, oracle: Oracle, source: random.Random, writable: str) -> None:
        """After generated updates and deletions here, postmap finds and lists what this table has."""
        expected = generate(source, 300)
        table = Table(oracle, writable, expected)
        spare = generate(source, 600)
        asked = list(expected | spare)
        for key, value in spare.items():
            if source.random() < 0.4:
                victim = source.choice(asked)
                assert table.reactor.result(table.table.delete(victim)) == (victim in expected)
                expected.pop(victim, None)
            else:
                assert table.reactor.result(table.table.update(key, value))
                expected[key] = value
        assert table.found(asked) == expected
        assert dict(table.sequence()) == expected
        table.check(list(dict.fromkeys([*asked, *others(expected)])))

    def test_in_turns(self, oracle: Oracle, writable: str) -> None:
        """Updates and deletions here and by postmap follow each other without a loss."""
        table = Table(oracle, writable, {b"a": b"1"})
        for number in range(5):
            key, value = b"here %d" % number, b"\xc3\xbc %d" % number
            assert table.reactor.result(table.table.update(key, value))
            done = oracle.postfix.postmap("-i", table.spec, stdin=b"there%d x\n" % number)
            assert done.returncode == 0, done.stderr
            assert oracle.postmap(table.spec, [key])[0] == {key: value}
            assert oracle.postfix.postmap("-d", key, table.spec).returncode == 0
            assert table.lookup(key) is None
        assert sorted(table.walk()) == [(b"a", b"1"), *((b"there%d" % number, b"x") for number in range(5))]

    def test_empty_value(self, oracle: Oracle, writable: str) -> None:
        """An empty value that was stored here is found by postmap, which does not like it."""
        table = Table(oracle, writable, {})
        table.reactor.result(table.table.update(b"k", b""))
        found, complaints = oracle.postmap(table.spec, [b"k"])
        assert found == {b"k": b""}
        assert "empty string" in complaints

    def test_two_tables(self, oracle: Oracle, writable: str) -> None:
        """Two tables over the same file, each with its thread, lose none of their updates."""
        first = Table(oracle, writable, {})
        second = first.reactor.context().open_table(first.spec)
        answers = [
            table.update(b"%s %d" % (name, number), b"v")
            for number in range(200)
            for name, table in ((b"first", first.table), (b"second", second))
        ]
        assert all(first.reactor.result(answer) for answer in answers)
        assert len(first.sequence()) == 400


class TestErrors:
    def test_corrupt(self, oracle: Oracle) -> None:
        """A file that postmap cannot use cannot be opened here."""

        def compare(case: tuple[str, bytes]) -> None:
            kind, content = case
            path = oracle.write(b"x y\n")
            indexed = f"{path}.{'cdb' if kind == 'cdb' else 'db'}"
            Path(indexed).write_bytes(content)
            done = oracle.postfix.postmap("-q", "x", f"{kind}:{path}")
            assert done.returncode != 0
            assert not done.stdout
            with pytest.raises(ConfigurationError, match=f"{indexed}: "):
                StoreReactor().context().open_table(f"{kind}:{path}")

        at_once(compare, itertools.product(["hash", "btree", "cdb"], [b"", b"garbage\n" * 1000]))

    def test_other_type(self, oracle: Oracle) -> None:
        """A hash is not read as a btree, here or there."""
        table = Table(oracle, "hash", {b"a": b"1"})
        done = oracle.postfix.postmap("-q", "a", f"btree:{table.path}")
        assert b"fatal" in done.stderr
        with pytest.raises(ConfigurationError, match="not a usable btree"):
            table.reactor.context().open_table(f"btree:{table.path}")


class TestSqlite:
    QUERIES = (
        *("SELECT v FROM t WHERE k = '%s'", "SELECT v FROM t WHERE k = '%u'", "SELECT v FROM t WHERE k = '%d'"),
        *("SELECT '%s:%u', v FROM t", "SELECT '%D', k FROM t WHERE v > ''", "SELECT '%1.%2' FROM t LIMIT 2"),
        *("SELECT v FROM t WHERE k LIKE '%%%U%%' ORDER BY rowid", "SELECT k || '%S' FROM t WHERE v = 'user'"),
        *("SELECT v FROM t WHERE k='%u' ; SELECT 1", "SELECT v FROM t -- '%s'", "VALUES (3), (1.5), ('%%'), ('')"),
        *("SELECT NULL WHERE '%s' = 'a'", "SELECT x'4142', 1 WHERE '%u' <> ''", "SELECT 1e100 / 3, '%9'"),
    )
    VALUES = ("a@b", "user", "", None, "x@", "@y", "@", "a@b@c.d", 7, -1.25, "\u00dc@\u00fc", "a,b", "%s", "1e3", 2**60)

    def cf(self, source: random.Random, database: str) -> str:
        """Return a random configuration."""
        lines = [f"dbpath = {database}"]
        if source.random() < 0.85:
            lines.append(f"query = {source.choice(self.QUERIES)}")
        else:
            lines += ["table = t", "select_field = v", "where_field = k"]
            lines += source.choices(["", "additional_conditions = AND v <> '' ORDER BY v DESC"])
        if source.random() < 0.6:
            pieces = ["%s", "%u", "%d", "%S", "%U", "%D", "%1", "%2", "%%", "x", " ", "%s", "\u00fc"]
            lines.append(
                "result_format = " + ("".join(source.choices(pieces, k=source.randrange(1, 4))).strip() or "y")
            )
        if source.random() < 0.4:
            lines.append(f"expansion_limit = {source.randrange(4)}")
        if source.random() < 0.3:
            lines.append("domain = c.example, " + source.choice(["B.example", "!b.example static:all", "{}", "tr de"]))
        source.shuffle(lines)
        return "\n".join(lines) + "\n"

    def test_differential(self, oracle: Oracle, source: random.Random) -> None:
        """Generated databases, queries, formats, limits and domains give Postfix's answers, and fail where it fails."""
        database = str(oracle.folder / "database")
        keys = [*ODD_BYTES, b"' OR 1=1 --", b"it's", b"a;b@c.example"]
        with closing(sqlite3.connect(database)) as connection, connection:
            connection.execute("CREATE TABLE t (k, v)")
            names = ["u", "loc+ext", "b.example", "sub.example.com", *(key.decode(errors="ignore") for key in keys)]
            rows = [(name.casefold(), value) for name in names for value in source.sample(self.VALUES, k=2)]
            connection.executemany("INSERT INTO t VALUES (?, ?)", rows)

        def compare(cf: str) -> None:
            spec = f"sqlite:{oracle.write(cf)}"
            reactor = StoreReactor()
            table = reactor.context().open_table(spec)
            answered: dict[bytes, bytes | None] = {}
            for key in keys:
                try:
                    answered[key] = reactor.result(table.lookup(key))
                except TableError:
                    # postmap loses what it has not printed yet when it fails.
                    assert "fatal: " in oracle.postmap(spec, [key])[1], cf
                    break
            table.close()
            found, complaints = oracle.postmap(spec, list(answered))
            assert found == {key: value for key, value in answered.items() if value is not None}, cf
            assert "fatal: " not in complaints, cf

        at_once(compare, [self.cf(source, database) for _ in range(150)])

    def test_refused(self, oracle: Oracle) -> None:
        """A configuration that Postfix stops with, at its first look-up at the latest, cannot be opened here."""
        database = oracle.folder / "empty"
        with closing(sqlite3.connect(database)) as connection, connection:
            connection.execute("CREATE TABLE t (k, v)")

        def compare(cf: str) -> None:
            path = oracle.write(f"dbpath = {database}\n{cf}\n")
            assert "fatal: " in oracle.postmap(f"sqlite:{path}", [b"key"])[1], cf
            with pytest.raises(ConfigurationError):
                StoreReactor().context().open_table(f"sqlite:{path}")

        query = "query = SELECT '%s'"
        others = [f"result_format = %x\n{query}", f"result_format =\n{query}", f"expansion_limit = 1s\n{query}"]
        queries = ["query = SELECT v FROM nosuch WHERE k = '%s'", "query = SELEC '%s'", "query =", "query = %x"]
        at_once(compare, [*queries, *others, "table = t\nselect_field = v", "", f"dbpath =\n{query}"])
