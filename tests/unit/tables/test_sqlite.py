from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs, formatEvent
from zope.interface.verify import verifyObject

from socketmap_memcache.errors import ConfigurationError, LookupTimeout, PermanentError, TableError, TemporaryError
from socketmap_memcache.tables import registry
from socketmap_memcache.tables import sqlite as sqlite_tables
from socketmap_memcache.tables.interface import ITable, ReadOnlyError
from socketmap_memcache.tables.query_format import QueryFormat, parse_query, parse_result, unquoted
from socketmap_memcache.tables.query_table import QueryTable
from socketmap_memcache.tables.store_table import STORE_TIMEOUT, StoreTable

from .store_reactor import StoreReactor

QUERY = "query = SELECT v FROM t WHERE k = '%s'\n"


class Site:
    """A folder with a database of ``t(k, v)``, and the tables over it."""

    def __init__(self, folder: Path) -> None:
        self.database = folder / "data base?.db"
        self.cf = folder / "x.cf"
        self.reactor = StoreReactor()
        self.context = self.reactor.context()
        self._tables: list[ITable] = []
        self.fill(self.database, [])

    def fill(self, path: Path, rows: list[tuple[Any, Any]]) -> None:
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("CREATE TABLE IF NOT EXISTS t (k, v)")
            connection.executemany("INSERT INTO t VALUES (?, ?)", rows)

    def open(self, cf: str = QUERY, rows: list[tuple[Any, Any]] | None = None) -> ITable:
        self.fill(self.database, rows or [])
        return self.open_as_it_is(cf)

    def open_as_it_is(self, cf: str = QUERY) -> ITable:
        self.cf.write_text(f"dbpath = {self.database}\n{cf}", errors="surrogateescape")
        table = self.context.open_table(f"sqlite:{self.cf}")
        verifyObject(ITable, table)
        self._tables.append(table)
        return table

    def errors(self, cf: str) -> list[str]:
        """Return what is wrong, with the numbers of the lines, of which the first is 1."""
        self.cf.write_text(cf, errors="surrogateescape")
        with pytest.raises(ConfigurationError) as caught:
            self.context.open_table(f"sqlite:{self.cf}")
        return self.texts(caught.value.problems)

    def texts(self, problems: Any) -> list[str]:
        return [str(problem).replace(str(self.cf), "x.cf") for problem in problems]

    def lookup(self, table: ITable, key: bytes) -> bytes | None:
        return self.reactor.result(table.lookup(key))

    def close(self) -> None:
        for table in self._tables:
            table.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.close()


def formats(query: str, result: str = "%s") -> QueryFormat:
    return QueryFormat(parse_query(query), parse_result(result), lambda value: b"<" + value + b">")


class TestFormats:
    def test_query(self) -> None:
        """The specifiers of a query stand for quoted parts of the key, in either case."""
        query = formats("%s %S %u %U %d %D %1 %3 %%").query(b"u@a.b.c")
        assert query == b"<u@a.b.c> <u@a.b.c> <u> <u> <a.b.c> <a.b.c> <c> <a> %"

    @pytest.mark.parametrize(
        "query, result, key",
        [("%d", "%s", b"u"), ("%u", "%s", b"@d"), ("%2", "%s", b"u@d"), ("%s", "%D", b"u"), ("%s", "%U", b"@d")],
    )
    def test_skipped(self, query: str, result: str, key: bytes) -> None:
        """A key that lacks what the query or the result needs of it is skipped."""
        assert formats(query, result).query(key) is None
        assert formats(query, result).result(b"x@y", key) is None

    def test_result(self) -> None:
        """In a result, lower-case letters stand for parts of the value, upper case and digits for parts of the key."""
        both = formats("%s", "%s %u %d %S %U %D %2 %1 %%").result(b"a@b@c.d", b"u@e.f")
        assert both == b"a@b@c.d a@b c.d u@e.f u e.f e f %"

    @pytest.mark.parametrize("result, value", [("%s", b""), ("x", b""), ("%d", b"u"), ("%d", b"u@"), ("%u", b"@d")])
    def test_no_result(self, result: str, value: bytes) -> None:
        """A value that is empty or lacks what the result needs of it gives no result."""
        assert formats("%s", result).result(value, b"k") is None

    def test_user_without_domain(self) -> None:
        """The user part of a value without domain is the whole value."""
        assert formats("%s", "%u").result(b"user", b"k") == b"user"

    def test_wrong(self) -> None:
        """A wrong specifier is an error that says in which of the two it is."""
        with pytest.raises(ValueError, match="invalid query template: %x"):
            parse_query("%x")
        with pytest.raises(ValueError, match="invalid result template: %"):
            parse_result("%")

    def test_unquoted(self) -> None:
        """Specifiers that are not in single quotes are found; double quotes do not protect, %% is no specifier."""
        assert unquoted("""'%s' "%u" '"%d' %1 %% '%%' "'%U'" %""") == ["%u", "%1", "%U", "%"]


class TestLookup:
    def test_lookup(self, site: Site) -> None:
        """A key is folded and looked up; one that is missing, empty, not UTF-8, or has a NUL is missing."""
        table = site.open(rows=[("a", "1"), ("\u00fc", "\u00dc"), ("", "x")])
        assert site.lookup(table, b"A") == b"1"
        assert site.lookup(table, b"\xc3\x9c") == b"\xc3\x9c"
        assert [site.lookup(table, key) for key in (b"b", b"", b"\xff", b"a\0")] == [None] * 4
        assert table.name == f"sqlite:{site.cf}"

    def test_case(self, site: Site) -> None:
        """A key is asked for as it is where it is not to be folded; the case of its domain still does not matter."""
        site.context.fold_keys = False
        table = site.open(QUERY + "domain = example.com\n", [("Cap@Example.COM", "1")])
        assert site.lookup(table, b"Cap@Example.COM") == b"1"
        assert site.lookup(table, b"cap@example.com") is None

    def test_quoting(self, site: Site) -> None:
        """Quotes and all else in a key are text, not SQL; the second of two statements is never done."""
        keys = ["' OR 1=1 --", "a'b", "a\\'b", "';DELETE FROM t;--", 'x"y', "a;b", "%s", "\u2019"]
        site.fill(site.database, [(key.casefold(), key) for key in keys])
        for query in (QUERY, "query = SELECT v FROM t WHERE k = '%s';DELETE FROM t;\n"):
            table = site.open(query)
            assert [site.lookup(table, key.encode()) for key in keys] == [key.encode() for key in keys]

    def test_rows(self, site: Site) -> None:
        """The values of the first column are joined by commas, without those that are NULL, empty, or lack a part."""
        rows = [("k", value) for value in ("a@b", None, "", "user", 7, 1.5, 1e100, b"b@\0lob", b"c@d\0e")]
        table = site.open("query = SELECT v, 'x' FROM t WHERE k = '%s'\n", rows)
        assert site.lookup(table, b"k") == b"a@b,user,7,1.5,1.0e+100,b@,c@d"
        parts = site.open(QUERY + "result_format = %d:%S\n", [])
        assert site.lookup(parts, b"k") == b"b:k,d:k"

    def test_empty_results(self, site: Site) -> None:
        """If all values are NULL or empty, the key is missing, and an empty one is logged once."""
        table = site.open(rows=[("a", None), ("b", "")])
        with capturedLogs() as log:
            assert [site.lookup(table, key) for key in (b"a", b"b", b"b")] == [None] * 3
        assert list(map(formatEvent, log)) == [f"sqlite:{site.cf}: an empty result is ignored (logged once)"]

    def test_expansion_limit(self, site: Site) -> None:
        """More values than the limit are a failure; those that are passed over do not count."""
        table = site.open(f"{QUERY}expansion_limit = 2\n", [("k", "1"), ("k", ""), ("k", "2"), ("l", "1")])
        assert site.lookup(table, b"k") == b"1,2"
        site.fill(site.database, [("k", "3")])
        with pytest.raises(TemporaryError, match="more rows than expansion_limit for k"):
            site.lookup(table, b"k")
        assert site.lookup(table, b"l") == b"1"
        unlimited = site.open(f"{QUERY}expansion_limit = -1\n")
        assert site.lookup(unlimited, b"k") == b"1,2,3"

    def test_parts_of_the_key(self, site: Site) -> None:
        """A query may use parts of the key; a key that lacks them is missing."""
        table = site.open("query = SELECT v FROM t WHERE k = '%u' AND v = '%1'\n", [("user", "tld")])
        assert site.lookup(table, b"User@Sub.TLD") == b"tld"
        assert [site.lookup(table, key) for key in (b"user", b"@sub.tld", b"user@")] == [None] * 3

    def test_legacy(self, site: Site) -> None:
        """Without a query one is made of the table, the fields and the conditions."""
        rows = [("a", "1"), ("b", "2")]
        legacy = "table = t\nselect_field = v\nwhere_field = k\nadditional_conditions = AND v > '1'\n"
        table = site.open(legacy, rows)
        assert [site.lookup(table, key) for key in (b"a", b"b")] == [None, b"2"]
        assert site.lookup(site.open(legacy + QUERY), b"a") == b"1"

    def test_read_only(self, site: Site) -> None:
        """Updates, deletions and walks are refused."""
        table = site.open()
        answers: list[Deferred[Any]] = [table.update(b"a", b"b"), table.delete(b"a"), table.cursor().next()]
        for answer in answers:
            with pytest.raises(ReadOnlyError):
                site.reactor.result(answer)

    def test_writing_query(self, site: Site) -> None:
        """A query that would write fails, and so does one that gives no rows."""
        table = site.open("query = DELETE FROM t WHERE k = '%s'\n", [("a", "1")])
        with pytest.raises(TemporaryError, match="readonly"):
            site.lookup(table, b"a")
        table = site.open("query = SAVEPOINT '%s'\n")
        with pytest.raises(PermanentError, match="not one that gives rows"):
            site.lookup(table, b"a")


class TestDomain:
    def test_names(self, site: Site) -> None:
        """Only keys with a user and a domain in the list are looked up."""
        table = site.open(f"{QUERY}domain = a.example, B.example\n", [(k, "1") for k in ("u@a.example", "u@c", "u")])
        assert site.lookup(table, b"u@A.example") == b"1"
        assert [site.lookup(table, key) for key in (b"u@c", b"u", b"@a.example", b"u@b.example")] == [None] * 4

    def test_table(self, site: Site) -> None:
        """A table in the list is asked; its failure is the look-up's."""
        table = site.open(f"{QUERY}domain = inline:{{a.example=x}} fail:broken\n", [("u@a.example", "1")])
        assert site.lookup(table, b"u@a.example") == b"1"
        with pytest.raises(TemporaryError, match="broken"):
            site.lookup(table, b"u@c")
        table = site.open(f"{QUERY}domain = inline:{{a.example=x}}\n", [("u@c", "1")])
        assert site.lookup(table, b"u@c") is None

    def test_closed_meanwhile(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        """A look-up that waits for a table in the list when the table is closed still gets its answer."""
        waiting: list[Deferred[bytes | None]] = []
        closed = []

        class Slow:
            def lookup(self, key: bytes) -> Deferred[bytes | None]:
                waiting.append(Deferred())
                return waiting[-1]

            def close(self) -> None:
                closed.append(True)

        monkeypatch.setattr(registry.TableContext, "open_table", lambda *_: Slow())
        site.fill(site.database, [("u@d", "1")])
        site.cf.write_text(f"dbpath = {site.database}\n{QUERY}domain = slow:x\n")
        table = sqlite_tables.open_sqlite(str(site.cf), site.context)
        answers = [table.lookup(b"u@d"), table.lookup(b"v@d")]
        table.close()
        assert not closed
        for wait in waiting:
            wait.callback(b"")
        assert [site.reactor.result(answer) for answer in answers] == [b"1", None]
        assert closed == [True]
        assert isinstance(table, QueryTable)
        assert isinstance(table._rows, StoreTable)
        assert table._rows._closed


class TestOpen:
    def test_name(self, site: Site) -> None:
        """The name of the file begins with / or a dot."""
        with pytest.raises(ConfigurationError, match="begins with / or ./"):
            site.context.open_table("sqlite:x.cf")

    def test_nothing_set(self, site: Site) -> None:
        """The database and a query are needed."""
        assert site.errors("") == [
            "x.cf: the parameter dbpath is needed, and must not be empty",
            "x.cf: the parameter query is needed, and must not be empty",
        ]

    def test_empty(self, site: Site) -> None:
        """What is set must not be empty, and a number must be one."""
        assert site.errors("dbpath=\nquery=\nresult_format =\nexpansion_limit = 1s\n") == [
            "x.cf:1: the parameter dbpath is needed, and must not be empty",
            "x.cf:2: the parameter query is needed, and must not be empty",
            "x.cf:3: the parameter result_format is needed, and must not be empty",
            "x.cf:4: bad numerical configuration: expansion_limit = 1s (a decimal number is needed)",
        ]

    def test_legacy_incomplete(self, site: Site) -> None:
        """Each part of a legacy query that is missing is named."""
        assert site.errors(f"dbpath = {site.database}\nselect_field = v\n") == [
            "x.cf: the parameter table is needed, and must not be empty",
            "x.cf: the parameter where_field is needed, and must not be empty",
        ]

    def test_templates(self, site: Site) -> None:
        """Wrong specifiers, text that is not UTF-8 and a wrong list are errors with their lines."""
        cf = f"dbpath = {site.database}\nquery = '%x'\nresult_format = %y\ndomain = nosuch:type\n"
        query, result, domain = site.errors(cf)
        assert query.startswith("x.cf:2: invalid query template: '%x'")
        assert result.startswith("x.cf:3: invalid result template: %y")
        assert "unknown table type" in domain
        (query,) = site.errors(f"dbpath = {site.database}\nquery = '\udcff'\n")
        assert query == r"x.cf:2: is not UTF-8: '\xff'"

    @pytest.mark.parametrize("query", ["SELECT v FROM nosuch WHERE k='%s'", "SELEC '%s'", "SELECT nosuch FROM t", ";"])
    def test_bad_query(self, site: Site, query: str) -> None:
        """A query that the database refuses is an error with its line; the list of domains is closed."""
        (error,) = site.errors(f"dbpath = {site.database}\ndomain = a\nquery = {query}\n")
        assert error.startswith("x.cf:3: the database refuses the query: ")

    def test_bad_legacy_query(self, site: Site) -> None:
        """A legacy query that the database refuses is an error with the line of its last part."""
        (error,) = site.errors(f"dbpath = {site.database}\ntable = no\nselect_field = v\nwhere_field = k\n")
        assert error == "x.cf:4: the database refuses the query: no such table: no"

    def test_unquoted(self, site: Site) -> None:
        """What is not in single quotes gets a warning, and an error only for the keys for which it makes none."""
        table = site.open("query = SELECT v FROM t WHERE k = %u\n", [(1, "one")])
        warnings = site.texts(site.context.warnings)
        assert warnings[0].startswith("x.cf:2: %u is not in single quotes: ")
        assert warnings[1].startswith("x.cf:2: the database refuses the query: ")
        assert site.lookup(table, b"1") == b"one"
        with pytest.raises(TableError, match="no such column"):
            site.lookup(table, b"nosuch")

    def test_database(self, site: Site) -> None:
        """A database that is missing, or is none, is an error, and none is made."""
        missing = site.database.with_name("missing")
        (error,) = site.errors(f"dbpath = {missing}\n{QUERY}")
        assert error == "x.cf:1: the database cannot be read: unable to open database file"
        assert not missing.exists()
        missing.write_bytes(b"text " * 1000)
        (error,) = site.errors(f"dbpath = {missing}\n{QUERY}")
        assert error == "x.cf:1: the database cannot be read: file is not a database"

    def test_warnings(self, site: Site) -> None:
        """Unknown parameters are warnings with the nearest name; those of a legacy query are known."""
        site.open(f"{QUERY}expansion_limi = 3\ntable = t\n")
        assert site.texts(site.context.warnings) == [
            "x.cf:3: unknown parameter 'expansion_limi'; did you mean 'expansion_limit'?"
        ]

    def test_locked(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        """A database that somebody is writing is opened unseen, fails all look-ups meanwhile, and works afterwards."""
        monkeypatch.setattr(sqlite_tables, "LOCK_TIMEOUT", 0.01)
        site.fill(site.database, [("a", "1")])
        with closing(sqlite3.connect(site.database, isolation_level=None)) as writer:
            writer.execute("BEGIN EXCLUSIVE")
            table = site.open_as_it_is()
            assert "the query was not checked" in site.texts(site.context.warnings)[0]
            with pytest.raises(TemporaryError, match="locked"):
                site.lookup(table, b"a")
        assert site.lookup(table, b"a") == b"1"


class TestWithoutEnd:
    def test_stopped(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        """A query without end, with many rows or one, is stopped when its time is over; then others are done."""
        begun = Event()
        statement = sqlite_tables.SqliteStore.statement

        def noting(store: sqlite_tables.SqliteStore, key: bytes) -> str:
            begun.set()
            return statement(store, key)

        numbers = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE '%s' <> 'short')"
        for end in ("WHERE x = 1", ""):
            table = site.open(f"query = {numbers} SELECT x FROM c {end}\n")  # noqa: S608
            monkeypatch.setattr(sqlite_tables.SqliteStore, "statement", noting)
            begun.clear()
            endless = table.lookup(b"endless")
            assert begun.wait(20)
            site.reactor.advance(STORE_TIMEOUT)
            with pytest.raises(LookupTimeout):
                site.reactor.result(endless)
            assert site.lookup(table, b"short") == b"1"

    def test_answered(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        """A query that has been answered stops none of those after it."""
        monkeypatch.setattr(sqlite_tables, "STEPS", 1)
        table = site.open(rows=[("k", "v")])
        assert [site.lookup(table, b"k") for _ in range(100)] == [b"v"] * 100


class TestFile:
    def test_replaced(self, site: Site) -> None:
        """A database that takes the place of the old one is used from then on."""
        table = site.open(rows=[("a", "1")])
        assert site.lookup(table, b"a") == b"1"
        new = site.database.with_name("new")
        site.fill(new, [("a", "2")])
        new.rename(site.database)
        assert site.lookup(table, b"a") == b"2"

    def test_copied_over(self, site: Site) -> None:
        """Nor of one that is copied over the old one, though SQLite itself cannot tell it from that."""
        table = site.open(QUERY, [("k", "old")])
        assert [site.lookup(table, b"k"), site.lookup(table, b"new")] == [b"old", None]
        new = site.database.with_name("new")
        site.fill(new, [("new", "v")])
        site.fill(new, [])
        counter = slice(24, 28)  # of the changes: equal, in files that were made by as many steps
        assert new.read_bytes()[counter] == site.database.read_bytes()[counter]
        site.database.write_bytes(new.read_bytes())
        assert [site.lookup(table, b"k"), site.lookup(table, b"new")] == [None, b"v"]

    def test_missing_later(self, site: Site) -> None:
        """A database that has gone is a failure until there is one again."""
        table = site.open(rows=[("a", "1")])
        site.database.unlink()
        with pytest.raises(TemporaryError, match="cannot be opened: No such file"):
            site.lookup(table, b"a")
        site.database.touch()
        with pytest.raises(TemporaryError, match="no such table"):
            site.lookup(table, b"a")
        site.fill(site.database, [("a", "2")])
        assert site.lookup(table, b"a") == b"2"

    def test_corrupt(self, site: Site) -> None:
        """A database that becomes garbage is a failure."""
        table = site.open(rows=[("a", "1")])
        site.database.write_bytes(b"x" * 10_000)
        with pytest.raises(TemporaryError):
            site.lookup(table, b"a")
