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


class _Alarm:
    """What the signal finds.

    :cvar installed: whether the signal is handled here.
    :cvar armed: whether it is to stop what is running.
    """

    installed = False
    armed = False


def call_with_limit(seconds: float, function: Callable[[bytes], Result], argument: bytes) -> Result:
    """Call a function; it may not call this one.

    Outside of the main thread, where Python does not handle signals, there is no limit.

    :param seconds: of processor time of this process.
    :raises TimeLimitError: it took longer, and has been stopped.
    """
    if threading.current_thread() is not threading.main_thread():
        return function(argument)
    if not _Alarm.installed:
        signal.signal(signal.SIGVTALRM, _stop)
        _Alarm.installed = True
    try:
        _Alarm.armed = True
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
        return function(argument)
    finally:
        _Alarm.armed = False  # before the rest: a signal that comes now is too late to stop anything
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _stop(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001
    if _Alarm.armed:
        raise TimeLimitError
