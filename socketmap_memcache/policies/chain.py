"""Asks the policies of a site in their order."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from socketmap_memcache.errors import SocketmapMemcacheError
from socketmap_memcache.log_limit import LogLimit
from socketmap_memcache.policies.asked import decide_for
from socketmap_memcache.policies.interface import DUNNO, IPolicy, Promise, Request
from socketmap_memcache.tables.folding import valid

_ACTION = re.compile(rb"[^ \t\r\n\0][^\n\0]*")
_DUNNO = re.compile(rb"dunno(?![^ \t])", re.IGNORECASE)

# Actions that need not be looked at again: policies give the same few again and again.
_ACTIONS = 100


class PolicyError(SocketmapMemcacheError):
    """A policy gave no answer, or one that Postfix could not use."""


def well_formed(action: object) -> bool:
    """Return whether Postfix reads an action whole: one line of UTF-8 that begins with a word, without NUL."""
    return isinstance(action, bytes) and _is_well_formed(action)


@lru_cache(_ACTIONS)
def _is_well_formed(action: bytes) -> bool:
    return _ACTION.fullmatch(action) is not None and valid(action)


@lru_cache(_ACTIONS)
def _is_dunno(action: bytes) -> bool:
    """Say whether an action leaves the decision to others, perhaps with a text."""
    return _DUNNO.match(action) is not None


#: Called with an action, and with the token that came with the request for it.
Decided = Callable[[bytes, Any], object]


class _Asked:
    """A request on its way through the policies.

    :ivar place: of the policy that is asked.
    :ivar promise: of that policy's answer, where it takes its time.
    :ivar deadline: in reactor seconds, once it is known that it takes time.
    :ivar done: whether the request has its action.
    """

    __slots__ = ("deadline", "decided", "done", "place", "promise", "request", "token")

    def __init__(self, request: Request, decided: Decided, token: object) -> None:
        self.request = request
        self.place = 0
        self.promise: Promise | None = None
        self.deadline = 0.0
        self.done = False
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
        self._ways = [decide_for(policy) for policy in self.policies]
        self._reactor = reactor
        self._timeout = timeout
        self._waiting: OrderedDict[_Asked, None] = OrderedDict()  # the oldest first
        self._timer: IDelayedCall | None = None  # one for all; it may run on while nothing waits
        self._closed = False
        self._log_limits = [LogLimit(reactor) for _ in self.policies]

    def decide(self, request: Request, decided: Decided, token: object) -> None:
        """Decide on a request.

        :param decided: called once, at once or later, with the action and the token. It must not raise.
        """
        asked = _Asked(request, decided, token)
        self._ask(asked)
        if not asked.done:
            asked.deadline = self._reactor.seconds() + self._timeout
            self._waiting[asked] = None
            if self._timer is None:
                self._timer = self._reactor.callLater(self._timeout, self._expire)

    def close(self) -> None:
        """Close the policies, after the requests under way, which may have to ask them yet. Idempotent."""
        if not self._closed:
            self._closed = True
            if not self._waiting:
                self._end()

    # One policy after the other.

    def _ask(self, asked: _Asked) -> None:
        place = asked.place
        if place == len(self.policies):
            self._finish(asked, DUNNO)
            return
        try:
            promise = self._ways[place](asked.request, self, asked)
        except Exception:  # noqa: BLE001 (whatever a policy does, Postfix gets a reply)
            if asked.done or asked.place != place:
                self._log.failure("policy {policy} has failed after its answer", policy=self.policies[place].name)
            else:
                self.failed(Failure(), asked)
            return
        if asked.place == place:
            asked.promise = promise

    def answered(self, action: bytes, asked: _Asked) -> None:
        """Hear the answer of the policy that is asked."""
        if not asked.done:
            self._go_on(asked, self._judge(asked.place, action))

    def failed(self, failure: Failure, asked: _Asked) -> None:
        """Hear that the policy that is asked has failed."""
        if not asked.done:
            self._go_on(asked, self._failed(asked.place, failure))

    def _go_on(self, asked: _Asked, action: bytes | None) -> None:
        if action is None:
            asked.place += 1
            self._ask(asked)
        else:
            self._finish(asked, action)

    def _judge(self, place: int, action: bytes) -> bytes | None:
        """Give the action that the answer of a policy is; none means that others decide."""
        if action == DUNNO:
            return None
        if not well_formed(action):
            return self._failed(place, Failure(PolicyError(f"malformed action {action!r:.200}")))
        return None if _is_dunno(action) else action

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
        return None if _is_dunno(action) else action

    def _finish(self, asked: _Asked, action: bytes) -> None:
        asked.done = True
        self._waiting.pop(asked, None)
        asked.decided(action, asked.token)
        if self._closed and not self._waiting:
            self._end()

    # Policies that take too long.

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

    def _cancel(self, asked: _Asked) -> None:
        try:
            if asked.promise is not None:
                asked.promise.cancel()
        except Exception:  # noqa: BLE001 (without the timer, which comes after this, others would wait for ever)
            name = self.policies[asked.place].name
            self._log.failure("policy {policy} could not be told that its time is over", policy=name)

    def _overdue(self, asked: _Asked) -> bytes:
        reason = f"no action within {self._timeout:g} s"
        for place in range(asked.place, len(self.policies)):
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
