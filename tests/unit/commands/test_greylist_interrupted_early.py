from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import twisted.internet

from socketmap_memcache.commands import greylist_change, greylist_session, main
from socketmap_memcache.commands.greylist_session import Session

from .greylist_bench import reactor


def test_interrupted_early(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """^C while the table of a change is opened: nothing is changed, and the signal is passed on."""
    config, seen = tmp_path / "main.cf", list[Any]()
    cf = tmp_path / "x.cf"
    cf.write_text("memcache = memory:\n")
    config.write_text(f"policies = greylist\ngreylist_table = memcache:{cf}\n")
    open_session: Callable[..., Session] = greylist_session.open_session

    def interrupted(*arguments: Any) -> Session:
        signal.raise_signal(signal.SIGINT)
        return open_session(*arguments)

    monkeypatch.setattr(twisted.internet, "reactor", reactor(), raising=False)
    monkeypatch.setattr(greylist_session, "open_session", interrupted)
    monkeypatch.setattr(greylist_change, "release", lambda *_: seen.append("released"))
    monkeypatch.setattr(os, "kill", lambda _pid, number: seen.append(number))
    assert main(["greylist", "release", "192.0.2.7", "a@b", "c@d", "--config", str(config)]) == 1
    assert seen == [signal.SIGINT]
