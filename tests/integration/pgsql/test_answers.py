"""``pgsql:`` tables with real servers, beside what Postfix does with the same files."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from socketmap_memcache.errors import TemporaryError
from tests.integration.harness.postfix import Postfix
from tests.integration.harness.postgresql import Postgresql
from tests.integration.harness.processes import wait_until

from .cases import ODD_KEYS, QUERIES
from .site import Site


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
