from __future__ import annotations

from unittest.mock import Mock

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import capturedLogs

from socketmap_memcache.errors import TemporaryError
from socketmap_memcache.policies.greylist.decision_log import PAUSE

from .policy_tests import DEFERRED, KEY, NOW, REST, PolicyTests, texts


class TestFailures(PolicyTests):
    def test_cancelled(self) -> None:
        """When the time is over, the fail action was the answer; what the table says later is not logged."""
        for held, asked in (("lookup", 2), ("update", 3)):
            self.table.holds, self.table.asked = [held], []
            with capturedLogs() as events:
                answer = self.begin()
                assert isinstance(answer, Deferred)
                answer.cancel()
                self.failureResultOf(answer, CancelledError)
                self.table.release()
                self.clock.advance(PAUSE)
            assert texts(events)[-1] == f"action=pass, reason=no store, {REST}"
            assert len([text for text in texts(events) if "action=" in text]) == 1
            assert len(self.table.asked) == asked
        self.policy.close()
        assert self.table.closed

    def test_lookup(self) -> None:
        """When the table cannot be asked, mail flows, and that is logged, the cause now and then."""
        self.table.error = TemporaryError("memcached is down")
        assert self.lines() == [
            "memcached is down; answered DUNNO",
            f"action=pass, reason=no store, {REST}",
        ]
        assert self.ask() == b"DUNNO"
        assert self.lines()[-1] == f"action=pass, reason=no store, {REST}"
        self.clock.advance(60)
        assert self.lines()[0] == "memcached is down; answered DUNNO (2 times more since this was last logged)"

    def test_update(self) -> None:
        """What the table does not remember is not deferred."""
        self.table.error, self.table.fails = TemporaryError("disk full"), ["update"]
        assert self.lines() == ["disk full; answered DUNNO", f"action=pass, reason=no store, {REST}"]

    def test_refused(self) -> None:
        """Nor what the table does not take."""
        self.table.takes = False
        assert self.ask() == b"DUNNO"

    def test_fail_action(self) -> None:
        """The fail action may be another; the log tells whether mail flows."""
        self.open(fail_action=b"defer 4.3.0 Not now")
        self.table.error = TemporaryError("down")
        assert self.ask() == b"defer 4.3.0 Not now"
        assert self.lines() == [f"action=greylist, reason=no store, {REST}"]

    def test_update_of_what_passes(self) -> None:
        """A mail that passes does not wait for the updates, and passes when they fail, which is logged."""
        self.table.entries = {KEY: b"%d,%d" % (NOW - 300, NOW - 300)}
        self.table.holds, self.table.fails = ["update"], ["update"]
        self.table.error = TemporaryError("disk full")
        assert self.ask().startswith(b"PREPEND")
        with capturedLogs() as events:
            self.table.release()
        assert texts(events) == ["disk full; what passed is not remembered"]

    def test_deferral_waits(self) -> None:
        """A mail is deferred, and that is logged, when the table has acknowledged it."""
        self.table.holds = ["update"]
        with capturedLogs() as events:
            answer = self.begin()
            assert isinstance(answer, Deferred)
            self.clock.advance(1)
            self.assertNoResult(answer)
            assert texts(events) == []
            self.table.release()
            self.clock.advance(PAUSE)
        assert self.successResultOf(answer) == DEFERRED
        assert len(events) == 1

    def test_both_lookups(self) -> None:
        """When both look-ups fail, that is one failure; when the first does, the other is not waited for."""
        self.table.holds = ["lookup"]
        self.table.error = TemporaryError("down")
        answer = self.begin()
        assert isinstance(answer, Deferred)
        with capturedLogs() as events:
            self.table.release()
            self.clock.advance(PAUSE)
        assert self.successResultOf(answer) == b"DUNNO"
        assert texts(events)[1:] == [f"action=pass, reason=no store, {REST}"]
        for failing in (0, 1):
            answer = self.begin()
            assert isinstance(answer, Deferred)
            held, self.table.held = self.table.held[-2:], []
            held[failing][0].errback(TemporaryError("down"))
            assert self.successResultOf(answer) == b"DUNNO"
            held[1 - failing][0].callback(None)
        assert self.table.entries == {}

    def test_unforeseen(self) -> None:
        """What nobody has foreseen is an error of the policy."""
        self.table.error = RuntimeError("bug")
        answer = self.begin()
        assert isinstance(answer, Deferred)
        self.failureResultOf(answer, RuntimeError)

    def test_unforeseen_error_in_the_decision(self) -> None:
        """That is so for the decision too, at once or later, and the policy can be closed after it."""
        self.policy.deferrals.add = Mock(side_effect=RuntimeError("bug"))  # type: ignore[method-assign]
        for holds in ([], ["lookup"]):
            self.table.holds = holds
            answer = self.begin()
            assert isinstance(answer, Deferred)
            self.table.release()
            self.failureResultOf(answer, RuntimeError)
        self.policy.close()
        assert self.table.closed


class TestForgetfulTable(PolicyTests):
    def test_passes(self) -> None:
        """A mail that the table forgets each time is deferred twice more when its delay is over, and then passes."""
        for seconds in (0, 300, 300):
            self.clock.advance(seconds)
            self.table.entries.clear()
            answer = self.ask()
        assert answer == b"PREPEND X-Greylist: 600 by mx"
        assert self.table.entries[KEY] == b"%d,%d" % (NOW, NOW + 600)
        self.table.entries.clear()
        assert self.ask() == DEFERRED  # it has passed, and begins anew

    def test_logged(self) -> None:
        """The log has the reason, and what may be the cause."""
        for _ in range(2):
            self.table.entries.clear()
            self.ask()
            self.clock.advance(300)
        self.table.entries.clear()
        assert self.lines() == [
            "held:table forgets what was deferred, which passes now; is it emptied, or too small?",
            f"action=pass, reason=forgotten by the store, delay=600, {REST}",
        ]

    def test_not_forgotten(self) -> None:
        """A mail that has passed long ago is new, and nothing was forgotten."""
        self.ask()
        self.clock.advance(300)
        self.ask()
        self.clock.advance(36 * 24 * 3600)
        self.table.entries.clear()
        for _ in range(3):
            assert self.ask() == DEFERRED
