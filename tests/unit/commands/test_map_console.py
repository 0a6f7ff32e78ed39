from __future__ import annotations

import io

from twisted.internet.task import Clock

from socketmap_memcache.commands.map_console import Console, printable


def test_printable() -> None:
    """A message has nothing that could upset a terminal."""
    assert printable(b"a\x1b[\xff\tb\n\xc3\xbc") == "a?[??b\n\u00fc"
    assert printable("a\udcffb") == "a?b"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress() -> None:
    """On a terminal long work shows how far it is, once a second, and messages do not run into that line."""
    clock = Clock()
    terminal = Terminal()
    console = Console("map", terminal, clock.seconds)
    console.progress(10)
    assert terminal.getvalue() == ""
    clock.advance(2)
    console.progress(2990)
    console.progress(1)
    assert terminal.getvalue() == "\r3,000 done, 1,500 a second\x1b[K"
    terminal.truncate(0)
    terminal.seek(0)
    console.warn("careful")
    console.clear()
    assert terminal.getvalue() == "\r\x1b[Kmap: warning: careful\n"
