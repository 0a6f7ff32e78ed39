"""Who changes the table: the process of :mod:`.writer`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


class Writer:
    """Has the process, tells it what to change, and hears what was acknowledged."""

    def __init__(self, table: str, environment: dict[str, str] | None) -> None:
        argv = [sys.executable, "-m", "tests.faults.writer", table]
        root = Path(__file__).parents[2]
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=root, text=True, bufsize=1
        )

    def send(self, key: bytes, value: bytes | None) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{key.decode()} {value.decode()}\n" if value is not None else f"{key.decode()}\n")

    def receive(self) -> tuple[bytes, str]:
        """Give the next key of which the result is known, and the result."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the writer has ended"
        key, _, result = line.rstrip("\n").partition(" ")
        return key.encode(), result

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()
