"""Operations under way, which outlive the closing of what they use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class UnderWay:
    """Counts operations, and lets go of what they need after the last.

    :ivar count: an operation adds 1 when it begins; :meth:`done` takes it away.
    """

    def __init__(self, let_go: Callable[[], object]) -> None:
        """Begin with none.

        :param let_go: called once, when all is closed and nothing is under way.
        """
        self.count = 0
        self._let_go: Callable[[], object] | None = let_go
        self._closed = False

    def done(self, result: Any) -> Any:
        """Hear that an operation has come to its end, with this result, which is passed on."""
        self.count -= 1
        if self._closed:
            self.close()
        return result

    def close(self) -> None:
        """Let go as soon as nothing is under way. Idempotent."""
        self._closed = True
        let_go = self._let_go
        if not self.count and let_go is not None:
            self._let_go = None
            let_go()
