from __future__ import annotations

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from socketmap_memcache.errors import PermanentError, TemporaryError
from socketmap_memcache.policies.greylist.cleaner import (
    FIRST_PAUSE,
    LONGEST_BREAK,
    PAUSE,
    RETRY_PAUSE,
    STEPS,
    Cleaner,
)
from socketmap_memcache.policies.greylist.settings import Settings
from socketmap_memcache.tables.interface import ICursor, NoBackupError, ReadOnlyError
from socketmap_memcache.tables.read_only import RefusingCursor

from .tables import HeldTable

NOW, DAY = 1_700_000_000, 24 * 3600


def seen(first: int, last: int) -> bytes:
    return b"%d,%d" % (NOW - first, NOW - last)


class Table(HeldTable):
    """A table that cannot be walked through, or is walked through as told."""

    refusal: Exception | None = None

    def cursor(self) -> ICursor:
        self.asked.append(("cursor", b""))
        return super().cursor() if self.refusal is None else RefusingCursor(self.refusal)


class CleanerTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(NOW - FIRST_PAUSE)
        self.table = Table()

    def start(self, duration: float = 3600) -> Cleaner:
        cleaner = Cleaner(self.table, Settings(), self.clock, duration=duration)
        self.addCleanup(self.assertEqual, self.clock.getDelayedCalls(), [])
        self.addCleanup(cleaner.stop)
        return cleaner

    def advance(self, seconds: float) -> list[str]:
        """Let time pass, and return what is logged."""
        with capturedLogs() as events:
            self.clock.advance(seconds)
        return [formatEvent(event) or "" for event in events]

    def walks(self) -> int:
        return self.table.asked.count(("cursor", b""))

    def test_deletes(self) -> None:
        """What makes no difference any more is deleted, and nothing else."""
        kept = {
            b"t/new": seen(2 * DAY - 9, 2 * DAY - 9),
            b"t/passed": seen(40 * DAY, 35 * DAY - 9),
            b"t/other": b"not a record",
            b"c/seen": b"9,%d" % (NOW - 35 * DAY + 9),
            b"c/other": b"",
            b"x/other": seen(99 * DAY, 98 * DAY),
        }
        over = {
            b"t/late": seen(2 * DAY + 9, 2 * DAY + 9),
            b"t/tried again": seen(2 * DAY + 9, 2 * DAY - 280),
            b"t/idle": seen(40 * DAY, 35 * DAY + 9),
            b"c/idle": b"9,%d" % (NOW - 35 * DAY - 9),
        }
        self.table.entries = {**over, **kept}
        self.start()
        assert self.advance(FIRST_PAUSE - 1) == []
        assert self.advance(1) == ["held:table: clean-up finished. before: 10, after: 6"]
        assert self.table.entries == kept

    def test_again(self) -> None:
        """A day after the end of a walk the next one begins."""
        self.start()
        self.advance(FIRST_PAUSE)
        self.advance(PAUSE - 1)
        assert self.walks() == 1
        self.advance(1)
        assert self.walks() == 2

    def test_breaks(self) -> None:
        """A walk has breaks, so that it takes about the time that it may, and no break is long."""
        self.table.entries = {b"t/%d" % number: seen(3 * DAY, 3 * DAY) for number in range(3 * STEPS)}
        self.start(duration=1.5)
        self.advance(FIRST_PAUSE)
        assert len(self.table.entries) == 2 * STEPS
        breaks = 0
        while self.table.entries:
            breaks += 1
            self.advance(0.0001501)
        assert breaks == 2
        self.advance(1)
        self.table.entries = {b"t/%d" % number: seen(0, 0) for number in range(3 * STEPS)}
        self.advance(PAUSE)
        assert self.advance(0.5) == self.advance(0.5) == []
        assert self.advance(0.5) == ["held:table: clean-up finished. before: 150, after: 150"]
        self.table.entries = {b"t/%d" % number: seen(0, 0) for number in range(STEPS)}
        self.advance(PAUSE)
        self.advance(LONGEST_BREAK)
        assert self.advance(PAUSE + LONGEST_BREAK)

    def test_steps(self) -> None:
        """One thing is asked of the table at a time."""
        self.table.entries = {b"t/%d" % number: seen(3 * DAY, 3 * DAY) for number in range(3)}
        self.table.holds = ["delete"]
        self.start()
        self.advance(FIRST_PAUSE)
        for _ in range(3):
            assert len(self.table.held) == 1
            self.table.release()
        assert self.table.held == []

    def test_cannot_be_walked(self) -> None:
        """A table that cannot be walked through is left alone, for ever and in silence."""
        for refusal in (NoBackupError("needs a backup"), ReadOnlyError("has no order")):
            self.table.refusal = refusal
            self.start()
            assert self.advance(FIRST_PAUSE) == []
            assert not self.clock.getDelayedCalls()

    def test_cannot_begin(self) -> None:
        """A walk that could be made, but for a permission, say, is logged, and begun again."""
        self.table.refusal = PermanentError("no permission")
        self.start()
        assert self.advance(FIRST_PAUSE) == ["held:table: clean-up: no permission"]
        self.table.refusal = None
        assert self.advance(RETRY_PAUSE) == ["held:table: clean-up finished. before: 0, after: 0"]

    def test_failure(self) -> None:
        """A walk that fails is logged, and begun again after an hour."""
        self.table.refusal = TemporaryError("down")
        self.start()
        assert self.advance(FIRST_PAUSE) == ["held:table: clean-up: down"]
        self.table.refusal = None
        assert self.advance(RETRY_PAUSE) == ["held:table: clean-up finished. before: 0, after: 0"]
        self.advance(PAUSE)
        assert self.walks() == 3

    def test_cannot_delete(self) -> None:
        """A table that allows no changes is an error each time."""
        self.table.entries = {b"t/a": seen(3 * DAY, 3 * DAY)}
        self.table.error, self.table.fails = PermanentError("read-only"), ["delete"]
        self.start()
        assert self.advance(FIRST_PAUSE) == ["held:table: clean-up: read-only"]
        assert self.advance(RETRY_PAUSE) == ["held:table: clean-up finished. before: 0, after: 0"]

    def test_permanent_failure_on_the_way(self) -> None:
        """A walk that has begun can fail for good, too, and is tried again."""

        class Cursor(RefusingCursor):
            def next(self) -> Deferred[tuple[bytes, bytes] | None]:
                return succeed(entries.pop()) if entries else super().next()

        entries = [(b"t/a", b"")]
        self.patch(self.table, "cursor", lambda: Cursor(PermanentError("gone")))
        self.start()
        assert self.advance(FIRST_PAUSE) == ["held:table: clean-up: gone"]
        assert self.clock.getDelayedCalls()

    def test_unforeseen(self) -> None:
        """What nobody has foreseen is in the log with a traceback, and the next walk comes all the same."""
        self.table.refusal = RuntimeError("bug")
        self.start()
        assert self.advance(FIRST_PAUSE) == ["held:table: clean-up has failed in an unforeseen way"]
        assert len(self.flushLoggedErrors(RuntimeError)) == 1
        self.table.refusal = None
        assert self.advance(RETRY_PAUSE) == ["held:table: clean-up finished. before: 0, after: 0"]

    def test_stop(self) -> None:
        """A clean-up can be stopped at any time, and more than once."""
        self.table.entries = {b"t/%d" % number: seen(3 * DAY, 3 * DAY) for number in range(2 * STEPS)}
        for seconds in (0, FIRST_PAUSE):
            cleaner = self.start()
            self.advance(seconds)
            cleaner.stop()
            cleaner.stop()
            assert not self.clock.getDelayedCalls()
        assert self.advance(2 * PAUSE) == []
        self.table.holds = ["delete"]
        cleaner = self.start()
        self.advance(FIRST_PAUSE)
        cleaner.stop()
        self.table.release()
        assert not self.clock.getDelayedCalls()
