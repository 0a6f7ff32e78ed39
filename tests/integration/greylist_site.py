"""A greylisting service whose records, log and memory a test can see."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import attrs

from socketmap_memcache.tables.lmdb_file import Transaction, acquire, release

from .greylist_bad_input import MAIL
from .harness.policy import PolicyClient
from .harness.processes import wait_until
from .harness.service import Service


@attrs.frozen
class Site:
    """A service with a table.

    :ivar put: stores a record, past the service; :ivar get: reads one.
    :ivar bystander: is connected all the time.
    """

    service: Service
    put: Callable[[bytes, bytes], object]
    get: Callable[[bytes], bytes | None]
    bystander: PolicyClient

    def connect(self) -> PolicyClient:
        return PolicyClient(self.service.policy_addresses[0])

    def ask(self, **changes: str | bytes) -> bytes:
        """Return the action for a mail; each has a connection of its own."""
        with self.connect() as client:
            return client.ask({**MAIL, **changes})

    def logged(self, before: int) -> list[str]:
        """Return the lines of the log that are new."""
        self.mark()
        return self.service.log[before:].splitlines()[:-1]

    def mark(self) -> int:
        """Return the length of the log, when all that has happened is in it."""
        name = f"{time.monotonic()}.example"
        self.bystander.ask({**MAIL, "client_name": name, "client_address": "127.0.0.1"})
        wait_until(lambda: name in self.service.log, "the log is written")
        return len(self.service.log)

    def memory(self) -> int:
        """Return the bytes of memory that the service has now."""
        status = Path(f"/proc/{self.service.pid}/status").read_text()
        (kilobytes,) = re.findall(r"VmRSS:\s+(\d+) kB", status)
        return int(kilobytes) * 1024


def lmdb_access(path: Path) -> tuple[Callable[[bytes, bytes], object], Callable[[bytes], bytes | None]]:
    """Give functions that write and read a file which the service has open."""

    def transact(work: Callable[[Transaction], bytes | bool | None], write: bool) -> bytes | bool | None:
        file = acquire(path)
        try:
            return file.transact(work, write)
        finally:
            release(file)

    def get(key: bytes) -> bytes | None:
        stored = transact(lambda transaction: transaction.get(key + b"\0"), write=False)
        return stored.partition(b"\0")[0] if isinstance(stored, bytes) else None

    return lambda key, value: transact(lambda transaction: transaction.put(key + b"\0", value + b"\0"), write=True), get
