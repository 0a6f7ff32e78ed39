"""What inputs are given to."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from random import Random
from typing import Any

import attrs

CORPUS = Path(__file__).with_name("corpus")

#: Called with what the target has opened, an input, and what choices are made with; raises anything for a fault.
Check = Callable[[Any, bytes, Random], None]


@attrs.frozen
class Target:
    """A codec or a connection.

    :ivar corpora: the directories of its samples.
    :ivar check: is called with each input.
    :ivar open: gives what the check needs, a context manager; at its end nothing may be left of it.
    :ivar share: of the number of inputs that a codec or a listener gets.
    """

    name: str
    corpora: tuple[str, ...]
    check: Check
    open: Callable[[], AbstractContextManager[Any]] = nullcontext
    share: float = 1

    def samples(self) -> list[bytes]:
        """Return what inputs are made of."""
        return [path.read_bytes() for corpus in self.corpora for path in sorted((CORPUS / corpus).iterdir())]
