"""``pgsql:`` tables with real servers, beside what Postfix does with the same files."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import attrs
import pytest
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from socketmap_memcache.errors import LookupTimeout, TemporaryError
from socketmap_memcache.memcache.pool import ClientPool
from socketmap_memcache.tables.interface import ITable
from socketmap_memcache.tables.registry import TableContext
from tests.unit.tables.thread_clock import ThreadClock

from .harness.memcached import Memcached
from .harness.policy import PolicyClient
from .harness.postfix import Postfix
from .harness.postgresql import Postgresql, make_cluster
from .harness.processes import PATIENCE, free_port, scratch_directory, wait_until, write_config
from .harness.service import Service
from .harness.socketmap import SocketmapClient

T = TypeVar("T")

ROWS = [
    *(("a@b.c", "one", None), ("a@b.c", "two", "x@y"), ("user", "U", ""), ("@b.c", "domain", None), ("b.c", "d", None)),
    *(("o'clock@b.c", "quote", None), ("back\\slash@b.c", "back", None), ("\u00fc@b.c", "\u00dc", None)),
    *(("%s@b.c", "percent", None), ("null@b.c", None, None), ("a b@b.c", "blank", None), ('"q"@b.c', "q", None)),
    *(("u@x.y.example.com", "labels", None), ("many@b.c", "1", "2"), ("many@b.c", "3", "4"), ("7", "seven", None)),
]
ODD_KEYS = [
    *("a@b.c", "A@B.C", "user", "@b.c", "b.c", "o'clock@b.c", "back\\slash@b.c", "\u00fc@b.c", "\u00dc@B.C", "%s@b.c"),
    *("null@b.c", "a b@b.c", '"q"@b.c', "u@x.y.example.com", "many@b.c", "7", "", "@", "a@", "@@", "a@@b.c", "'", "\\"),
    *(
        "' OR ''='",
        "\\'; SELECT 1; --",
        "$1",
        "--",
        "/*",
        "nobody@nowhere.example",
        "x" * 3000,
        "a@b.c@b.c",
        ".",
        "a@.",
    ),
]
QUERIES = [
    "query = SELECT v FROM t WHERE k = '%s'",
    "query = SELECT v, w FROM t WHERE k = '%s' ORDER BY v\nexpansion_limit = 3",
    "query = SELECT v FROM t WHERE k = '%u@%d' ORDER BY v\nresult_format = <%s> %U",
    "query = SELECT v FROM t WHERE k = concat('%u', '@', '%d') ORDER BY v",
    "query = SELECT v FROM t WHERE k LIKE '%%@%d' AND k = lower('%S') ORDER BY v\nresult_format = %u",
    "query = SELECT v FROM t WHERE k = '%u@x.y.%2.%1' ORDER BY v",
    "query = SELECT v FROM t WHERE length(k) = '%s'\nresult_format = smtp:[%s]",
    "query = SELECT w FROM t WHERE k = '%s'\nresult_format = %d",
    "query = SELECT v FROM t WHERE k = E'%s' ORDER BY v",
    "query = SELECT 'x'; SELECT v FROM t WHERE k = '%s' ORDER BY v;",
    "query = SELECT v FROM t WHERE k = '%s' ORDER BY v\ndomain = b.c, static:no, !b.c",
    "query = SELECT text '%s'",
    "query = SELECT '%s' || '!%%'",
    "select_function = f",
    "select_field = v\ntable = t\nwhere_field = k\nadditional_conditions = AND w IS NULL ORDER BY v",
    "query = SELECT nothing FROM nowhere WHERE k = '%s'",
]


class RealClock(ThreadClock):
    """What a table needs of a reactor, in real time."""

    def seconds(self) -> float:
        return time.monotonic()

    def wait(self, answer: Deferred[Any]) -> None:
        deadline = self.seconds() + PATIENCE
        while not answer.called:
            assert self.seconds() < deadline, "no answer"
            self.advance(0)
            try:
                self.thread_calls.get(timeout=0.01)()
            except Empty:
                continue


@attrs.define
class Site:
    """A folder for ``.cf`` files, the tables that they describe, and servers."""

    folder: Path
    clock: RealClock = attrs.Factory(RealClock)
    tables: list[ITable] = attrs.Factory(list)
    numbers: Iterator[int] = attrs.Factory(itertools.count)

    def open(self, cf: str, *, create: bool = False, timeout: float = 10.0) -> ITable:
        clients = cast("ClientPool", SimpleNamespace(reactor=self.clock))
        context = TableContext(clients, timeout=timeout)
        path = self.write(cf)
        table = context.open_table(f"pgsql:{path}", create)
        self.tables.append(table)
        return table

    def write(self, cf: str) -> Path:
        path = write_config(self.folder / f"{next(self.numbers)}.cf", cf)
        path.chmod(0o600)
        return path

    def result(self, answer: Deferred[T]) -> T:
        """Return the result, or raise the error."""
        self.clock.wait(answer)
        results: list[Any] = []
        answer.addBoth(results.append)
        if isinstance(results[0], Failure):
            results[0].raiseException()
        return cast("T", results[0])

    def results(self, answers: Sequence[Deferred[Any]]) -> list[Any]:
        return [self.result(answer) for answer in answers]

    def outcomes(self, answers: Sequence[Deferred[Any]]) -> list[Any]:
        """Return each result, or the error in its place."""
        return self.results([answer.addErrback(lambda failure: failure.value) for answer in answers])

    def walk(self, table: ITable) -> list[tuple[bytes, bytes]]:
        cursor = table.cursor()
        found = []
        while (entry := self.result(cursor.next())) is not None:
            found.append(entry)
        return found

    def close(self) -> None:
        for table in self.tables:
            table.close()


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with scratch_directory() as directory:
        yield directory


@pytest.fixture(scope="module")
def cluster(place: Path) -> Path:
    return make_cluster(place)


@pytest.fixture(scope="module")
def server(place: Path, cluster: Path) -> Iterator[Postgresql]:
    folder = place / "first"
    folder.mkdir()
    with Postgresql(folder, cluster, ["-c", "log_statement=all"]) as running:
        running.execute(
            "CREATE TABLE t (k text, v text, w text);"
            "CREATE FUNCTION f(text) RETURNS SETOF text AS 'SELECT v FROM t WHERE k = $1 ORDER BY v' LANGUAGE SQL"
        )
        with running.connect() as connection:
            connection.cursor().executemany("INSERT INTO t VALUES (%s, %s, %s)", ROWS)
        yield running


@pytest.fixture
def second(cluster: Path) -> Iterator[Postgresql]:
    with scratch_directory() as directory, Postgresql(directory, cluster) as running:
        yield running


@pytest.fixture
def site() -> Iterator[Site]:
    with scratch_directory() as directory:
        made = Site(directory)
        yield made
        made.close()


class TestAsPostfix:
    def test_postmap(self, place: Path, server: Postgresql, site: Site) -> None:
        """Each query gives what Postfix gives for the same file, for keys of all kinds."""
        postfix = Postfix(place)
        cf = f"{server.cf}encoding = LATIN1\n"  # before 3.8 Postfix knows no other
        keys = [key.encode() for key in ODD_KEYS if key] + [b"\xff@b.c"]

        def compare(query: str) -> tuple[dict[bytes, bytes], bool]:
            path = site.write(f"{cf}{query}\n")
            asked = postfix.postmap("-q", "-", f"pgsql:{path}", stdin=b"".join(key + b"\n" for key in keys))
            found = dict(line.split(b"\t", 1) for line in asked.stdout.splitlines())
            return found, b"fatal: " in asked.stderr

        with ThreadPoolExecutor(4) as pool:
            expected = list(pool.map(compare, QUERIES))
        for query, (found, failed) in zip(QUERIES, expected, strict=True):
            table = site.open(f"{cf}{query}\n")
            answers: dict[bytes, bytes] = {}
            errors = []
            for key, answer in [(key, table.lookup(key)) for key in keys]:
                try:
                    value = site.result(answer)
                except TemporaryError:
                    errors.append(key)
                else:
                    answers |= {} if value is None else {key: value}
            # postmap ends with the first failure.
            assert bool(errors) == failed, (query, errors)
            assert {key: answers.get(key) for key in found} == found, query
            if not failed:
                assert answers == found, query

    def test_one_bad_key(self, server: Postgresql, site: Site) -> None:
        """A key that the query cannot take fails; those that are asked for with it do not."""
        for query in (
            "query = SELECT v FROM t WHERE length(k) = '%s'",
            "query = SELECT v FROM t WHERE length(k) = int '%s'",
        ):
            table = site.open(f"{server.cf}{query}\n")
            answers = [table.lookup(key) for key in (b"1", b"x", b"100", b"y", b"1")]
            assert site.result(answers[0]) == b"seven"
            assert site.result(answers[2]) is None
            assert site.result(answers[4]) == b"seven"
            for failed in (answers[1], answers[3]):
                with pytest.raises(TemporaryError, match="invalid input syntax for type integer"):
                    site.result(failed)


class TestStore:
    def test_operations(self, server: Postgresql, site: Site) -> None:
        """Entries are stored, replaced, found, walked through in the order of keys, and deleted; and folded."""
        table = site.open(f"{server.cf}store_table = Operations\n", create=True)
        assert site.result(table.lookup(b"a")) is None
        keys = [
            b"a",
            b"it's",
            b"back\\slash",
            b'"q"',
            b"{a,b}",
            b"null",
            "\u00fc@b.c".encode(),
            b"a b",
            b"%s",
            b"$1",
            b"Z",
        ]
        assert site.results([table.update(key, b"1 of " + key) for key in keys]) == [True] * len(keys)
        assert site.results([table.update(key, b"of " + key) for key in keys]) == [True] * len(keys)
        assert site.results([table.lookup(key) for key in keys]) == [b"of " + key for key in keys]
        assert site.results([table.lookup(key) for key in (b"\xff", b"", b"no", b"a\0")]) == [None] * 4
        folded = sorted((key.lower(), b"of " + key) for key in keys)
        assert site.walk(table) == folded
        assert site.result(table.lookup("\u00dc@B.C".encode())) == "of \u00fc@b.c".encode()
        assert site.results([table.delete(key) for key in (b"A", b"a", b"no")]) == [True, False, False]
        assert site.walk(table) == folded[: folded.index((b"a", b"of a"))] + folded[folded.index((b"a", b"of a")) + 1 :]
        assert server.execute("SELECT value FROM operations WHERE key = 'null'") == [("of null",)]

    def test_order(self, server: Postgresql, site: Site) -> None:
        """Operations that wait together give what they give one after the other."""
        table = site.open(f"{server.cf}store_table = ordered\n", create=True)
        answers: list[Deferred[Any]] = [
            *(table.lookup(b"k"), table.update(b"k", b"1"), table.lookup(b"k"), table.update(b"k", b"2")),
            *(table.update(b"k", b"3"), table.lookup(b"k"), table.delete(b"k"), table.delete(b"k")),
            *(table.lookup(b"k"), table.update(b"k", b"4"), table.lookup(b"k")),
        ]
        assert site.results(answers) == [*(None, True, b"1", True, True, b"3", True, False, None, True, b"4")]

    def test_no_table(self, server: Postgresql, site: Site) -> None:
        """Where there is no table a look-up fails, until something is stored."""
        table = site.open(f"{server.cf}store_table = public.late\n")
        with pytest.raises(TemporaryError, match='relation "public.late" does not exist'):
            site.result(table.lookup(b"k"))
        assert site.result(table.update(b"k", b"v"))
        assert site.results([table.lookup(b"k"), table.lookup(b"l")]) == [b"v", None]

    def test_made_by_two(self, server: Postgresql, site: Site) -> None:
        """Services that start at the same time make the table once."""
        tables = [site.open(f"{server.cf}store_table = twins\n", create=True) for _ in range(4)]
        assert site.results([table.update(b"k", b"v") for table in tables]) == [True] * 4
        assert site.results([table.lookup(b"k") for table in tables]) == [b"v"] * 4

    def test_ttl(self, server: Postgresql, site: Site) -> None:
        """An entry whose time is over does not exist, and is deleted by and by."""
        table = site.open(f"{server.cf}store_table = timed\n", create=True)
        keys = [b"%d" % number for number in range(600)]
        site.results([table.update(key, b"v", 1000) for key in keys])
        site.results([table.update(b"for ever", b"v"), table.update(b"long", b"v", 10**12)])
        assert site.result(table.lookup(b"7")) == b"v"
        server.execute("UPDATE timed SET expires = now() - interval '1 s' WHERE expires < now() + interval '1 h'")
        assert site.results([table.lookup(b"7"), table.lookup(b"for ever")]) == [None, b"v"]
        assert site.walk(table) == [(b"for ever", b"v"), (b"long", b"v")]
        assert site.result(table.delete(b"7")) is False
        other = site.open(f"{server.cf}store_table = timed\n")  # it is that one's first update: it cleans up
        site.result(other.update(b"new", b"v"))
        wait_until(lambda: server.execute("SELECT count(*) FROM timed") == [(102,)], "some entries are deleted")
        site.result(other.update(b"new", b"v"))
        wait_until(lambda: server.execute("SELECT count(*) FROM timed") == [(3,)], "all that have ended are deleted")

    def test_batches(self, server: Postgresql, site: Site) -> None:
        """What waits is one query: of hundreds of look-ups and updates come a few."""
        table = site.open(f"{server.cf}store_table = batched\n", create=True)
        site.result(table.update(b"first", b"v"))
        before = len(server.log)
        keys = [b"%d" % number for number in range(500)]
        assert site.results([table.update(key, b"of " + key) for key in keys]) == [True] * 500
        assert site.results([table.lookup(key) for key in keys]) == [b"of " + key for key in keys]
        statements = server.log[before:].count("batched")
        assert 2 <= statements <= 20

    def test_walk_goes_on(self, server: Postgresql, site: Site) -> None:
        """A walk through many entries sees all of them, also while they are deleted."""
        table = site.open(f"{server.cf}store_table = walked\n", create=True)
        site.results([table.update(b"%04d" % number, b"v") for number in range(250)])
        cursor = table.cursor()
        seen = []
        while (entry := site.result(cursor.next())) is not None:
            seen.append(entry[0])
            if len(seen) % 50 == 0:
                site.result(table.delete(entry[0]))
        assert seen == [b"%04d" % number for number in range(250)]


class TestFailures:
    def test_session_ended(self, server: Postgresql, site: Site) -> None:
        """When its connection is ended a table goes on with another, as if nothing had happened."""
        table = site.open(f"{server.cf}store_table = ended\n", create=True)
        looked_up = site.open(f"{server.cf}{QUERIES[0]}\n")
        for number in range(3):
            server.end_sessions()
            value = b"%d" % number
            assert site.results([table.update(b"k", value), table.lookup(b"k")]) == [True, value]
            assert site.result(looked_up.lookup(b"user")) == b"U"

    def test_ended_in_the_middle(self, server: Postgresql, site: Site) -> None:
        """Connections that are ended while they are used change no answer, and lose nothing that was acknowledged.

        An operation that meets two of them may fail.
        """
        table = site.open(f"{server.cf}store_table = middle\n", create=True)
        keys = [b"%d" % number for number in range(100)]
        stored: dict[bytes, set[bytes]] = {key: set() for key in keys}  # what each may have
        with ThreadPoolExecutor(1) as pool:
            for value in (b"%d" % number for number in range(15)):
                ended = pool.submit(server.end_sessions)
                while not ended.done():
                    for key, done in zip(keys, site.outcomes([table.update(key, value) for key in keys]), strict=True):
                        stored[key] = {value} if done is True else stored[key] | {value}
                    for key, found in zip(keys, site.outcomes([table.lookup(key) for key in keys]), strict=True):
                        assert isinstance(found, TemporaryError) or found in stored[key]
                ended.result()
        site.outcomes([table.lookup(b"0")])  # on the connection that was ended last
        assert all(value in stored[key] for key, value in site.walk(table))

    def test_restart(self, second: Postgresql, site: Site) -> None:
        """While the server is dead all fails, with the reason; then what was acknowledged is there."""
        table = site.open(f"{second.cf}store_table = kept\n", create=True)
        assert site.results([table.update(b"%d" % number, b"v") for number in range(50)]) == [True] * 50
        second.stop()
        failing: list[Deferred[Any]] = [table.lookup(b"1"), table.update(b"x", b"v")]
        for answer in failing:
            with pytest.raises(TemporaryError, match=rf"host 127.0.0.1:{second.port}: Connection refused"):
                site.result(answer)
        second.start()
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                assert site.result(table.lookup(b"1")) == b"v"
                break
            except TemporaryError:
                assert time.monotonic() < deadline
        assert len(site.walk(table)) == 50

    def test_failover(self, server: Postgresql, second: Postgresql, site: Site) -> None:
        """With one of two servers dead look-ups and updates go to the other, and no answer is wrong."""
        second.execute("CREATE TABLE t (k text, v text); INSERT INTO t VALUES ('user', 'U')")
        hosts = f"hosts = {second.uri} {server.uri}\n"
        rows = site.open(f"{hosts}{QUERIES[0]}\n")
        store = site.open(f"{hosts}store_table = two\n", create=True)
        assert site.results([rows.lookup(b"user"), store.update(b"k", b"in the second")]) == [b"U", True]
        second.stop()
        assert site.results([rows.lookup(b"user"), rows.lookup(b"no")]) == [b"U", None]
        assert site.result(store.update(b"k", b"in the first"))
        assert site.result(store.lookup(b"k")) == b"in the first"

    def test_read_only(self, server: Postgresql, second: Postgresql, site: Site) -> None:
        """A table of this service is kept where it can be written, also when that becomes another server."""
        table = site.open(f"hosts = {second.uri} {server.uri}\nstore_table = moved\n", create=True)
        assert site.result(table.update(b"k", b"v"))
        second.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        second.execute("SELECT pg_reload_conf()")
        wait_until(lambda: second.execute("SHOW default_transaction_read_only") == [("on",)], "it is read-only")
        assert site.result(table.update(b"l", b"v"))
        assert server.execute("SELECT key FROM moved") == [("l",)]

    def test_hanging(self, server: Postgresql, second: Postgresql, site: Site) -> None:
        """A server that hangs takes no more time than it may, and then another one is asked."""
        alone = site.open(f"hosts = {second.uri}\nquery = SELECT '%s'\n", timeout=1)
        both = site.open(f"hosts = {second.uri} {server.uri}\nstore_table = hung\n", create=True, timeout=3)
        assert site.results([alone.lookup(b"k"), both.lookup(b"k")]) == [b"k", None]
        second.freeze()
        began = time.monotonic()
        with pytest.raises(LookupTimeout):
            site.result(alone.lookup(b"k"))
        assert site.result(both.update(b"k", b"v"))
        assert time.monotonic() - began < 5
        second.thaw()

    def test_slow_statement(self, server: Postgresql, site: Site) -> None:
        """A statement that nobody waits for any more is ended by the server, too."""
        table = site.open(f"{server.cf}query = SELECT pg_sleep(30)::text || '%s'\n", timeout=0.5)
        with pytest.raises(TemporaryError):
            site.result(table.lookup(b"k"))
        query = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(30)%' AND state = 'active'"
        wait_until(lambda: server.execute(f"{query} AND pid <> pg_backend_pid()") == [(0,)], "it has ended")

    def test_wrong_password(self, server: Postgresql, site: Site) -> None:
        """A wrong password is the reason of a failure, and is not in it."""
        cf = server.cf.replace("password = ", "password = sesame")
        with pytest.raises(TemporaryError, match="password authentication failed") as caught:
            site.result(site.open(f"{cf}{QUERIES[0]}\n").lookup(b"user"))
        assert "sesame" not in str(caught.value)

    def test_backup_of_memcached(self, place: Path, site: Site, server: Postgresql) -> None:
        """A database that is down or away does nothing to what memcached has; the rest fails and is never missing."""
        folder = place / "service"
        folder.mkdir()
        with Memcached(folder) as memcached:
            up = site.write(f"{server.cf}{QUERIES[0]}\n")
            down = site.write(server.cf.replace(str(server.port), str(free_port())) + f"{QUERIES[0]}\n")
            caches = [
                site.write(f"memcache = {memcached.address}\nkey_format = {name}-%s\nbackup = pgsql:{cf}\n")
                for name, cf in (("up", up), ("down", down))
            ]
            memcached.set(b"down-cached", b"hit")
            tables = " ".join(f"{name}=memcache:{cf}" for name, cf in zip(("up", "down"), caches, strict=True))
            with Service(folder, f"tables = {tables}\n") as service, SocketmapClient(service.addresses[0]) as client:
                assert client.ask("up", b"user") == b"OK U"
                assert memcached.get(b"up-user") == b"U"
                assert client.ask("up", b"nobody") == b"NOTFOUND "
                for _ in range(3):
                    assert client.ask("down", b"cached") == b"OK hit"
                    assert client.ask("down", b"user").startswith(b"TEMP ")
            assert "Connection refused" in service.log

    def test_greylist_of_two(self, place: Path, site: Site, server: Postgresql) -> None:
        """Two services with one table have one greylist, each with a cache of its own in front of it."""
        services = []
        for name in ("mx1", "mx2"):
            folder = place / name
            folder.mkdir()
            database = site.write(f"{server.cf}store_table = greylist\n")
            table = site.write(f"memcache = memory:\nttl = 0\nbackup = pgsql:{database}\n")
            config = f"policies = greylist\ngreylist_table = memcache:{table}\ngreylist_delay = 1s\n"
            services.append(Service(folder, config, policy_listen=[f"inet:127.0.0.1:{free_port()}"]))
        mail = {"protocol_state": "RCPT", "client_address": "192.0.2.7", "client_name": "mx.example.com"}
        mail |= {"sender": "a@example.com", "recipient": "b@example.org"}
        with services[0] as first, services[1] as second, PolicyClient(first.policy_addresses[0]) as one:
            assert one.ask(mail).startswith(b"DEFER_IF_PERMIT ")
            with PolicyClient(second.policy_addresses[0]) as two:
                wait_until(lambda: not two.ask(mail).startswith(b"DEFER"), "the delay is over there, too")
        assert server.execute("SELECT count(*) > 0, min(expires) > now() FROM greylist") == [(True, True)]
