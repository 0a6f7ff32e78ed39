"""A limit to the processor time of a call that nothing else can stop.

A search with a regular expression may take for ever, and it is one step for the reactor. But Python's ``re`` looks for
signals while it works.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

Result = TypeVar("Result")


class TimeLimitError(Exception):
    """The call has been stopped."""


class _Armed:
    """Whether a signal is to stop what is running."""

    now = False


def call_with_limit(seconds: float, function: Callable[[bytes], Result], argument: bytes) -> Result:
    """Call a function; it may not call this one.

    Outside of the main thread, where Python does not handle signals, there is no limit.

    :param seconds: of processor time of this process.
    :raises TimeLimitError: it took longer, and has been stopped.
    """
    if threading.current_thread() is not threading.main_thread():
        return function(argument)
    if signal.getsignal(signal.SIGVTALRM) is not _stop:
        signal.signal(signal.SIGVTALRM, _stop)
    try:
        _Armed.now = True
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
        return function(argument)
    finally:
        _Armed.now = False  # before the rest: a signal that comes now is too late to stop anything
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _stop(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001
    if _Armed.now:
        raise TimeLimitError
