from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from socketmap_memcache.descriptors import keep_standard, left_for_clients, raise_limit


def test_keep_standard() -> None:
    """Nothing gets the number of a standard stream that was closed."""
    script = "import os\nfrom socketmap_memcache.descriptors import keep_standard\nkeep_standard()\n"
    script += "raise SystemExit(os.open(os.devnull, os.O_RDONLY) < 3 or not os.get_inheritable(1))"
    shell = ["/bin/sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", script]
    assert subprocess.run(shell, check=False).returncode == 0
    keep_standard()  # where they are open, nothing changes


class System:
    """Has limits, as getrlimit(2) tells, and one of its own above which it lets nobody go."""

    def __init__(self, soft: int, hard: int, most: int = 2**20) -> None:
        self.limits = (soft, hard)
        self.most = most

    def getrlimit(self, which: int) -> tuple[int, int]:
        assert which == resource.RLIMIT_NOFILE
        return self.limits

    def setrlimit(self, which: int, limits: tuple[int, int]) -> None:
        assert which == resource.RLIMIT_NOFILE
        if limits[0] > self.most or limits[0] == resource.RLIM_INFINITY:
            raise ValueError
        self.limits = limits


@pytest.mark.parametrize(
    "system, expected",
    [
        (System(1024, 4096), 4096),
        (System(4096, 4096), 4096),
        (System(1024, resource.RLIM_INFINITY), 1024),
        (System(resource.RLIM_INFINITY, resource.RLIM_INFINITY), 2**31 - 1),
    ],
)
def test_raise_limit(system: System, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process gets what it may have; where that cannot be had, its limit stays."""
    monkeypatch.setattr(resource, "getrlimit", system.getrlimit)
    monkeypatch.setattr(resource, "setrlimit", system.setrlimit)
    assert raise_limit() == expected


def test_left_for_clients() -> None:
    """Some descriptors are kept for other purposes, but not most of them."""
    assert [left_for_clients(limit) for limit in (1024, 200, 20)] == [924, 100, 10]
