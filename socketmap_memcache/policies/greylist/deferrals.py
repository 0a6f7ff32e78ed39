"""What this process has deferred: a table that forgets must not keep a mail waiting for ever."""

from __future__ import annotations

from collections import OrderedDict

#: Triplets that are remembered, at most; each takes some 300 bytes.
LIMIT = 100_000

#: How often the table may have forgotten a triplet until it passes.
LAPSES = 2

# Triplets that are forgotten with each one that is noted, at most: a hundred thousand at once would take 0.1 s.
_TRIMMED = 10


class Deferrals:
    """Remembers the triplets that were deferred as new, those deferred last.

    :ivar window: seconds after which a deferral is of no interest any more.
    """

    def __init__(self, window: int, limit: int = LIMIT) -> None:
        """Begin without any.

        :param window: see the class.
        :param limit: how many are remembered.
        """
        self.window = window
        self._limit = limit
        self._entries: OrderedDict[bytes, tuple[int, int]] = OrderedDict()  # first deferred, lapses; oldest first

    def add(self, key: bytes, now: int, delay: int) -> int | None:
        """Note that a triplet is about to be deferred as new, because the table does not know it.

        :param delay: seconds after which it could have passed.
        :return: when it was first deferred, if it has to pass now: it has waited, and the table has forgotten that for
            the second time. Else ``None``.
        """
        first, lapses = self._entries.get(key, (now, 0))
        if not 0 <= now - first <= self.window:
            del self._entries[key]
            first, lapses = now, 0
        elif now - first >= delay and key in self._entries:
            lapses += 1
        self._entries[key] = first, lapses
        self._trim(now)
        return first if lapses >= LAPSES and now - first >= delay else None

    def discard(self, key: bytes) -> None:
        """Forget a triplet: it has passed."""
        self._entries.pop(key, None)

    def __len__(self) -> int:
        return len(self._entries)

    def _trim(self, now: int) -> None:
        entries = self._entries
        for _ in range(_TRIMMED):
            if len(entries) <= self._limit and now - entries[next(iter(entries))][0] <= self.window:
                break
            entries.popitem(last=False)
