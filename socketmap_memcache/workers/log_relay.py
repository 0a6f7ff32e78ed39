"""The way of log events from a worker to the log of its parent: a line of JSON each."""

from __future__ import annotations

from collections.abc import Callable
from typing import IO

from twisted.logger import (
    FilteringLogObserver,
    ILogObserver,
    LogEvent,
    Logger,
    LogLevel,
    LogLevelFilterPredicate,
    eventFromJSON,
    jsonFileLogObserver,
)
from zope.interface import implementer

#: Bytes of an event, at most; what is longer is left out.
EVENT_LIMIT = 8 * 1024 * 1024


def sending_observer(file: IO[str]) -> ILogObserver:
    """Give what writes events to a file for :class:`LogReader`; not those that are for debugging only."""
    write = jsonFileLogObserver(file, recordSeparator="")

    @implementer(ILogObserver)
    def send(event: LogEvent) -> None:
        write(_with_traceback(event) if "log_failure" in event else event)

    return FilteringLogObserver(send, [LogLevelFilterPredicate(defaultLogLevel=LogLevel.info)])


def _with_traceback(event: LogEvent) -> LogEvent:
    """Put the traceback of a failure into the text: a failure itself does not survive JSON."""
    sent = dict(event)
    sent["traceback"] = sent.pop("log_failure").getTraceback()
    sent["log_format"] = f"{sent.get('log_format') or 'Unhandled Error'}\n{{traceback}}"
    return sent


class LogReader:
    """Takes the bytes that a worker has written, in any chunks, and publishes the events in them."""

    _log = Logger()

    def __init__(self, publish: Callable[[LogEvent], object]) -> None:
        """:param publish: gets each event."""
        self._publish = publish
        self._held = b""

    def feed(self, data: bytes) -> None:
        """Take what was received. A line that is no event is shown as it is."""
        *lines, self._held = (self._held + data).split(b"\n")
        for line in lines:
            self._read(line)
        if len(self._held) > EVENT_LIMIT:
            self._held = b""
            self._log.error("a log event of a worker is longer than {limit} bytes; left out", limit=EVENT_LIMIT)

    def end(self) -> None:
        """Hear that there is no more."""
        if self._held:
            self._read(self._held)
            self._held = b""

    def _read(self, line: bytes) -> None:
        try:
            event = eventFromJSON(line.decode())
            if not isinstance(event, dict):
                raise TypeError
        except Exception:  # noqa: BLE001 (each kind of garbage has its own)
            self._log.warn("a worker says: {text}", text=line[:1000].decode(errors="backslashreplace"))
            return
        self._publish(event)
