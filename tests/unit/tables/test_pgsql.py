from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import pytest
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from zope.interface.verify import verifyObject

from socketmap_memcache.errors import ConfigurationError, TemporaryError
from socketmap_memcache.tables.interface import ITable, ReadOnlyError
from socketmap_memcache.tables.pgsql import PgsqlTable
from socketmap_memcache.tables.store import Operation

pytest.importorskip("psycopg")

from socketmap_memcache.config.parameters import Parameters
from socketmap_memcache.config.syntax import parse
from socketmap_memcache.tables import pgsql_cf
from socketmap_memcache.tables.pgsql_cf import connect, read_hosts
from socketmap_memcache.tables.pgsql_connection import Answer, Connection, ConnectionFailure, StatementError
from socketmap_memcache.tables.pgsql_hosts import Host

from .store_reactor import StoreReactor

QUERY = "query = SELECT v FROM t WHERE k = '%s'\n"
PLACE = "dbname = mail\n"


class FakeConnection:
    """A connection where one key exists, and a table of this service is empty."""

    encoding = "UTF8"
    refuses = ""

    def __init__(self, conninfo: bytes) -> None:
        self.conninfo = conninfo
        self.asked: list[bytes] = []
        self.closed = False

    @property
    def server_encoding(self) -> str:
        return self.encoding

    def ask(self, sql: bytes, deadline: float, values: Sequence[bytes] | None = None) -> Answer:
        self.asked.append(sql)
        return StatementError("x", self.refuses) if self.refuses else []

    def run(self, commands: Sequence[Any], deadline: float) -> list[Answer]:
        found: list[Answer] = [[(b"of " + command.values[0],)] for command in commands[1:]]
        return [None, *found]

    def escape(self, value: bytes) -> bytes:
        return value

    def close(self) -> None:
        self.closed = True


class Site:
    """A folder with a ``.cf`` file, and servers that all answer, or none."""

    def __init__(self, folder: Path) -> None:
        self.cf = folder / "x.cf"
        self.reactor = StoreReactor()
        self.context = self.reactor.context()
        self.made: list[FakeConnection] = []
        self.down = False
        self.tables: list[ITable] = []

    def connect(self, conninfo: bytes, deadline: float, **_: Any) -> Connection:
        if self.down:
            raise ConnectionFailure("Connection refused")
        self.made.append(FakeConnection(conninfo))
        return cast("Connection", self.made[-1])

    def open(self, cf: str, create: bool = False) -> ITable:
        self.cf.write_text(cf)
        self.cf.chmod(0o640)
        table = self.context.open_table(f"pgsql:{self.cf}", create)
        verifyObject(ITable, table)
        self.tables.append(table)
        return table

    def errors(self, cf: str) -> list[str]:
        """Return what is wrong, with the numbers of the lines, of which the first is 1."""
        with pytest.raises(ConfigurationError) as caught:
            self.open(cf)
        return [str(problem).replace(str(self.cf), "x.cf") for problem in caught.value.problems]

    def close(self) -> None:
        for table in self.tables:
            table.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    with patch.object(pgsql_cf, "connect", made.connect):
        yield made
        made.close()


def hosts(cf: str, tmp_path: Path, owned: bool = False) -> list[Host]:
    """Read the hosts of a file that has no errors."""
    path = tmp_path / "hosts.cf"
    path.write_text(cf)
    path.chmod(0o640)
    parameters = Parameters(parse(cf.encode(), str(path)))
    found = read_hosts(parameters, str(path), owned)
    parameters.finish([])
    return found


class TestOpen:
    def test_query(self, site: Site) -> None:
        """A table with a query looks keys up, folded, and cannot be changed."""
        table = site.open(PLACE + QUERY)
        assert site.reactor.result(table.lookup(b"A")) == b"of a"
        with pytest.raises(ReadOnlyError):
            site.reactor.result(table.update(b"a", b"b"))

    def test_domain(self, site: Site) -> None:
        """With a domain list other keys are not asked for."""
        table = site.open(f"{PLACE}{QUERY}domain = b.c\n")
        assert site.reactor.result(table.lookup(b"a@b.c")) == b"of a@b.c"
        assert site.reactor.result(table.lookup(b"a@c")) is None

    def test_function(self, site: Site) -> None:
        """The legacy parameters are understood, and ``query`` goes before a function, and this before the others."""
        site.open(f"{PLACE}select_function = f\ntable = t\n")
        site.open(f"{PLACE}select_field = v\ntable = t\nwhere_field = k\nadditional_conditions = AND x\n")
        site.open(f"{PLACE}{QUERY}select_function = f\n")
        assert site.context.warnings == []

    def test_store(self, site: Site) -> None:
        """A table of this service can be changed; keys are folded."""
        table = site.open(f"{PLACE}store_table = grey\n", create=True)
        assert site.reactor.result(table.update(b"A", b"b"))
        assert site.reactor.result(table.lookup(b"a")) is None
        assert b'INSERT INTO "grey"' in site.made[0].asked[0]
        assert len(site.made) == 1

    def test_down(self, site: Site) -> None:
        """A server that is down is no reason not to open the table; what it is asked fails, and that is logged."""
        site.down = True
        table = site.open(PLACE + QUERY)
        with capturedLogs() as events, pytest.raises(TemporaryError, match="host localhost: Connection refused"):
            site.reactor.result(table.lookup(b"a"))
        assert [formatEvent(event) for event in events] == [f"pgsql:{site.cf}: host localhost: Connection refused"]

    def test_wrong(self, site: Site) -> None:
        """All that is wrong is said at once, with its place."""
        assert site.errors("") == [
            "x.cf: the parameter dbname is needed, and must not be empty",
            "x.cf: the parameter query is needed, and must not be empty",
        ]
        text = f"{PLACE}query = %x '%s'\nretry_interval = 0\nidle_interval = x\nexpansion_limit = -1\nencoding =\n"
        assert [error.partition(": ")[0] for error in site.errors(text)] == [f"x.cf:{line}" for line in range(2, 7)]
        assert site.errors(f"{PLACE}domain = static:yes\nselect_field = v\ntable = t\n") == [
            "x.cf: the parameter where_field is needed, and must not be empty"
        ]

    def test_wrong_store(self, site: Site) -> None:
        """What belongs to a query has no meaning for a table of this service, whose name must be plain."""
        assert site.errors(f"{PLACE}store_table = a b\nencoding = UTF8\n{QUERY}domain = x\n") == [
            "x.cf:2: write the name of a table, [schema.]table, of letters, digits and underscores",
            "x.cf:3: encoding has no meaning together with store_table: that is in UTF-8",
            "x.cf:4: query has no meaning together with store_table",
            "x.cf:5: domain has no meaning together with store_table",
        ]
        assert site.errors(f"{PLACE}store_table =\n")[0].startswith("x.cf:2: write the name of a table")

    def test_without_psycopg(self, site: Site) -> None:
        """Without psycopg the error says what to install."""
        name = "socketmap_memcache.tables.pgsql_cf"
        with patch.dict(sys.modules, {name: None}):
            assert "pip install 'socketmap-memcache[postgres]'" in site.errors(PLACE + QUERY)[0]

    def test_old_libpq(self, site: Site) -> None:
        """With a libpq that is too old the error says so."""
        with patch("psycopg.pq.version", lambda: 130004):
            assert site.errors(PLACE + QUERY)[0].endswith("(libpq 13 is too old, it has to be 14 at least)")

    def test_warnings(self, site: Site) -> None:
        """A specifier outside of quotes and a parameter that nobody knows are warnings."""
        site.open(f"{PLACE}query = SELECT %s\nhost = x\n")
        texts = [problem.text for problem in site.context.warnings]
        assert texts[0].startswith("%s is not in single quotes")
        assert texts[1] == "unknown parameter 'host'; did you mean 'hosts'?"

    def test_secret(self, site: Site) -> None:
        """A password in a file that everybody can read is a warning."""
        for secret in ("password = sesame\n", "hosts = postgres://u:sesame@h/mail\n", ""):
            site.open(PLACE + QUERY + secret)
            site.cf.chmod(0o644)
            site.context.open_table(f"pgsql:{site.cf}").close()
        texts = [f"{problem.line}: {problem.text}" for problem in site.context.warnings]
        assert texts == [f"3: every user can read the password in this file; run: chmod o= {site.cf}"] * 2


class TestDocumentation:
    def test_files(self, site: Site, tmp_path: Path) -> None:
        """The files that docs/pgsql.rst shows can be used as they are."""
        password = tmp_path / "password"
        password.write_text("sesame\n")
        password.chmod(0o600)
        text = (Path(__file__).parents[3] / "docs/pgsql.rst").read_text()
        shown = re.findall(r"^    # /etc/postfix/pgsql-\S+\n((?:    .+\n)+)", text, re.MULTILINE)
        for cf in shown:
            site.open(textwrap.dedent(cf).replace("/etc/postfix/greylist.password", str(password)))
        assert len(shown) == 2
        assert site.context.warnings == []


class TestHosts:
    def test_default(self, tmp_path: Path) -> None:
        """Without hosts it is the local one."""
        (host,) = hosts(PLACE, tmp_path)
        assert (host.name, host.rank) == ("localhost", 1)
        text = b"client_encoding='UTF8' dbname='mail' host='localhost' fallback_application_name='socketmap-memcache'"
        assert host.conninfo == text

    def test_forms(self, tmp_path: Path) -> None:
        """Hosts are written as Postfix reads them; one that is there twice is one."""
        cf = "hosts = inet:a:1, b unix:/var/run /tmp c:2, [::1]:3 inet:[::2] b\nuser = o'c\nencoding = LATIN1\n"
        found = hosts(cf + PLACE, tmp_path)
        assert [(host.name, host.rank) for host in found] == [
            *(("a:1", 1), ("b", 1), ("/var/run", 0), ("/tmp", 0), ("c:2", 1), ("[::1]:3", 1), ("[::2]", 1))
        ]
        assert b"host='::1' port='3'" in found[5].conninfo
        assert b"host='::2'" in found[6].conninfo
        assert b"client_encoding='LATIN1' dbname='mail' user='o\\'c'" in found[0].conninfo

    def test_uri(self, tmp_path: Path) -> None:
        """A URI has all that it needs, and does not show its password."""
        cf = "hosts = postgresql://u:sesame@h:7/db?sslmode=require postgres:///db\npassword = p\n"
        found = hosts(cf, tmp_path)
        assert [(host.name, host.rank) for host in found] == [("h:7", 2), ("localhost", 2)]
        parts = found[0].conninfo.split()
        assert {b"user='u'", b"password='sesame'", b"dbname='db'", b"host='h'", b"sslmode='require'"} < set(parts)
        assert b"password" not in found[1].conninfo

    def test_owned(self, tmp_path: Path) -> None:
        """Of a table of this service only a server that can be written to will do, and the order of the list counts."""
        found = hosts(f"hosts = a /b postgres://c/d?target_session_attrs=primary\n{PLACE}", tmp_path, owned=True)
        assert [host.rank for host in found] == [0] * 3
        assert [b"target_session_attrs='read-write'" in host.conninfo for host in found] == [True, True, False]

    @pytest.mark.parametrize(
        "word, error",
        [
            ("a:b", "host 1: a:b: write inet:host:port, unix:/directory, or a URI"),
            ("inet::5432", "host 1: inet::5432: write inet:host:port"),
            ("mysql://h/d", "host 1: a URI begins with postgresql://, not with mysql://"),
            ("postgres://u:sesame%zz@h/d", "host 1: this is not a URI that libpq understands"),
        ],
    )
    def test_wrong(self, tmp_path: Path, word: str, error: str) -> None:
        """A host that cannot be understood is an error that has no password."""
        with pytest.raises(ConfigurationError) as caught:
            hosts(f"hosts = {word}\n{PLACE}", tmp_path)
        (problem,) = caught.value.problems
        assert problem.text.startswith(error)

    def test_password_file(self, tmp_path: Path) -> None:
        """A password may be in a file of its own, which only some can read."""
        path = tmp_path / "password"
        path.write_text("sesame'\n")
        path.chmod(0o600)
        cf = f"{PLACE}password_file = {path}\n"
        assert b"password='sesame\\''" in hosts(cf, tmp_path)[0].conninfo
        path.chmod(0o644)
        with pytest.raises(ConfigurationError, match="every user may use this password; run: chmod o="):
            hosts(cf, tmp_path)
        path.unlink()
        with pytest.raises(ConfigurationError, match=r"\.cf:\d+: .*password: cannot be read: No such file"):
            hosts(cf, tmp_path)
        with pytest.raises(ConfigurationError, match="either password or password_file"):
            hosts(f"{cf}password = x\n", tmp_path)


class TestConnect:
    def connect(self, owned: bool, encoding: str = "UTF8", refuses: str = "") -> FakeConnection:
        fake = FakeConnection(b"")
        fake.encoding, fake.refuses = encoding, refuses
        with patch.object(Connection, "open", lambda *_: fake):
            try:
                connect(b"", 10, seconds=Clock().seconds, timeout=5, owned=owned)
            except ConnectionFailure:
                assert fake.closed
                raise
        return fake

    def test_time_limit(self) -> None:
        """The server gets a time limit a little below that of the operations."""
        assert self.connect(owned=False, encoding="LATIN1").asked == [b"SET statement_timeout = 4000"]

    def test_refused(self) -> None:
        """A server that does not take it cannot be used."""
        with pytest.raises(ConnectionFailure, match="no"):
            self.connect(owned=True, refuses="no")

    def test_encoding(self) -> None:
        """A table of this service has to be in a database that takes all keys."""
        with pytest.raises(ConnectionFailure, match="the encoding of the database is LATIN1, it has to be UTF8"):
            self.connect(owned=True, encoding="LATIN1")


class TestIdle:
    def test_rest(self) -> None:
        """A connection that is not used for a while is closed, and the table goes on with another."""
        reactor = StoreReactor()
        rests: list[str] = []

        class Store:
            def execute(self, operations: Sequence[Operation]) -> Sequence[object]:
                return [b"v" for _ in operations]

            def rest(self) -> None:
                rests.append("rest")
                reactor.callFromThread(lambda: None)

            def close(self) -> None:
                reactor.callFromThread(lambda: rests.append("close"))

        table = PgsqlTable("t", Store(), reactor.context(), True, 0.01)
        assert reactor.result(table.lookup(b"k")) == b"v"
        while not rests:
            reactor.run_call()
        assert reactor.result(table.lookup(b"k")) == b"v"
        table.close()
        while "close" not in rests:
            reactor.run_call()
