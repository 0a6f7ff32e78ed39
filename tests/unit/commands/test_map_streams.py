from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from socketmap_memcache.commands import map_streams
from socketmap_memcache.commands.map_console import FatalError
from socketmap_memcache.commands.map_streams import Lines, Source
from tests.unit.deferreds import result_of

from .map_bench import Bench, Table, source
from .reactor import Reactor


def test_long_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line without an end is refused."""
    monkeypatch.setattr(map_streams, "LINE_LIMIT", 10)
    monkeypatch.setattr("socketmap_memcache.commands.map_changes.LINE_LIMIT", 10)
    bench = Bench(Table("t"))
    with pytest.raises(FatalError, match="more than 10 bytes"):
        result_of(bench.query().all(source(b"x" * 11)))
    with pytest.raises(FatalError, match="more than 10 bytes"):
        bench.update(b"x" * 11)


def test_source_stopped() -> None:
    """An input that is stopped has ended, also for who waits for it; what comes later is dropped."""

    class Waiting(Reactor):
        def getThreadPool(self) -> Any:
            return SimpleNamespace(callInThreadWithCallback=lambda done, *_work: calls.append(done))

    calls: list[Callable[[bool, Any], None]] = []
    stopped = Source(0, Waiting())
    block = stopped.read()
    stopped.stop()
    assert result_of(block) == b""
    calls[0](True, b"late")
    assert result_of(stopped.read()) == b""


def test_source_failed() -> None:
    """A failure to read is a failure."""
    with pytest.raises(OSError, match="Bad file descriptor"):
        result_of(Source(-1, Reactor()).read())


def test_lines_end() -> None:
    """An empty input has no lines, and one that ends with a newline no empty last line."""
    for text, expected in ((b"", []), (b"a\n", [b"a"]), (b"\n", [b""])):
        lines = Lines(source(text) if text else source())
        found = []
        while not lines.ended:
            more = result_of(lines.next())
            found += more
        assert found == expected
