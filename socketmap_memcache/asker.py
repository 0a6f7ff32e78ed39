"""Answers without a Deferred, for the look-ups themselves: a Deferred would take as long as the rest of a look-up."""

from __future__ import annotations

from typing import Any
from typing import Protocol as Structure

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure


class Asker(Structure):
    """Somebody who asked for something, and hears of it once: by one of these methods, which must not raise."""

    def answered(self, value: Any, token: Any, /) -> object:
        """Hear what came of it: the value that was looked up, ``None`` if there is none.

        :param token: what the asker gave with the question.
        """

    def failed(self, failure: Failure, token: Any, /) -> object:
        """Hear that there is no answer."""


class _Firing:
    """Fires the Deferred that was given as token."""

    def answered(self, value: Any, token: Deferred[Any]) -> None:
        token.callback(value)

    def failed(self, failure: Failure, token: Deferred[Any]) -> None:
        token.errback(failure)


#: The asker for those who want a Deferred after all, which is the token.
FIRING = _Firing()


def tell(answer: Deferred[Any], asker: Asker, token: Any) -> None:
    """Tell an asker what a Deferred fires with."""
    answer.addCallbacks(asker.answered, asker.failed, callbackArgs=(token,), errbackArgs=(token,))


def is_known(answer: Deferred[Any]) -> bool:
    """Say whether a Deferred has its result already, and it is no failure: to look at it takes less than a callback."""
    return answer.called and not isinstance(answer.result, (Deferred, Failure))
