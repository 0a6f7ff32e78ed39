from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import attrs
import pytest

from socketmap_memcache.errors import LookupTimeout, PermanentError, TemporaryError
from socketmap_memcache.tables.query_format import parse_result
from socketmap_memcache.tables.store import Kind, Operation

pytest.importorskip("psycopg")

from socketmap_memcache.tables.pgsql_connection import Answer, Connection, Execute, Prepare, Query, StatementError
from socketmap_memcache.tables.pgsql_hosts import Hosts
from socketmap_memcache.tables.pgsql_query import QueryStore

BAD = StatementError("22P02", "bad key")
SYNTAX = StatementError("42601", "syntax error")


@attrs.define
class FakeHosts:
    """Hosts with one connection that finds some texts, and that fails for others.

    :ivar found: the rows for a text that is the value of a parameter, or is in a query.
    """

    found: dict[bytes, Answer] = attrs.Factory(dict)
    prepares: bool = True
    runs: list[list[Any]] = attrs.Factory(list)
    rests: int = 0

    def perform(self, work: Callable[[Connection, float], Any], deadline: float) -> Any:
        return work(cast("Connection", self), deadline)

    def run(self, commands: Sequence[Any], deadline: float) -> list[Answer]:
        assert deadline == 10
        self.runs.append(list(commands))
        answers: list[Answer] = []
        for command in commands:
            if isinstance(command, Prepare):
                answers.append(None if self.prepares else SYNTAX)
            else:
                answers.append(self._answer(command.values[0] if isinstance(command, Execute) else command.sql))
            if isinstance(answers[-1], StatementError):
                break
        return answers

    def ask(self, sql: bytes, deadline: float) -> Answer:
        return self.run([Query(sql)], deadline)[0]

    def escape(self, value: bytes) -> bytes:
        if value == b"odd":
            raise ValueError(value)
        return value.upper()

    def rest(self) -> None:
        self.rests += 1

    def _answer(self, text: bytes) -> Answer:
        for key, answer in self.found.items():
            if key in text:
                return answer
        return []


@pytest.fixture
def hosts() -> FakeHosts:
    return FakeHosts()


def make(
    hosts: FakeHosts, query: str = "SELECT v FROM t WHERE k = '%s'", result: str = "%s", limit: int = 0
) -> QueryStore:
    return QueryStore("t", cast("Hosts", hosts), query, parse_result(result), limit)


def look_up(store: QueryStore, *keys: bytes) -> list[Any]:
    return list(store.execute([Operation(Kind.LOOKUP, key, deadline=10.0) for key in keys]))


def test_one_run(hosts: FakeHosts) -> None:
    """All keys are asked for in one go, each once; one that is to be skipped is not."""
    hosts.found[b"a"] = [(b"1",)]
    assert look_up(make(hosts), b"a", b"b", b"", b"a") == [b"1", None, None, b"1"]
    assert hosts.runs == [[Prepare(b"SELECT v FROM t WHERE k = $1"), Execute([b"a"]), Execute([b"b"])]]


def test_nothing_to_ask(hosts: FakeHosts) -> None:
    """Where all keys are to be skipped nobody is asked."""
    assert look_up(make(hosts, "'%d'"), b"a") == [None]
    assert hosts.runs == []


def test_values(hosts: FakeHosts) -> None:
    """All columns of all rows count, without those that are NULL, empty, or lack a part; up to the limit."""
    hosts.found[b"k"] = [(b"a@b", None), (b"", b"user"), (b"c@d", b"@x")]
    assert look_up(make(hosts, result="<%d %S>"), b"k") == [b"<b k>,<d k>,<x k>"]
    assert look_up(make(hosts, limit=4), b"k") == [b"a@b,user,c@d,@x"]
    (error,) = look_up(make(hosts, limit=3), b"k")
    assert isinstance(error, TemporaryError)
    assert str(error) == "t: more values than expansion_limit for k"
    hosts.found[b"k"] = [(None,)]
    assert look_up(make(hosts), b"k") == [None]


def test_error(hosts: FakeHosts) -> None:
    """A key that fails does not make the others fail."""
    slow = StatementError("57014", "too slow")
    hosts.found |= {b"bad": BAD, b"slow": slow, b"good": [(b"1",)], b"update": None}
    results = look_up(make(hosts), b"good", b"bad", b"good2", b"slow", b"update")
    assert results[0] == results[2] == b"1"
    assert [str(error) for error in (results[1], results[3])] == ["t: bad key", "t: too slow"]
    assert isinstance(results[3], LookupTimeout)
    assert isinstance(results[4], PermanentError)
    assert len(hosts.runs) == 3


def test_texts(hosts: FakeHosts) -> None:
    """A query that does not work with parameters is sent as text, with quoted values, from then on."""
    hosts.prepares = False
    hosts.found[b"'A'"] = [(b"1",)]
    store = make(hosts, "SELECT int '%s'")
    assert look_up(store, b"a", b"b") == [b"1", None]
    assert look_up(store, b"a") == [b"1"]
    assert [len(run) for run in hosts.runs] == [3, 2, 1]
    assert hosts.runs[2] == [Query(b"SELECT int 'A'")]


def test_wrong_query(hosts: FakeHosts) -> None:
    """A query that works neither way is tried both ways again."""
    hosts.prepares = False
    hosts.found[b"SELECT"] = SYNTAX
    store = make(hosts)
    for _ in range(2):
        assert str(look_up(store, b"a")[0]) == "t: syntax error"
    assert len(hosts.runs) == 4


def test_several_statements(hosts: FakeHosts) -> None:
    """Several statements are sent for one key after the other."""
    hosts.found[b"'A'"] = [(b"1",)]
    assert look_up(make(hosts, "SELECT 1; SELECT \"v\", '%s';"), b"a", b"b") == [b"1", None]
    assert [len(run) for run in hosts.runs] == [1, 1]


def test_not_in_the_encoding(hosts: FakeHosts) -> None:
    """A key that the encoding of the connection does not have fails, those before and after it do not."""
    hosts.found[b"'A'"] = [(b"1",)]
    results = look_up(make(hosts, "SELECT \"v\" FROM t WHERE k = '%s'"), b"a", b"odd", b"a@")
    assert [results[0], results[2]] == [b"1", None]
    assert str(results[1]) == "t: odd is not text in the encoding of the connection"


def test_close(hosts: FakeHosts) -> None:
    """The connection is given back at rest and at the end."""
    store = make(hosts)
    store.rest()
    store.close()
    assert hosts.rests == 2
