"""What ``socketmap-memcache map`` says to whoever runs it, on standard error."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

#: Seconds of work before progress is shown, and between two updates of it.
PROGRESS_INTERVAL = 1.0


class FatalError(Exception):
    """The command cannot go on; the text is what is printed after ``fatal:``."""


def printable(text: bytes | str) -> str:
    """Return a text as any terminal can show it: a question mark for each byte or character that it cannot."""
    if isinstance(text, str):
        text = text.encode(errors="surrogateescape")
    return "".join(
        c if c.isprintable() or c == "\n" else "?" for c in text.decode(errors="replace").replace("\ufffd", "?")
    )


class Console:
    """Prints messages as Postfix's commands do, and on a terminal how far the work is."""

    def __init__(self, name: str, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin.

        :param name: the command, for the beginning of each message.
        :param stream: standard error.
        """
        self._name = name
        self._stream = stream
        self._clock = clock
        self._shows_progress = stream.isatty()
        self._started = self._shown = clock()
        self._count = 0
        self._line = ""

    def log(self, severity: str, text: str) -> None:
        """Print a message: ``warning``, ``error``, ``info``..."""
        self.clear()
        self._stream.write(f"{self._name}: {severity}: {printable(text)}\n")
        self._stream.flush()

    def warn(self, text: str) -> None:
        """Print a warning."""
        self.log("warning", text)

    def fatal(self, text: str) -> None:
        """Print why the command ends."""
        self.log("fatal", text.rstrip("\n"))

    def progress(self, count: int) -> None:
        """Count what has been done, and show it from time to time."""
        self._count += count
        if not self._shows_progress:
            return
        now = self._clock()
        if now - self._shown >= PROGRESS_INTERVAL:
            self._shown = now
            rate = self._count / (now - self._started)
            self._line = f"{self._count:,} done, {rate:,.0f} a second"
            self._stream.write(f"\r{self._line}\x1b[K")
            self._stream.flush()

    def clear(self) -> None:
        """Take the progress line away."""
        if self._line:
            self._line = ""
            self._stream.write("\r\x1b[K")
            self._stream.flush()
