"""A host with faults, for processes that run on it: ``shim.c``, compiled, and told what is broken."""

from __future__ import annotations

import mmap
import os
import struct
import subprocess
from pathlib import Path

from tests.integration.harness.processes import find_program

#: What ``shim.c`` resolves as it is told; also a server's name.
NAME = "memcached.test"

_CONTROL = struct.Struct("qii48s")  # as in shim.c


class BrokenHost:
    """What is wrong; nothing at first.

    :ivar environment: for the processes that run on the host.
    """

    def __init__(self, directory: Path) -> None:
        """Compile the library into a directory."""
        source, library, control = Path(__file__).with_name("shim.c"), directory / "shim.so", directory / "control"
        command = [find_program("cc"), "-O2", "-fPIC", "-shared", "-o", str(library), str(source), "-ldl"]
        subprocess.run(command, check=True, timeout=60)
        control.write_bytes(bytes(_CONTROL.size))
        with control.open("rb+") as file:
            self._control = mmap.mmap(file.fileno(), _CONTROL.size)
        self.environment = {**os.environ, "LD_PRELOAD": str(library), "FAULTS_CONTROL": str(control)}
        self._address = ""
        self.set()

    def set(self, *, clock_offset: int = 0, disk_full: bool = False, disk_delay: float = 0.0) -> None:
        """Break the clock (seconds that it is ahead) or the disk (full, or seconds for each write), and mend the rest.

        The name is left as it is.
        """
        address = self._address.encode()
        self._control[:] = _CONTROL.pack(clock_offset, disk_full, int(disk_delay * 1e6), address)

    def resolve(self, address: str) -> None:
        """Let :data:`NAME` have an address; none with an empty one."""
        self._address = address
        self.set()

    def close(self) -> None:
        self._control.close()
