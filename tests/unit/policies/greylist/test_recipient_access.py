from __future__ import annotations

import tempfile
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from socketmap_memcache.config.parameters import Parameters
from socketmap_memcache.config.syntax import Entry, ParsedFile
from socketmap_memcache.errors import ConfigurationError, TemporaryError
from socketmap_memcache.memcache.pool import ClientPool
from socketmap_memcache.policies.greylist.recipient_access import (
    RecipientAccess,
    open_recipient_access,
    parse_access,
)
from socketmap_memcache.policies.greylist.settings import Settings
from socketmap_memcache.tables.registry import TableContext
from tests.unit.tables.fakes import FakeTable

NAME = "greylist_recipient_access"
SETTINGS = Settings()


class RecipientAccessTests(SynchronousTestCase):
    def open(self, value: str) -> RecipientAccess | None:
        self.context = TableContext(ClientPool(MemoryReactorClock()))
        self.parameters = Parameters(ParsedFile("main.cf", {NAME: Entry(NAME, value, 7, "main.cf")}))
        return open_recipient_access(NAME, self.parameters, SETTINGS, self.context)

    def delays(self, value: str, *recipients: bytes) -> list[int | None]:
        access = self.open(value)
        self.parameters.finish([])
        assert access is not None
        found = [self.successResultOf(access.delay(recipient)) for recipient in recipients]
        access.close()
        return found


class TestOpen(RecipientAccessTests):
    def test_none(self) -> None:
        """Without a table there is nothing to ask."""
        assert self.open("") is None

    def test_partial_keys(self) -> None:
        """A table is asked as Postfix asks those of access(5): also for domains, and users."""
        table = "inline:{a@x.example=skip, x.example=delay=60, user@=delay=1h}"
        recipients = (b"A@x.example", b"b@x.example", b"b@sub.x.example", b"user@other", b"b@other", b"")
        assert self.delays(table, *recipients) == [None, 60, 60, 3600, 300, 300]

    def test_options(self) -> None:
        """The keys that are tried may be others."""
        table = "{ inline:{x.example=skip}, partial_keys=none }"
        assert self.delays(table, b"b@x.example", b"x.example") == [300, None]

    def test_extensions(self) -> None:
        """An address with an extension is also asked for without it, where the table is told the delimiter."""
        table = "inline:{in@x.example=skip,user@=delay=60}"
        recipients = (b"in+e@x.example", b"user+e@x.example")
        assert self.delays(table, *recipients) == [300, 300]
        assert self.delays(f"{{ {table}, recipient_delimiter=+ }}", *recipients) == [None, 60]

    def test_patterns(self) -> None:
        """A table of patterns is asked for the whole address only."""
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "access").write_text("/^x.example$/ skip\n/^c@x/ skip\n")
            assert self.delays(f"regexp:{directory}/access", b"b@x.example", b"c@x.example") == [300, None]

    def test_several(self) -> None:
        """The first table that knows a recipient counts, so that static:skip makes an opt-in of those before."""
        tables = "inline:{a@x=greylist}, inline:{a@x=delay=9,b@x=delay=10}, static:skip"
        assert self.delays(tables, b"a@x", b"b@x", b"c@x") == [300, 10, None]

    def test_errors(self) -> None:
        """What is wrong with a table is an error of the parameter; others are opened."""
        assert self.open("bogus:x static:skip { static:a") is not None
        caught = self.assertRaises(ConfigurationError, self.parameters.finish, [])
        problems = [str(problem) for problem in caught.problems]
        assert problems[0].startswith("main.cf:7: table 'bogus:x': unknown table type")
        assert "missing '}'" in problems[1]


class TestDelay(RecipientAccessTests):
    def setUp(self) -> None:
        self.clock = MemoryReactorClock()
        self.trace: list[str] = []

    def access(self, *answers: bytes | Exception | Deferred[bytes | None] | None) -> RecipientAccess:
        tables = [FakeTable(self.trace, known, f"t{place}") for place, known in enumerate(answers)]
        return RecipientAccess(tables, SETTINGS, self.clock)

    def test_order(self) -> None:
        """The next table is asked when the one before does not know the recipient."""
        first: Deferred[bytes | None] = Deferred()
        answer = self.access(first, b"skip", b"greylist").delay(b"a@x")
        assert self.trace == ["t0 b'a@x'"]
        first.callback(None)
        assert self.successResultOf(answer) is None
        assert self.trace[1:] == ["t1 b'a@x'"]

    def test_failure(self) -> None:
        """A table that fails is not passed by."""
        self.failureResultOf(self.access(TemporaryError("down"), b"skip").delay(b"a@x"), TemporaryError)
        assert self.trace == ["t0 b'a@x'"]

    def test_no_question(self) -> None:
        """Tables are not asked for an empty recipient, nor for one that is too long to be one."""
        for recipient in (b"", b"x" * 513):
            assert self.successResultOf(self.access(b"skip").delay(recipient)) == 300
        assert self.trace == []

    def test_bad_value(self) -> None:
        """Another value is taken as greylist, and logged, but not each time."""
        access = self.access(b"yes")
        with capturedLogs() as events:
            for _ in range(3):
                assert self.successResultOf(access.delay(b"a@x")) == 300
            self.clock.advance(60)
            self.successResultOf(access.delay(b"a@x"))
        first, second = map(formatEvent, events)
        assert first == (
            "t0: for a@x: 'yes' is not greylist, skip or delay=TIME, less than greylist_retry_window; taken as greylist"
        )
        assert second == f"{first} (2 times more since this was last logged)"

    def test_close(self) -> None:
        """The tables are closed with it."""
        self.access(None, None).close()
        assert self.trace == ["close t0", "close t1"]


class TestValues(SynchronousTestCase):
    def test_values(self) -> None:
        """A value may be in any case, with blanks, and a delay in any unit."""
        for value, delay in {
            b"greylist": 300,
            b" Greylist ": 300,
            b"SKIP": None,
            b"delay=60": 60,
            b"Delay = 10m": 600,
            b"delay=0": 0,
            b"delay=172799": 172799,
        }.items():
            assert parse_access(value, SETTINGS) == delay

    def test_others(self) -> None:
        """Anything else is an error: also a delay that no mail survives."""
        for value in (b"", b"OK", b"greylist x", b"delay", b"delay=", b"delay=-1", b"delay=2d", b"delays=3", b"\xff"):
            self.assertRaises(ValueError, parse_access, value, SETTINGS)
