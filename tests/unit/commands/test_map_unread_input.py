from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any, cast

import pytest
import twisted.internet
from twisted.internet.defer import Deferred, fail

from socketmap_memcache.commands import main
from socketmap_memcache.commands.map_console import FatalError
from socketmap_memcache.commands.map_query import Query
from socketmap_memcache.commands.map_streams import Source
from tests.unit.deferreds import result_of

from .map_bench import Bench, Input, Table
from .reactor import Reactor


def test_nothing_read_after_a_failure() -> None:
    """After a look-up that failed no more input is read."""
    keys = Input(ended=False)
    done = Bench(Table("t")).query().all(cast("Source", keys))
    waiting, keys.waiting = keys.waiting, None
    assert waiting is not None
    waiting.callback(b"fail\n")
    with pytest.raises(FatalError):
        result_of(done)
    assert keys.waiting is None


def test_thread_that_waits_for_input(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """A thread that waits for input does not hold up the end after a failure."""

    class Waiting(Reactor):
        def getThreadPool(self) -> Any:
            return SimpleNamespace(callInThreadWithCallback=lambda *_: None)

    def fails(_query: Query, keys: Source) -> Deferred[int]:
        keys.read()
        return fail(FatalError("broken"))

    ends: list[int] = []
    monkeypatch.setattr(twisted.internet, "reactor", Waiting(), raising=False)
    monkeypatch.setattr(Query, "all", fails)
    monkeypatch.setattr(os, "_exit", ends.append)
    main(["map", "-q", "-", "static:x"])
    assert ends == [1]
    assert "fatal: broken" in capfd.readouterr().err


def test_process_with_input_left_open() -> None:
    """The command ends at the first look-up that fails, also where whoever writes its input waits for its end."""
    command = [sys.executable, "-c", "import sys; from socketmap_memcache.commands import main; sys.exit(main())"]
    with subprocess.Popen(
        [*command, "map", "-q", "-", "fail:x"], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(b"a\n")
        process.stdin.flush()
        try:
            assert process.wait(timeout=30) == 1
        finally:
            process.kill()
        assert b"fatal: table fail:x: query error" in process.stderr.read()
