from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import capturedLogs, formatEvent
from zope.interface.verify import verifyObject

from socketmap_memcache.errors import LookupTimeout, PermanentError, TableError, TemporaryError
from socketmap_memcache.memcache.interface import Limits
from socketmap_memcache.tables.interface import ITable
from socketmap_memcache.tables.memcache import MemcacheTable
from tests.unit.tables.fakes import Answer, Domains, FakeCache, FakeTable, MemcacheTableTests, answer, open_table


class TestOrder(MemcacheTableTests):
    def test_interface(self) -> None:
        """It is a table, with the name that Postfix has for it."""
        table = open_table(self.cache)
        verifyObject(ITable, table)
        assert table.name == "memcache:/x.cf"

    def test_cached(self) -> None:
        """What is cached is the answer; the backup is not asked."""
        assert self.lookup(open_table(self.cache, self.backup)) == b"cached"
        self.assertTrace("get b'k'")

    def test_cached_empty(self) -> None:
        """An empty value is cached, not missing."""
        self.cache.get_answer = b""
        assert self.lookup(open_table(self.cache, self.backup)) == b""
        self.assertTrace("get b'k'")

    def test_limits(self) -> None:
        """The cache is asked within the table's own limits."""
        self.lookup(open_table(self.cache, data_size_limit=17))
        assert self.cache.limits == Limits(data_size_limit=17)

    def test_miss(self) -> None:
        """On a miss the backup is asked, and its value is the answer and put into the cache."""
        self.cache.get_answer = None
        table = open_table(self.cache, self.backup, flags=-1, ttl=60)
        assert self.lookup(table) == b"kept"
        self.assertTrace("get b'k'", "backup b'k'", "set b'k' b'kept' -1 60")

    def test_cache_failed(self) -> None:
        """When the cache fails the backup is asked all the same, and its answer counts."""
        for error in (TemporaryError("down"), LookupTimeout("slow")):
            self.cache.get_answer = error
            table = open_table(self.cache, self.backup)
            assert self.lookup(table) == b"kept"
            self.assertTrace("get b'k'", "backup b'k'", "set b'k' b'kept' 0 3600")
        self.backup.known = None
        assert self.lookup(table) is None
        self.assertTrace("get b'k'", "backup b'k'")

    def test_backup_failed(self) -> None:
        """A failure of the backup is the answer, after a miss as after a failure of the cache."""
        self.backup.known = PermanentError("broken")
        for known in (None, TemporaryError("down")):
            self.cache.get_answer = known
            self.failureResultOf(open_table(self.cache, self.backup).lookup(b"k"), PermanentError)
            self.assertTrace("get b'k'", "backup b'k'")

    def test_no_backup(self) -> None:
        """Without a backup the cache's answer counts: a miss is missing, a failure is a failure of its kind."""
        table = open_table(self.cache)
        self.cache.get_answer = None
        assert self.lookup(table) is None
        for error in (TemporaryError("down"), LookupTimeout("slow")):
            self.cache.get_answer = error
            assert self.failureResultOf(table.lookup(b"k")).value is error

    def test_unforeseen(self) -> None:
        """What is no failure of a cache does not pass for one: it is told, and not hidden by the backup."""
        self.cache.get_answer = ZeroDivisionError()
        self.failureResultOf(open_table(self.cache, self.backup).lookup(b"k"), ZeroDivisionError)
        self.assertTrace("get b'k'")

    def test_refill_fails(self) -> None:
        """That a value cannot be cached is no matter of the look-up."""
        self.cache.get_answer = None
        self.cache.set_answer = TemporaryError("down")
        assert self.lookup(open_table(self.cache, self.backup)) == b"kept"

    def test_refill_hangs(self) -> None:
        """The look-up does not wait until its value is cached."""
        self.cache.get_answer = None
        self.cache.set_answer = Deferred()
        assert self.lookup(open_table(self.cache, self.backup)) == b"kept"

    def test_refill_once(self) -> None:
        """A refill that fails is not tried again: by then there may have been an update."""
        self.cache.get_answer = None
        assert self.lookup(open_table(self.cache, self.backup, max_try=5)) == b"kept"
        assert self.cache.set_limits is not None
        assert self.cache.set_limits.max_try == 1

    def test_refill_too_long(self) -> None:
        """A value above data_size_limit is the answer, but not cached; that is logged once."""
        self.cache.get_answer = None
        self.backup.known = b"x" * 11
        table = open_table(self.cache, self.backup, data_size_limit=10)
        with capturedLogs() as logs:
            for _ in range(3):
                assert self.lookup(table) == b"x" * 11
                self.assertTrace("get b'k'", "backup b'k'")
        assert [formatEvent(event) for event in logs] == [
            "memcache:/x.cf: a value of 11 bytes is not cached (data_size_limit is 10); logged once"
        ]
        self.backup.known = b"x" * 10
        self.lookup(table)
        assert len(self.trace) == 3

    def test_close(self) -> None:
        """Closing lets go of the cache, the backup and the domain list, once."""
        table = open_table(self.cache, self.backup, Domains(self.trace, True))
        table.close()
        table.close()
        self.assertTrace("close cache", "close backup", "close domain")
        open_table(self.cache).close()
        self.assertTrace("close cache")

    def test_closed_meanwhile(self) -> None:
        """A look-up that is under way when the table is closed is finished with a backup that is still open."""
        cached: Deferred[Any] = Deferred()
        self.cache.get_answer = cached
        self.cache.set_answer = TemporaryError("closed")
        table = open_table(self.cache, self.backup)
        done = table.lookup(b"k")
        table.close()
        cached.callback(None)
        assert self.successResultOf(done) == b"kept"
        assert self.trace.index("backup b'k'") < self.trace.index("close backup")
        assert self.trace.count("close backup") == 1

    def test_closed_after_any_answer(self) -> None:
        """However the look-ups that are under way end, the table lets go of all after the last of them."""
        for get in (b"cached", None, TemporaryError("down"), ZeroDivisionError()):
            for kept in (b"kept", None, PermanentError("broken"), ZeroDivisionError()):
                self.backup.known = kept
                table = open_table(self.cache, self.backup)
                first: Deferred[Any] = Deferred()
                second: Deferred[Any] = Deferred()
                results: list[Any] = []
                for key, cached in ((b"1", first), (b"2", second)):
                    self.cache.get_answer = cached
                    table.lookup(key).addBoth(results.append)
                table.close()
                answer(get).addBoth(first.callback)
                assert "close backup" not in self.trace
                answer(get).addBoth(second.callback)
                assert len(results) == 2
                assert self.trace.count("close cache") == 1
                assert self.trace[-1] == "close backup"
                self.trace.clear()

    def test_closed_while_matching(self) -> None:
        """A look-up that waits for the domain list when the table is closed is finished with a cache still open."""
        matched: Deferred[bool] = Deferred()
        table = open_table(self.cache, None, Domains(self.trace, matched))
        done = table.lookup(b"k")
        table.close()
        matched.callback(True)
        assert self.successResultOf(done) == b"cached"
        self.assertTrace("domain of b'k'", "get b'k'", "close cache", "close domain")


class TestKeys(MemcacheTableTests):
    def assertSkipped(self, table: MemcacheTable, *keys: bytes) -> None:
        """Check that keys are missing, and neither the cache nor the backup is asked."""
        for key in keys:
            assert self.lookup(table, key) is None
        self.assertTrace()

    def assertAsked(self, table: MemcacheTable, key: bytes, cache_key: bytes) -> None:
        assert self.lookup(table, key) == b"cached"
        self.assertTrace(f"get {cache_key!r}")

    def test_empty(self) -> None:
        """An empty key is skipped."""
        self.assertSkipped(open_table(self.cache, self.backup), b"")

    def test_not_utf8(self) -> None:
        """A key that is not UTF-8 is skipped, whether keys are folded or not."""
        for fold_keys in (True, False):
            table = open_table(self.cache, self.backup, fold_keys=fold_keys)
            self.assertSkipped(table, b"\xff", b"a\xc3", b"\xed\xa0\x80", b"\xc0\xaf")
            self.assertAsked(table, "ü".encode(), "ü".encode())

    def test_forbidden(self) -> None:
        """A cache key with white space or control characters is skipped: it would be another command."""
        table = open_table(self.cache, self.backup)
        self.assertSkipped(table, *(b"a%cb" % byte for byte in (*range(33), 127)))
        self.assertSkipped(table, b"k\r\nset x 0 0 1\r\nv", b" k", b"k ")

    def test_fold_keys(self) -> None:
        """Keys are folded to lower case for the cache and the backup, unless fold_keys = no."""
        self.cache.get_answer = None
        assert self.lookup(open_table(self.cache, self.backup), "ÜSER@Example.COM".encode()) == b"kept"
        folded = "üser@example.com".encode()
        self.assertTrace(f"get {folded!r}", f"backup {folded!r}", f"set {folded!r} b'kept' 0 3600")
        self.lookup(open_table(self.cache, self.backup, fold_keys=False), b"User")
        self.assertTrace("get b'User'", "backup b'User'", "set b'User' b'kept' 0 3600")

    def test_key_format(self) -> None:
        """The cache is asked for the formatted key, the backup for the key; one that lacks a part is skipped."""
        self.cache.get_answer = None
        table = open_table(self.cache, self.backup, key_format="v1:%d:%u")
        assert self.lookup(table, b"User@Example.com") == b"kept"
        formatted = "b'v1:example.com:user'"
        self.assertTrace(f"get {formatted}", "backup b'user@example.com'", f"set {formatted} b'kept' 0 3600")
        self.assertSkipped(table, b"user", b"user@", b"@example.com")
        self.assertSkipped(open_table(self.cache, self.backup, key_format=""), b"user")
        self.assertSkipped(open_table(self.cache, self.backup, key_format="a %s"), b"user")

    def test_too_long(self) -> None:
        """A cache key above 250 bytes is not sent: the backup's answer counts at once, and is not cached."""
        table = open_table(self.cache, self.backup)
        self.assertAsked(table, b"x" * 250, b"x" * 250)
        for known in (b"kept", None):
            self.backup.known = known
            assert self.lookup(table, b"x" * 251) == known
            self.assertTrace(f"backup {b'x' * 251!r}")
        self.backup.known = TemporaryError("down")
        self.failureResultOf(table.lookup(b"x" * 251), TemporaryError)

    def test_too_long_without_backup(self) -> None:
        """A cache key above 250 bytes fails where there is no backup."""
        failure = self.failureResultOf(open_table(self.cache, key_format="p:%s").lookup(b"x" * 249), TemporaryError)
        assert str(failure.value) == "memcache:/x.cf: the cache key has 251 bytes; memcached takes 250"
        self.assertTrace()

    def test_too_long_and_forbidden(self) -> None:
        """A cache key that is too long and has white space is skipped, as Postfix does before it asks."""
        self.assertSkipped(open_table(self.cache, self.backup), b"x" * 250 + b" y")

    def test_key_digest(self) -> None:
        """The digest of the formatted key takes its place; white space, control characters and length do not matter."""
        table = open_table(self.cache, self.backup, key_format="p %s", key_digest="sha256")
        for key in (b"k", b"k k", b"\x01", b"x" * 5000):
            self.assertAsked(table, key, hashlib.sha256(b"p " + key).hexdigest().encode())
        self.assertSkipped(table, b"", b"\xff")

    def test_long_key_digest(self) -> None:
        """The backup is asked for the key itself, not for its digest."""
        self.cache.get_answer = None
        assert self.lookup(open_table(self.cache, self.backup, key_digest="md5")) == b"kept"
        digest = hashlib.md5(b"k").hexdigest()  # noqa: S324 (Postfix takes any)
        self.assertTrace(f"get b'{digest}'", "backup b'k'", f"set b'{digest}' b'kept' 0 3600")

    def test_digest_of_skipped(self) -> None:
        """A key that key_format skips has no digest."""
        self.assertSkipped(open_table(self.cache, self.backup, key_format="%d", key_digest="sha1"), b"user")


class TestDomain(MemcacheTableTests):
    def test_match(self) -> None:
        """A key in the domain list is looked up, any other is skipped; the list sees the folded key."""
        table = open_table(self.cache, self.backup, Domains(self.trace, True))
        assert self.lookup(table, b"A@B") == b"cached"
        self.assertTrace("domain of b'a@b'", "get b'a@b'")
        assert self.lookup(open_table(self.cache, self.backup, Domains(self.trace, False)), b"a@b") is None
        self.assertTrace("domain of b'a@b'")

    def test_later(self) -> None:
        """The domain list may take its time."""
        for matches in (True, False):
            matched: Deferred[bool] = Deferred()
            done = open_table(self.cache, self.backup, Domains(self.trace, matched)).lookup(b"a@b")
            self.assertTrace("domain of b'a@b'")
            matched.callback(matches)
            assert self.successResultOf(done) == (b"cached" if matches else None)
            self.assertTrace(*(["get b'a@b'"] if matches else []))

    def test_fails(self) -> None:
        """When the domain list fails nobody knows whether the key exists, and neither cache nor backup is asked."""
        error = TemporaryError("domain table down")
        done = open_table(self.cache, self.backup, Domains(self.trace, fail(error))).lookup(b"a@b")
        assert self.failureResultOf(done).value is error
        self.assertTrace("domain of b'a@b'")

    def test_empty_key(self) -> None:
        """The domain list is not asked about keys that are skipped anyway."""
        table = open_table(self.cache, self.backup, Domains(self.trace, True))
        assert self.lookup(table, b"") is None
        assert self.lookup(table, b"\xff@b") is None
        self.assertTrace()


def outcomes() -> st.SearchStrategy[Answer]:
    errors: Sequence[Callable[[], Exception]] = [
        lambda: TemporaryError("x"),
        lambda: LookupTimeout("x"),
        lambda: PermanentError("x"),
        lambda: TableError("x"),
        lambda: ZeroDivisionError("x"),
    ]
    return st.one_of(st.none(), st.binary(max_size=20), st.sampled_from(errors).map(lambda make: make()))


@given(
    get=outcomes(),
    stored=outcomes().map(lambda known: TemporaryError("x") if isinstance(known, Exception) else None),
    has_backup=st.booleans(),
    kept=outcomes(),
    domain=st.one_of(
        st.none(), st.booleans(), st.booleans().map(succeed), st.builds(lambda: fail(TemporaryError("x")))
    ),
    later=st.booleans(),
    key=st.sampled_from([b"k", b"k" * 251]),
)
def test_failure_is_never_a_miss(
    get: Answer,
    stored: Answer,
    has_backup: bool,
    kept: Answer,
    domain: bool | Deferred[bool] | None,
    later: bool,
    key: bytes,
) -> None:
    """Whatever the parts of a table answer, and when, a failure of the last that was asked is never a miss."""
    trace: list[str] = []
    cached: Deferred[Any] = Deferred()
    table = open_table(
        FakeCache(trace, cached if later else get, stored),
        FakeTable(trace, kept) if has_backup else None,
        None if domain is None else Domains(trace, domain),
        data_size_limit=10,
    )
    results: list[Any] = []
    table.lookup(key).addBoth(results.append)
    if later and "get b'k'" in trace:
        assert results == []
        answer(get).addBoth(cached.callback)
    (result,) = results
    last = trace[-1] if trace else ""
    if last.startswith("set"):
        assert result == kept
    elif last.startswith("backup"):
        assert getattr(result, "value", result) == kept
    elif last.startswith("get"):
        assert getattr(result, "value", result) == get
    elif result is None:
        assert domain is not None
    else:
        assert isinstance(result.value, TemporaryError)
