"""What was logged, as text."""

from __future__ import annotations

from collections.abc import Iterable

from twisted.logger import LogEvent, formatEvent


def texts(events: Iterable[LogEvent]) -> list[str]:
    return [formatEvent(event) for event in events]
