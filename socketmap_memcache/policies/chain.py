"""Asks the policies of a site in their order."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from socketmap_memcache.errors import SocketmapMemcacheError
from socketmap_memcache.policies.interface import DUNNO, IPolicy, Request
from socketmap_memcache.policies.log_limit import LogLimit
from socketmap_memcache.tables.folding import valid

_ACTION = re.compile(rb"[^ \t\r\n\0][^\n\0]*")
_DUNNO = re.compile(rb"dunno(?![^ \t])", re.IGNORECASE)


class PolicyError(SocketmapMemcacheError):
    """A policy gave no answer, or one that Postfix could not use."""


def well_formed(action: object) -> bool:
    """Return whether Postfix reads an action whole: one line of UTF-8 that begins with a word, without NUL."""
    return isinstance(action, bytes) and _ACTION.fullmatch(action) is not None and valid(action)


#: Called with an action, and with the token that came with the request for it.
Decided = Callable[[bytes, Any], object]


class _Waiting:
    """A request for which a policy takes its time.

    :ivar place: of that policy.
    :ivar answer: what it promised.
    :ivar deadline: in reactor seconds.
    """

    __slots__ = ("answer", "deadline", "decided", "place", "request", "token")

    def __init__(self, request: Request, place: int, deadline: float, decided: Decided, token: object) -> None:
        self.answer: Deferred[bytes]
        self.request = request
        self.place = place
        self.deadline = deadline
        self.decided = decided
        self.token = token


class PolicyChain:
    """Policies, of which the first that does not answer ``DUNNO`` decides.

    Whatever a policy does, each request gets an action, within the time limit: where a policy has failed, its fail
    action. When the time is over, the policies that have not been asked yet count as failed, too: to pass them by
    would let pass what one of them is there to stop.
    """

    _log = Logger()

    def __init__(self, policies: Sequence[IPolicy], reactor: Any, timeout: float) -> None:
        """Make a chain; without policies it answers ``DUNNO``.

        :param timeout: seconds that a request may take, all policies together.
        """
        self.policies = tuple(policies)
        self._reactor = reactor
        self._timeout = timeout
        self._waiting: OrderedDict[_Waiting, None] = OrderedDict()  # the oldest first
        self._timer: IDelayedCall | None = None  # one for all; it may run on while nothing waits
        self._closed = False
        self._log_limits = [LogLimit(reactor) for _ in self.policies]

    def decide(self, request: Request, decided: Decided, token: object) -> None:
        """Decide on a request.

        :param decided: called once, at once or later, with the action and the token. It must not raise.
        """
        for place in range(len(self.policies)):
            answer = self._ask(place, request)
            if answer is None:
                continue
            if isinstance(answer, Deferred):
                deadline = self._reactor.seconds() + self._timeout
                self._wait(_Waiting(request, place, deadline, decided, token), answer)
            else:
                decided(answer, token)
            return
        decided(DUNNO, token)

    def close(self) -> None:
        """Close the policies, after the requests under way, which may have to ask them yet. Idempotent."""
        if not self._closed:
            self._closed = True
            if not self._waiting:
                self._end()

    # One policy's answer.

    def _ask(self, place: int, request: Request) -> bytes | Deferred[bytes] | None:
        """Ask a policy; no action means that others decide."""
        try:
            answer = self.policies[place].decide(request)
        except Exception:  # noqa: BLE001 (whatever a policy does, Postfix gets a reply)
            return self._failed(place, Failure())
        return answer if isinstance(answer, Deferred) else self._judge(place, answer)

    def _judge(self, place: int, action: bytes) -> bytes | None:
        if action == DUNNO:
            return None
        if not well_formed(action):
            return self._failed(place, Failure(PolicyError(f"malformed action {action!r:.200}")))
        return None if _DUNNO.match(action) else action

    def _failed(self, place: int, failure: Failure) -> bytes | None:
        policy, limit = self.policies[place], self._log_limits[place]
        action = policy.fail_action if well_formed(policy.fail_action) else DUNNO
        if limit.due():
            text = "policy {policy}: {reason}; counted as {action}{more}"
            fields: dict[str, Any] = {
                "policy": policy.name,
                "reason": failure.value,
                "action": action.decode(),
                "more": limit.more(),
            }
            if failure.check(SocketmapMemcacheError):
                self._log.error(text, **fields)
            else:
                self._log.failure(text, failure, **fields)
        return None if _DUNNO.match(action) else action

    # Policies that take their time.

    def _wait(self, waiting: _Waiting, answer: Deferred[bytes]) -> None:
        self._waiting[waiting] = None
        if self._timer is None:
            self._timer = self._reactor.callLater(self._timeout, self._expire)
        self._await(waiting, answer)

    def _await(self, waiting: _Waiting, answer: Deferred[bytes]) -> None:
        waiting.answer = answer
        answer.addCallbacks(self._answered, self._answer_failed, callbackArgs=(waiting,), errbackArgs=(waiting,))

    def _answered(self, action: bytes, waiting: _Waiting) -> None:
        if waiting in self._waiting:
            self._go_on(waiting, self._judge(waiting.place, action))

    def _answer_failed(self, failure: Failure, waiting: _Waiting) -> None:
        if waiting in self._waiting:
            self._go_on(waiting, self._failed(waiting.place, failure))

    def _go_on(self, waiting: _Waiting, action: bytes | None) -> None:
        """Ask the next policies, until one decides."""
        while action is None:
            waiting.place += 1
            if waiting.place == len(self.policies):
                action = DUNNO
                break
            answer = self._ask(waiting.place, waiting.request)
            if isinstance(answer, Deferred):
                self._await(waiting, answer)
                return
            action = answer
        self._finish(waiting, action)

    def _finish(self, waiting: _Waiting, action: bytes) -> None:
        del self._waiting[waiting]
        waiting.decided(action, waiting.token)
        if self._closed and not self._waiting:
            self._end()

    def _expire(self) -> None:
        now = self._reactor.seconds()
        while self._waiting:
            oldest = next(iter(self._waiting))
            if oldest.deadline > now:
                self._timer = self._reactor.callLater(oldest.deadline - now, self._expire)
                return
            self._finish(oldest, self._overdue(oldest))
            self._cancel(oldest)
        self._timer = None

    def _cancel(self, waiting: _Waiting) -> None:
        try:
            waiting.answer.cancel()
        except Exception:  # noqa: BLE001 (without the timer, which comes after this, others would wait for ever)
            name = self.policies[waiting.place].name
            self._log.failure("policy {policy} could not be told that its time is over", policy=name)

    def _overdue(self, waiting: _Waiting) -> bytes:
        reason = f"no action within {self._timeout:g} s"
        for place in range(waiting.place, len(self.policies)):
            action = self._failed(place, Failure(PolicyError(reason)))
            if action is not None:
                return action
            reason = "not asked, as those before it took all the time"
        return DUNNO

    def _end(self) -> None:
        for policy in self.policies:
            try:
                policy.close()
            except Exception:  # noqa: BLE001 (the others have to be closed, too)
                self._log.failure("policy {policy} could not be closed", policy=policy.name)
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
            self._timer = None
