from __future__ import annotations

from typing import Any, cast

import attrs
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from socketmap_memcache.asker import Asker
from socketmap_memcache.errors import TemporaryError
from socketmap_memcache.policies.chain import PolicyChain, well_formed
from socketmap_memcache.policies.interface import IAskedPolicy, IPolicy, Request
from tests.unit.logs import texts
from tests.unit.policies.fakes import ScriptedPolicy

REQUEST = {b"request": b"smtpd_access_policy"}


def decide(chain: PolicyChain) -> bytes | Deferred[bytes]:
    """Return the action for a request, or a Deferred if it comes later."""
    actions: list[bytes] = []
    later: Deferred[bytes] = Deferred()

    def decided(action: bytes, token: list[bytes]) -> None:
        assert not actions
        actions.append(action)
        if token:
            later.callback(action)

    token: list[bytes] = []
    chain.decide(REQUEST, decided, token)
    token.append(b"later")
    return actions[0] if actions else later


class ChainTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()

    def chain(self, *policies: ScriptedPolicy) -> PolicyChain:
        return PolicyChain(policies, self.clock, 10)

    def decide(self, *answers: Any) -> bytes | Deferred[bytes]:
        """Ask policies of which each gives one answer."""
        return decide(self.chain(*map(ScriptedPolicy, answers)))

    def wait_for(self, answer: bytes | Deferred[bytes]) -> bytes:
        return self.successResultOf(answer) if isinstance(answer, Deferred) else answer


class TestAtOnce(ChainTests):
    def test_order(self) -> None:
        """The first that has an opinion decides, at once, and those after it are not asked."""
        policies = [ScriptedPolicy(answer) for answer in (b"DUNNO", b"REJECT a", b"REJECT b")]
        assert decide(self.chain(*policies)) == b"REJECT a"
        assert [policy.asked for policy in policies] == [[REQUEST], [REQUEST], []]
        assert verifyObject(IPolicy, policies[0])

    def test_no_opinion(self) -> None:
        """DUNNO in any case, with or without a text, asks the next; when all say so it is the answer."""
        for dunno in (b"DUNNO", b"dunno", b"Dunno for now", b"DUNNO\t"):
            assert self.decide(dunno, b"OK") == b"OK"
            assert self.decide(dunno) == b"DUNNO"
        assert self.decide(b"DUNNO2") == b"DUNNO2"
        assert self.decide() == b"DUNNO"

    def test_no_hash(self) -> None:
        """A policy may be any object, also one that cannot be a key of a dict."""

        @attrs.define
        class Policy(ScriptedPolicy):
            def __init__(self) -> None:
                super().__init__(b"OK")

        assert decide(self.chain(Policy())) == b"OK"

    def test_no_timer(self) -> None:
        """Where all answer at once there is no timer."""
        self.decide(b"DUNNO", b"OK")
        assert self.clock.getDelayedCalls() == []


class TestLater(ChainTests):
    def test_order(self) -> None:
        """A policy that takes its time is waited for before the next is asked."""
        first, second = Deferred[bytes](), Deferred[bytes]()
        policies = [ScriptedPolicy(answer) for answer in (b"dunno", first, b"DUNNO x", second, b"OK")]
        answer = decide(self.chain(*policies))
        assert [len(policy.asked) for policy in policies] == [1, 1, 0, 0, 0]
        first.callback(b"Dunno x")
        assert [len(policy.asked) for policy in policies] == [1, 1, 1, 1, 0]
        second.callback(b"REJECT")
        assert self.wait_for(answer) == b"REJECT"
        assert policies[4].asked == []

    def test_no_opinion(self) -> None:
        """When all say DUNNO, at last, it is the answer."""
        assert self.wait_for(self.decide(succeed(b"DUNNO"))) == b"DUNNO"
        assert self.wait_for(self.decide(succeed(b"DUNNO"), succeed(b"dunno y"))) == b"DUNNO"
        assert self.wait_for(self.decide(succeed(b"DUNNO"), b"OK")) == b"OK"

    def test_many(self) -> None:
        """Requests do not wait for each other."""
        answers = [Deferred[bytes]() for _ in range(3)]
        chain = self.chain(ScriptedPolicy(*answers))
        decided = [decide(chain) for _ in answers]
        answers[1].callback(b"b")
        assert self.wait_for(decided[1]) == b"b"
        answers[0].callback(b"a")
        answers[2].callback(b"c")
        assert [self.wait_for(decided[0]), self.wait_for(decided[2])] == [b"a", b"c"]


class TestFailures(ChainTests):
    def fail_with(self, answer: Any, fail_action: bytes = b"DUNNO") -> tuple[bytes, str]:
        """Give what is answered when a policy answers like this and the next says OK, and the line that is logged."""
        policy = ScriptedPolicy(answer)
        policy.fail_action = fail_action
        with capturedLogs() as logs:
            decided = decide(self.chain(policy, ScriptedPolicy(b"OK")))
        (line,) = texts(logs)
        return decided if isinstance(decided, bytes) else self.successResultOf(decided), line

    def test_fail_action(self) -> None:
        """The fail action of a policy that fails decides, unless it is DUNNO, and the failure is logged."""
        for make in (lambda: TemporaryError("no store"), lambda: fail(TemporaryError("no store"))):
            assert self.fail_with(make()) == (b"OK", "policy scripted: no store; counted as DUNNO")
            line = "policy scripted: no store; counted as DEFER later"
            assert self.fail_with(make(), b"DEFER later") == (b"DEFER later", line)
        assert self.flushLoggedErrors() == []

    def test_unforeseen(self) -> None:
        """A fault of a policy is logged with its traceback."""
        assert self.fail_with(ZeroDivisionError("x")) == (b"OK", "policy scripted: x; counted as DUNNO")
        assert self.fail_with(fail(ZeroDivisionError("x")))[0] == b"OK"
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 2

    def test_unforeseen_after_answer(self) -> None:
        """A policy that raises when it has answered changes nothing: not its answer, and not that of the next."""

        @implementer(IAskedPolicy)
        class Hasty(ScriptedPolicy):
            def decide_for(self, request: Request, asker: Asker, token: Any) -> None:
                asker.answered(self.decide(request), token)
                raise ZeroDivisionError

        for answer, next_answer, expected in ((b"OK a", b"OK b", b"OK a"), (b"DUNNO", b"OK b", b"OK b")):
            assert decide(self.chain(Hasty(answer), ScriptedPolicy(next_answer))) == expected
            assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1
        waiting: Deferred[bytes] = Deferred()
        decided = decide(self.chain(Hasty(b"DUNNO"), ScriptedPolicy(waiting)))
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1
        waiting.callback(b"OK b")
        assert self.wait_for(decided) == b"OK b"

    def test_malformed(self) -> None:
        """An action that Postfix could not use, or would misunderstand, is a failure."""
        bad: list[Any] = [b"", b" ", b" OK", b"\rOK", b"OK\n", b"OK\n\naction=x", b"OK \0", b"OK \xff", "OK", None]
        for action in bad:
            assert not well_formed(action)
            decided, line = self.fail_with(action, b"DEFER")
            assert decided == b"DEFER"
            assert line == f"policy scripted: malformed action {action!r}; counted as DEFER"
            assert self.fail_with(succeed(action), b"DEFER")[0] == b"DEFER"
        assert self.decide("OK \u00e9".encode()) == "OK \u00e9".encode()

    def test_malformed_fail_action(self) -> None:
        """A fail action that Postfix could not use is not used."""
        assert self.fail_with(TemporaryError("x"), b"DEFER\n") == (b"OK", "policy scripted: x; counted as DUNNO")

    def test_long_line(self) -> None:
        """Of a malformed action only the beginning is logged."""
        assert len(self.fail_with(b"x\n" * 1000)[1]) < 300

    def test_logged_now_and_then(self) -> None:
        """Failures of a policy are logged once in a minute, with their number."""
        chain = self.chain(ScriptedPolicy(TemporaryError("x")), ScriptedPolicy(TemporaryError("y"), name="other"))
        with capturedLogs() as logs:
            for _ in range(100):
                decide(chain)
            assert len(logs) == 2
            self.clock.advance(60)
            decide(chain)
        assert texts(logs)[2:] == [
            f"policy {name}; counted as DUNNO (99 times more since this was last logged)"
            for name in ("scripted: x", "other: y")
        ]


class TestDeadline(ChainTests):
    def test_fail_action(self) -> None:
        """At the time limit the fail action holds; what the policy says later is left alone."""
        for late in (lambda d: d.callback(b"OK"), lambda d: d.errback(TemporaryError("late"))):
            answer = Deferred[bytes]()
            policy = ScriptedPolicy(answer)
            policy.fail_action = b"DEFER x"
            decided = cast(Deferred[bytes], decide(self.chain(policy)))
            self.clock.advance(9.9)
            self.assertNoResult(decided)
            with capturedLogs() as logs:
                self.clock.advance(0.1)
                assert self.successResultOf(decided) == b"DEFER x"
                late(answer)
            assert texts(logs) == ["policy scripted: no action within 10 s; counted as DEFER x"]
            assert self.clock.getDelayedCalls() == []

    def test_cancelled(self) -> None:
        """A policy hears that its time is over: its Deferred is cancelled, once the action has been told."""
        heard: list[object] = []
        decided = decide(self.chain(ScriptedPolicy(Deferred[bytes](lambda _: heard.append(len(actions))))))
        assert isinstance(decided, Deferred)
        actions: list[bytes] = []
        decided.addCallback(actions.append)
        with capturedLogs() as logs:
            self.clock.advance(10)
        assert actions == [b"DUNNO"]
        assert heard == [1]
        assert len(logs) == 1

    def test_cannot_be_cancelled(self) -> None:
        """A policy that fails when it is cancelled takes the time limit from nobody."""

        def fail(_: object) -> None:
            raise ValueError("oops")

        chain = self.chain(ScriptedPolicy(Deferred[bytes](fail), Deferred[bytes](), Deferred[bytes]()))
        first, second = decide(chain), decide(chain)
        with capturedLogs() as logs:
            self.clock.advance(10)
        assert [self.wait_for(decided) for decided in (first, second)] == [b"DUNNO"] * 2
        assert "policy scripted could not be told that its time is over" in texts(logs)
        assert len(self.flushLoggedErrors(ValueError)) == 1
        third = decide(chain)
        self.clock.advance(10)
        assert self.wait_for(third) == b"DUNNO"

    def test_answers_when_cancelled(self) -> None:
        """An action that comes of being cancelled comes too late."""
        answer = Deferred[bytes](lambda cancelled: cancelled.callback(b"REJECT"))
        decided = decide(self.chain(ScriptedPolicy(answer)))
        self.clock.advance(10)
        assert self.wait_for(decided) == b"DUNNO"

    def test_rest_is_not_asked(self) -> None:
        """Of the policies that there was no time to ask, too, the fail actions hold: they may be there to stop mail."""
        slow = ScriptedPolicy(Deferred[bytes](), Deferred[bytes]())
        policies = [ScriptedPolicy(b"DUNNO"), slow, ScriptedPolicy(b"OK"), ScriptedPolicy(b"OK")]
        decided = decide(self.chain(*policies[:3]))
        with capturedLogs() as logs:
            self.clock.advance(10)
        assert self.wait_for(decided) == b"DUNNO"
        assert texts(logs) == [
            "policy scripted: no action within 10 s; counted as DUNNO",
            "policy scripted: not asked, as those before it took all the time; counted as DUNNO",
        ]
        policies[3].fail_action = b"DEFER"
        decided = decide(self.chain(*policies))
        self.clock.advance(10)
        assert self.wait_for(decided) == b"DEFER"
        assert policies[2].asked == policies[3].asked == []

    def test_of_the_request(self) -> None:
        """The time limit is that of a request, for all policies together."""
        first = Deferred[bytes]()
        decided = cast(Deferred[bytes], self.decide(first, Deferred[bytes]()))
        self.clock.advance(6)
        first.callback(b"DUNNO")
        self.clock.advance(3.9)
        self.assertNoResult(decided)
        self.clock.advance(0.1)
        assert self.successResultOf(decided) == b"DUNNO"

    def test_one_timer(self) -> None:
        """One timer serves all requests, each of which has its full time; answered ones do not matter."""
        answers = [Deferred[bytes]() for _ in range(4)]
        chain = self.chain(ScriptedPolicy(*answers))
        decided = []
        for _ in answers:
            decided.append(cast(Deferred[bytes], decide(chain)))
            self.clock.advance(1)
        assert len(self.clock.getDelayedCalls()) == 1
        answers[0].callback(b"OK")
        answers[2].callback(b"OK")
        self.clock.advance(6.5)
        self.assertNoResult(decided[1])
        self.clock.advance(0.5)
        assert self.successResultOf(decided[1]) == b"DUNNO"
        self.clock.advance(1.5)
        self.assertNoResult(decided[3])
        self.clock.advance(0.5)
        assert self.successResultOf(decided[3]) == b"DUNNO"
        assert self.clock.getDelayedCalls() == []

    def test_asked_again_at_the_deadline(self) -> None:
        """A client that asks again as soon as it is answered does not put off the deadlines of others."""
        chain = self.chain(ScriptedPolicy(Deferred[bytes](), Deferred[bytes](), Deferred[bytes]()))
        first = cast(Deferred[bytes], decide(chain))
        again = list[Deferred[bytes]]()
        first.addCallback(lambda _: again.append(cast(Deferred[bytes], decide(chain))))
        self.clock.advance(1)
        second = cast(Deferred[bytes], decide(chain))
        self.clock.advance(9)
        assert len(again) == 1
        self.clock.advance(1)
        assert self.successResultOf(second) == b"DUNNO"
        self.clock.advance(9)
        assert self.successResultOf(again[0]) == b"DUNNO"


class TestClose(ChainTests):
    def test_policies(self) -> None:
        """All policies are closed once, also when one of them fails to."""
        policies = [ScriptedPolicy(b"OK") for _ in range(3)]
        self.patch(policies[1], "close", lambda: 1 / 0)
        chain = self.chain(*policies)
        chain.close()
        chain.close()
        assert [policies[0].closed, policies[2].closed] == [1, 1]
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1

    def test_under_way(self) -> None:
        """Requests under way get their actions or reach their deadlines; no timer is left then."""
        answers = [Deferred[bytes](), Deferred[bytes]()]
        chain = self.chain(ScriptedPolicy(*answers))
        decided = [cast(Deferred[bytes], decide(chain)) for _ in answers]
        chain.close()
        answers[0].callback(b"OK")
        assert self.successResultOf(decided[0]) == b"OK"
        answers[1].callback(b"REJECT")
        assert self.successResultOf(decided[1]) == b"REJECT"
        assert self.clock.getDelayedCalls() == []
        chain = self.chain(ScriptedPolicy(Deferred[bytes]()))
        late = cast(Deferred[bytes], decide(chain))
        chain.close()
        self.clock.advance(10)
        assert self.successResultOf(late) == b"DUNNO"
        assert self.clock.getDelayedCalls() == []

    def test_not_asked_yet(self) -> None:
        """A request under way may have to ask the next policy yet; they are closed after the last one."""
        answers = [Deferred[bytes](), Deferred[bytes]()]
        policies = [ScriptedPolicy(*answers), ScriptedPolicy(b"REJECT")]
        chain = self.chain(*policies)
        decided = [cast(Deferred[bytes], decide(chain)) for _ in answers]
        chain.close()
        answers[0].callback(b"DUNNO")
        assert self.successResultOf(decided[0]) == b"REJECT"
        assert [policy.closed for policy in policies] == [0, 0]
        self.clock.advance(10)
        assert self.successResultOf(decided[1]) == b"DUNNO"
        assert [policy.closed for policy in policies] == [1, 1]
        assert self.clock.getDelayedCalls() == []

    def test_idle(self) -> None:
        """The timer of requests that were answered long ago ends with the chain."""
        answer = Deferred[bytes]()
        chain = self.chain(ScriptedPolicy(answer))
        decide(chain)
        answer.callback(b"OK")
        assert len(self.clock.getDelayedCalls()) == 1
        chain.close()
        assert self.clock.getDelayedCalls() == []
