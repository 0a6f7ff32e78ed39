"""What the right answers are: the history of each key, and of each triplet.

All times are of ``time.monotonic``, which processes of one host have in common.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum

import attrs

#: Seconds that a triplet may have to wait longer, or less long, than the delay: its record has whole seconds.
ROUNDING = 1.0


class Verdict(Enum):
    """On an answer."""

    RIGHT = "right"
    OLD = "a value that had been changed; a cache may have it for its ttl"
    FAILED = "a failure that says so"
    MISSING = "a false NOTFOUND"
    WRONG = "a value that the key never had at that time"
    LOST = "an update was acknowledged, and is not known"


@attrs.define
class Version:
    """One change of a key.

    :ivar value: ``None`` where the change is a delete.
    :ivar acknowledged: when it was; ``None``: not yet, or it failed, and may be in effect all the same.
    """

    value: bytes | None
    sent: float
    acknowledged: float | None = None


class Keys:
    """The keys of a map. A key that is not here is missing."""

    def __init__(self) -> None:
        self._histories: dict[bytes, list[Version]] = {}

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._histories)

    def change(self, key: bytes, value: bytes | None, sent: float) -> Version:
        """Note a change that is about to be asked for; its time of acknowledgement is set later."""
        version = Version(value, sent)
        # The list is replaced, not changed: others may be reading it.
        self._histories[key] = [*self._histories.get(key, [_ABSENT]), version][-200:]
        return version

    def judge(self, key: bytes, value: bytes | None, asked: float, answered: float) -> tuple[Verdict, float]:
        """Judge an answer.

        :param value: ``None`` for NOTFOUND.
        :return: the verdict, and how many seconds before the question an old value had been changed.
        """
        history = self._histories.get(key, [_ABSENT])
        last = max((place for place, each in enumerate(history) if _was_known(each, asked)), default=0)
        if any(each.value == value and each.sent <= answered for each in history[last:]):
            return Verdict.RIGHT, 0.0
        if value is None:
            return Verdict.MISSING, 0.0
        for place in range(last - 1, -1, -1):
            if history[place].value == value:
                changed = min(each.acknowledged for each in history[place + 1 :] if each.acknowledged is not None)
                return Verdict.OLD, asked - changed
        return Verdict.WRONG, 0.0


def _was_known(version: Version, time: float) -> bool:
    return version.acknowledged is not None and version.acknowledged <= time


_ABSENT = Version(None, float("-inf"), float("-inf"))


@attrs.define
class Triplet:
    """What a mail has in common with its next attempt. One client at a time asks for it.

    :ivar asked: when it was first asked for.
    :ivar deferred: when it was first answered that it is deferred.
    :ivar passes: how often it has passed.
    """

    number: int
    asked: float = float("inf")
    deferred: float = float("inf")
    passes: int = 0

    def judge(self, action: bytes, delay: float, asked: float, answered: float, *, clock: bool = True) -> Verdict:
        """Judge the action that an attempt got, and remember it.

        :param clock: whether the clock of the service is right. If not, each action may be right, and is forgotten.
        """
        if action.startswith(b"WARN"):
            return Verdict.FAILED
        passed = action == b"DUNNO" or action.startswith(b"PREPEND X-Greylist: delayed ")
        if not passed and not action.startswith(b"DEFER"):
            return Verdict.WRONG
        if not clock:
            self.forgive()
            return Verdict.RIGHT
        self.asked = min(self.asked, asked)
        if passed:
            self.passes += 1
            return Verdict.RIGHT if answered - self.asked >= delay - ROUNDING else Verdict.WRONG
        verdict = Verdict.LOST if self.is_due(delay, asked) else Verdict.RIGHT
        self.deferred = min(self.deferred, answered)
        return verdict

    def is_due(self, delay: float, now: float) -> bool:
        """Say whether it has to pass, because it was deferred long enough ago."""
        return now - self.deferred >= delay + ROUNDING

    def forgive(self) -> None:
        """Let it be deferred anew, or pass: the clock was wrong."""
        self.asked, self.deferred = float("-inf"), float("inf")
