from __future__ import annotations

import os
from pathlib import Path

import pytest

from socketmap_memcache.config.service import worker_count


def test_processors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """0 stands for a worker on each processor, also where the system does not say which the process may use."""
    path = tmp_path / "main.cf"
    path.write_text("workers = 0\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {1, 4, 5}, raising=False)
    assert worker_count(str(path), ()) == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert worker_count(str(path), ()) == 8
