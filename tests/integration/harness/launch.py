"""Commands as an administrator types them, and what their output says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

#: The beginning of each twistd command line.
TWISTD = [sys.executable, str(Path(__file__).with_name("twistd.py"))]

# What systemd does: the socket is descriptor 3, and the environment says for which process.
ACTIVATE = """\
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="maps")
os.execv(sys.executable, sys.argv[2:])
"""


def run(*argv: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command that ends by itself."""
    return subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60, cwd=cwd
    )


def start_in_vain(config: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the service with a configuration that it must refuse."""
    return run(*TWISTD, "-n", "--pidfile=", "socketmap-memcache", "--config", str(config), *options)


def check(config: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run ``socketmap-memcache check``."""
    command = Path(sys.executable).with_name("socketmap-memcache")
    return run(str(command), "check", "--config", str(config), *options)


def assert_clean(log: str) -> None:
    """Nothing went wrong, as far as the service's log knows.

    :raises AssertionError: something did.
    """
    for sign in ("Traceback", "#warn", "#error", "#critical"):
        assert sign not in log, log
