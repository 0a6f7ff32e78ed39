from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import attrs
import pytest
from twisted.internet.task import Clock

from socketmap_memcache.errors import LookupTimeout, TemporaryError
from socketmap_memcache.tables.interface import RefusedError
from socketmap_memcache.tables.store import Kind, Operation

pytest.importorskip("psycopg")

from socketmap_memcache.tables.pgsql_connection import Answer, Connection, ConnectionFailure, StatementError
from socketmap_memcache.tables.pgsql_hosts import Hosts
from socketmap_memcache.tables.pgsql_store import (
    KEY_LIMIT,
    PURGE_LIMIT,
    PURGE_PAUSE,
    KeyValueStore,
    array,
    quoted_table,
    steps,
)

NO_TABLE = StatementError("42P01", "no table")


def op(kind: str, key: bytes, value: bytes = b"", ttl: int | None = None) -> Operation:
    return Operation(Kind(kind), key, value, ttl, 10.0)


@attrs.define
class FakeHosts:
    """Hosts with one connection that gives prepared answers, by the first word of the statement.

    :ivar asked: the first words, and the values.
    """

    answers: dict[str, list[Answer]] = attrs.Factory(dict)
    asked: list[tuple[str, Any]] = attrs.Factory(list)
    rests: int = 0

    def perform(self, work: Callable[[Connection, float], Any], deadline: float) -> Any:
        return work(cast("Connection", self), deadline)

    def ask(self, sql: bytes, deadline: float, values: Sequence[bytes] | None = None) -> Answer:
        assert deadline == 10
        assert b'"x"' in sql
        word = "PURGE" if b"SKIP LOCKED" in sql else sql.decode().split()[0]
        self.asked.append((word, values))
        answers = self.answers.get(word)
        return answers.pop(0) if answers else []

    def rest(self) -> None:
        self.rests += 1


@attrs.define
class Site:
    hosts: FakeHosts = attrs.Factory(FakeHosts)
    clock: Clock = attrs.Factory(Clock)

    def store(self, create: bool = False) -> KeyValueStore:
        return KeyValueStore("t", cast("Hosts", self.hosts), ('"x"', '"x_expires"'), create, self.clock.seconds)

    @property
    def words(self) -> list[str]:
        return [word for word, _ in self.hosts.asked]


@pytest.fixture
def site() -> Site:
    return Site()


class TestTexts:
    def test_table(self) -> None:
        """The name of a table may have a schema, and has no upper case and nothing that could be SQL."""
        assert quoted_table("Grey") == ('"grey"', '"grey_expires"')
        assert quoted_table("mail.user") == ('"mail"."user"', '"user_expires"')
        for wrong in ("", "a b", 'a"', "a.b.c", "1a", "\u00fc", "x" * 60):
            with pytest.raises(ValueError, match="write the name of a table"):
                quoted_table(wrong)

    def test_array(self) -> None:
        """An array has its items in quotes, in which quotes and backslashes are escaped."""
        assert array([b"a", None, b'b"\\', b"{,}"]) == b'{"a",NULL,"b\\"\\\\","{,}"}'
        assert array([]) == b"{}"


class TestSteps:
    def test_different_keys(self) -> None:
        """Operations on different keys are one step."""
        all_of_it = [op("delete", b"a"), op("update", b"b"), op("lookup", b"c")]
        assert steps(all_of_it) == [all_of_it]

    def test_same_key(self) -> None:
        """An operation that must not be done before an earlier one is in a later step."""
        kinds = ["lookup", "update", "update", "delete", "delete", "lookup", "update", "lookup"]
        made = steps(op(kind, b"k") for kind in kinds)
        assert [[each.kind.value for each in step] for step in made] == [kinds[:4], kinds[4:5], kinds[5:7], kinds[7:]]


class TestOperations:
    def test_lookups(self, site: Site) -> None:
        """Look-ups are one statement."""
        site.hosts.answers["SELECT"] = [[(b"a", b"1")]]
        assert site.store().execute([op("lookup", key) for key in (b"a", b"b", b"a")]) == [b"1", None, b"1"]
        assert site.words == ["SELECT"]

    def test_updates(self, site: Site) -> None:
        """Updates are one statement, in the order of the keys, and the last of a key counts."""
        updates = [op("update", b"b", b"1"), op("update", b"a", b"2", 7), op("update", b"b", b"3", 10**20)]
        long = op("update", b"x" * (KEY_LIMIT + 1))
        results = site.store().execute([*updates, long])
        assert results[:3] == [True] * 3
        assert isinstance(results[3], RefusedError)
        assert site.hosts.asked[0] == ("INSERT", [b'{"a","b"}', b'{"2","3"}', b'{"7","31536000000"}'])

    def test_only_refused(self, site: Site) -> None:
        """Without an entry that can be stored nothing is asked."""
        assert isinstance(site.store().execute([op("update", b"x" * (KEY_LIMIT + 1))])[0], RefusedError)
        assert site.words == ["PURGE"]

    def test_deletes(self, site: Site) -> None:
        """A delete says whether the entry was there and had not ended."""
        site.hosts.answers["DELETE"] = [[(b"a", b"t"), (b"b", b"f")]]
        assert site.store().execute([op("delete", key) for key in (b"a", b"b", b"c")]) == [True, False, False]

    def test_walk(self, site: Site) -> None:
        """A walk reads after all changes that came with it."""
        site.hosts.answers["SELECT"] = [[(b"b", b"1")]]
        store = site.store()
        assert store.execute([op("after", b"a"), op("update", b"b", b"1")]) == [[(b"b", b"1")], True]
        assert site.hosts.asked[:2] == [("INSERT", [b'{"b"}', b'{"1"}', b"{NULL}"]), ("SELECT", [b"a", b"100"])]

    def test_given_up(self, site: Site) -> None:
        """What nobody waits for any more is not done."""
        left = op("update", b"a")
        left.given_up = True
        assert site.store().execute([left, op("lookup", b"b")]) == [None, None]
        assert site.words == ["SELECT", "PURGE"]

    def test_close(self, site: Site) -> None:
        """The connection is given back at rest and at the end."""
        store = site.store()
        store.rest()
        store.close()
        assert site.hosts.rests == 2


class TestErrors:
    def test_some_fail(self, site: Site) -> None:
        """An update that fails does not make a look-up fail."""
        site.hosts.answers["INSERT"] = [StatementError("53100", "disk full")]
        site.hosts.answers["SELECT"] = [[(b"a", b"1")]]
        found, failed = site.store().execute([op("lookup", b"a"), op("update", b"b")])
        assert found == b"1"
        assert isinstance(failed, TemporaryError)
        assert str(failed) == "t: disk full"

    def test_too_slow(self, site: Site) -> None:
        """A statement that the server ended for its time is a time-out."""
        site.hosts.answers["SELECT"] = [StatementError("57014", "canceling statement due to statement timeout")]
        assert isinstance(site.store().execute([op("lookup", b"a")])[0], LookupTimeout)

    def test_read_only(self, site: Site) -> None:
        """A server that has become read-only is left."""
        site.hosts.answers["INSERT"] = [StatementError("25006", "read-only")]
        with pytest.raises(ConnectionFailure, match="read-only"):
            site.store().execute([op("update", b"a")])

    def test_no_table(self, site: Site) -> None:
        """A look-up or delete without a table fails, and makes none."""
        site.hosts.answers |= {"SELECT": [NO_TABLE], "DELETE": [NO_TABLE]}
        results = site.store().execute([op("lookup", b"a"), op("delete", b"b")])
        assert [str(result) for result in results] == ["t: no table"] * 2
        assert site.words == ["SELECT", "DELETE"]

    @pytest.mark.parametrize("create, kind, word", [(False, "update", "INSERT"), (True, "lookup", "SELECT")])
    def test_create(self, site: Site, create: bool, kind: str, word: str) -> None:
        """An update makes the table, and in a table that is to be made so does any operation."""
        site.hosts.answers[word] = [NO_TABLE]
        site.store(create).execute([op(kind, b"a")])
        assert site.words[:3] == [word, "CREATE", word]

    def test_made_by_another(self, site: Site) -> None:
        """That somebody else makes the table at the same time is no failure."""
        site.hosts.answers |= {"INSERT": [NO_TABLE], "CREATE": [StatementError("23505", "exists")]}
        assert site.store().execute([op("update", b"a")]) == [True]

    def test_not_made(self, site: Site) -> None:
        """Where the table cannot be made that is the reason."""
        site.hosts.answers |= {"INSERT": [NO_TABLE] * 2, "CREATE": [StatementError("42501", "permission denied")]}
        assert str(site.store().execute([op("update", b"a")])[0]) == "t: permission denied"


class TestPurge:
    def test_pause(self, site: Site) -> None:
        """After updates what has ended is deleted, once in a while."""
        store = site.store()
        for _ in range(2):
            store.execute([op("update", b"a")])
            store.execute([op("lookup", b"a")])
        assert site.words == ["INSERT", "PURGE", "SELECT", "INSERT", "SELECT"]
        site.clock.advance(PURGE_PAUSE)
        store.execute([op("update", b"a")])
        assert site.words[5:] == ["INSERT", "PURGE"]

    def test_more(self, site: Site) -> None:
        """While there is more to delete each update deletes some."""
        site.hosts.answers["PURGE"] = [[(b"1",)] * PURGE_LIMIT]
        store = site.store()
        for _ in range(3):
            store.execute([op("update", b"a")])
        assert site.words == ["INSERT", "PURGE", "INSERT", "PURGE", "INSERT"]

    def test_failed(self, site: Site) -> None:
        """A purge that fails does not make anything else fail."""
        site.hosts.answers["PURGE"] = [StatementError("53100", "disk full")]
        assert site.store().execute([op("update", b"a")]) == [True]
