"""The way of log events from a worker to the log of its parent: a line of JSON each, with the text."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from contextlib import suppress
from threading import RLock

from twisted.logger import (
    FilteringLogObserver,
    ILogObserver,
    LogEvent,
    Logger,
    LogLevel,
    LogLevelFilterPredicate,
    eventAsText,
)
from zope.interface import implementer

#: Bytes of an event, at most; what is longer is left out.
EVENT_LIMIT = 8 * 1024 * 1024

# What of an event is sent as it is.
_SENT = ("log_time", "log_namespace", "log_system")

#: Bytes that a pipe holds until the parent reads them, where that can be set (Linux): the most without privileges.
PIPE_SIZE = 1024 * 1024


class LinePipe:
    """The writing end of a pipe. It never waits for the reader: lines that do not fit in are left out, and counted."""

    def __init__(self, descriptor: int) -> None:
        """Take over a descriptor, which stays the caller's to close."""
        os.set_blocking(descriptor, False)
        with suppress(AttributeError, OSError):
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        self._descriptor = descriptor
        self._rest = b""  # of a line of which a part has been written
        self._lost = 0
        self._lock = RLock()  # threads log, too, and the handlers of signals in the midst of it

    def write(self, line: bytes) -> None:
        """Write a line, if it fits in; and before it, how many did not."""
        with self._lock:
            if self._rest:
                self._rest = self._write(self._rest)
            if self._rest:
                self._lost += 1
                return
            notice = b"%d lines of the log are lost: it was not read\n" % self._lost if self._lost else b""
            rest = self._write(notice + line)
            if len(rest) == len(notice) + len(line):
                self._lost += 1
            else:
                self._rest, self._lost = rest, 0

    def _write(self, data: bytes) -> bytes:
        """Write what fits in; return the rest."""
        try:
            return data[os.write(self._descriptor, data) :]
        except OSError:  # it is full, or the parent is gone
            return data


def sending_observer(write: Callable[[bytes], object]) -> ILogObserver:
    """Give what writes events for :class:`LogReader`, a line each; not those that are for debugging only."""

    @implementer(ILogObserver)
    def send(event: LogEvent) -> None:
        # Not Twisted's own form of JSON, which has each value twice: lines of decisions come by the thousand.
        sent = {name: event.get(name) for name in _SENT}
        sent["log_level"] = event["log_level"].name
        sent["text"] = eventAsText(event, includeTimestamp=False, includeSystem=False)
        write(json.dumps(sent, default=str).encode() + b"\n")

    return FilteringLogObserver(send, [LogLevelFilterPredicate(defaultLogLevel=LogLevel.info)])


class LogReader:
    """Takes the bytes that a worker has written, in any chunks, and publishes the events in them."""

    _log = Logger()

    def __init__(self, publish: Callable[[LogEvent], object]) -> None:
        """:param publish: gets each event."""
        self._publish = publish
        self._held = bytearray()  # of a line whose end has not come

    def feed(self, data: bytes) -> None:
        """Take what was received. A line that is no event is shown as it is."""
        begin = 0
        while (end := data.find(b"\n", begin)) >= 0:
            self._held += data[begin:end]
            begin = end + 1
            self.end()
        self._held += data[begin:]
        if len(self._held) > EVENT_LIMIT:
            self._held.clear()
            self._log.error("a log event of a worker is longer than {limit} bytes; left out", limit=EVENT_LIMIT)

    def end(self) -> None:
        """Hear that there is no more of the line that has been begun."""
        line = bytes(self._held)
        self._held.clear()
        if line:
            self._read(line)

    def _read(self, line: bytes) -> None:
        try:
            event: LogEvent = json.loads(line)
            event["log_level"] = LogLevel.lookupByName(event["log_level"])
        except Exception:  # noqa: BLE001 (each kind of garbage has its own)
            self._log.warn("a worker says: {text}", text=line[:1000].decode(errors="backslashreplace"))
            return
        event["log_format"] = "{text}"
        self._publish(event)
