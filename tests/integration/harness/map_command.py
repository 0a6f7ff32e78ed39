"""``socketmap-memcache map`` as a process, and what it has in common with postmap."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import attrs

from .processes import unmeasured

COMMAND = [str(Path(sys.executable).with_name("socketmap-memcache")), "map"]


@attrs.frozen
class Outcome:
    """What a command gave that should be the same for both."""

    status: int
    stdout: bytes
    messages: list[str]

    @classmethod
    def of(cls, done: subprocess.CompletedProcess[bytes]) -> Outcome:
        """Keep what should be the same: of messages their severity, where there are any."""
        words = [line.split(b": ") for line in done.stderr.splitlines()]
        return cls(done.returncode, done.stdout, sorted({word[1].decode() for word in words if len(word) > 2}))


def run_map(*arguments: str | bytes, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run it to its end."""
    argv = [*COMMAND, *arguments]
    return subprocess.run(argv, input=stdin or b"", env=unmeasured(), capture_output=True, check=False, timeout=60)
