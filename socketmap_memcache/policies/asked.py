"""Asks any policy without a Deferred, where the policy can be asked so; and the reverse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast
from typing import Protocol as Structure

from twisted.internet.defer import Deferred

from socketmap_memcache.asker import FIRING, Asker, tell
from socketmap_memcache.policies.interface import IAskedPolicy, IPolicy, Promise, Request


class DecideFor(Structure):
    """:meth:`IAskedPolicy.decide_for`, of any policy."""

    def __call__(self, request: Request, asker: Asker, token: Any, /) -> Promise | None:
        """Ask for a decision; raises where the policy does."""


def decide_for(policy: IPolicy) -> DecideFor:
    """Give the way to ask a policy that takes the least time."""
    if IAskedPolicy.providedBy(policy):
        return cast(DecideFor, policy.decide_for)

    def decide(request: Request, asker: Asker, token: Any) -> Promise | None:
        answer = policy.decide(request)
        if isinstance(answer, Deferred):
            tell(answer, asker, token)
            return answer
        asker.answered(answer, token)
        return None

    return decide


def deferred(ask: Callable[[Asker, Any], Promise | None]) -> Deferred[bytes]:
    """Ask, and give a Deferred that fires with what the asker is told; to cancel it cancels the promise.

    :param ask: takes the asker and the token.
    """
    promise: Promise | None = None

    def cancel(_: Deferred[bytes]) -> None:
        if promise is not None:
            promise.cancel()

    answer: Deferred[bytes] = Deferred(cancel)
    promise = ask(FIRING, answer)
    return answer
