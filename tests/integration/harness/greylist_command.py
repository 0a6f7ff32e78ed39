"""``socketmap-memcache greylist`` as a process, and a service for it to look into."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from .processes import free_port, unmeasured
from .service import Service

COMMAND = [str(Path(sys.executable).with_name("socketmap-memcache")), "greylist"]


def greylist(
    config: Path, *arguments: str | bytes, stdin: bytes = b"", status: int = 0
) -> subprocess.CompletedProcess[bytes]:
    """Run the command."""
    operation, *others = arguments
    argv = [*COMMAND, operation, "--config", str(config), *others]
    done = subprocess.run(argv, input=stdin, env=unmeasured(), capture_output=True, check=False, timeout=60)
    assert done.returncode == status, done.stderr
    assert b"Traceback" not in done.stderr
    return done


def serve(directory: Path, table: str, *lines: str) -> Service:
    config = "\n".join(["policies = greylist", f"greylist_table = {table}", *lines, ""])
    return Service(directory, config, policy_listen=[f"inet:127.0.0.1:{free_port()}"])
