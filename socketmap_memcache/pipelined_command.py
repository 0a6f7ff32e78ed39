"""What commands have in common that go out without waiting for the replies to those before."""

from __future__ import annotations

from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from socketmap_memcache.asker import FIRING, Asker, tell
from socketmap_memcache.errors import TableError


class PipelinedCommand:
    """One command, from the request for it to its result.

    :ivar wire: its bytes.
    :ivar asker: hears of the result.
    :ivar token: is for the asker.
    :ivar tries: how many tries have failed.
    :ivar deadline: when it, or its present try, has failed, in reactor seconds.
    """

    __slots__ = ("asker", "deadline", "token", "tries", "wire")

    _log = Logger()

    def __init__(self, wire: bytes, asker: Asker, token: Any) -> None:
        """Make a command that was not sent yet."""
        self.wire = wire
        self.asker = asker
        self.token = token
        self.tries = 0
        self.deadline = 0.0

    def fail(self, error: TableError) -> None:
        """Hand over the failure: no try is left."""
        try:
            self.asker.failed(Failure(error), self.token)
        except Exception:  # noqa: BLE001 (the server and all others have nothing to do with it)
            self._log.failure("a failed command led to an unforeseen error")

    def settled(self) -> Deferred[None]:
        """Give a Deferred that fires when the result or the failure has been handed over."""
        answer: Deferred[Any] = Deferred()
        tell(answer, self.asker, self.token)
        self.asker, self.token = FIRING, answer
        return answer.addCallbacks(lambda _: None, partial(self._log.failure, "an answer led to an unforeseen error"))
