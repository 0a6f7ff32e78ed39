"""One service, its memcached and its backup, and what is known of all that it should answer."""

from __future__ import annotations

import itertools
import os
import re
import time
from contextlib import suppress
from pathlib import Path
from random import Random

from tests.integration.harness.memcached import Memcached
from tests.integration.harness.policy import PolicyClient
from tests.integration.harness.processes import wait_until, write_config
from tests.integration.harness.service import Service
from tests.integration.harness.slow_backup import SlowBackup
from tests.integration.harness.socketmap import SocketmapClient

from .administrator import Writer
from .network import Network
from .shim import BrokenHost
from .truth import Keys, Triplet, Verdict

#: Of the .cf files. The time limit of a look-up in memcached is ``max_try * timeout + (max_try - 1) * retry_pause``.
TIMEOUT = 1
RETRY_PAUSE = 1
BACKUP_TIMEOUT = 1
POLICY_TIMEOUT = 2
TTL = 2

#: Seconds above all limits for what is no fault: the service's own work, and ours.
ALLOWANCE = 0.5

#: memcached counts whole seconds: an entry may live this much longer.
TTL_ROUNDING = 1.0

#: Keys and values: of all maps, never changed; and below those that are missing, that change, and of the cache alone.
FIXED = [b"fixed%d@example.com" % number for number in range(100)]
_ABSENT = [b"absent%d@example.com" % number for number in range(20)]
_CHANGING = [b"changing%d@example.com" % number for number in range(20)]
_CACHED = [b"cached%d@example.com" % number for number in range(20)]

#: Addresses of clients that send mail.
_CLIENTS = 500


def value_of(key: bytes) -> bytes:
    """Give the value of a key that never changes."""
    return b"value of " + key


class Site:
    """Made by :func:`.start.site`.

    There are these maps: ``t``, a cache with the backup; ``backup``, that alone; and ``cached``, the cache alone.

    :ivar emptied: whether memcached may have lost what only it has.
    :ivar clock_is_right: whether the service's is.
    :ivar ended: how many connections to clients the fault itself has ended.
    :ivar spare_descriptors: how many connections to a backup the service may keep for a while.
    :ivar triplets: those under way, of each client of the policy.
    """

    delay = 1.0

    def __init__(self, directory: Path, memcached: Memcached, random: Random) -> None:
        self.directory = directory
        self.memcached = memcached
        self.random = random
        self.service: Service
        self.network: Network | None = None
        self.host: BrokenHost | None = None
        self.slow: SlowBackup | None = None
        self.writer: Writer | None = None
        self.others: list[Memcached] = []
        self.workers = 1
        self.keys = Keys()
        self.changing = _CHANGING
        self.maps = ["t", "t", "t", "cached", "cached", "backup"]
        self.emptied = False
        self.clock_is_right = True
        self.ended = 0
        self.spare_descriptors = 0
        self.triplets: tuple[list[Triplet], ...] = ([], [])
        self._triplet_numbers = itertools.count()
        self._versions = itertools.count()

    @property
    def socketmap(self) -> str:
        return self.service.addresses[0]

    @property
    def policy(self) -> str:
        return self.service.policy_addresses[0]

    def close(self) -> None:
        """End what the context managers of the harness do not."""
        if self.writer is not None:
            self.writer.close()
        for other in self.others:
            other.kill()

    # Questions and answers.

    def question(self, random: Random, count: int) -> tuple[str, list[bytes]]:
        """Give a map, and keys to ask it for."""
        name = random.choice(self.maps)
        if name == "cached":
            return name, random.choices([*_CACHED, *_ABSENT], k=count)
        if name == "slow":
            return name, random.choices(FIXED, k=count)
        return name, random.choices([*FIXED, *_ABSENT, *self.changing], k=count)

    def judge(self, name: str, key: bytes, reply: bytes, asked: float, answered: float) -> tuple[Verdict, float]:
        """Judge the reply to a look-up; see :meth:`.truth.Keys.judge`."""
        if reply.startswith((b"TEMP ", b"TIMEOUT ")):
            return Verdict.FAILED, 0.0
        if not reply.startswith((b"OK ", b"NOTFOUND ")):
            return Verdict.WRONG, 0.0
        value = reply[3:] if reply.startswith(b"OK ") else None
        if name in {"cached", "slow"}:
            if key in _ABSENT:
                return Verdict.RIGHT if value is None else Verdict.WRONG, 0.0
            if value is None and not (self.emptied and name == "cached"):
                return Verdict.MISSING, 0.0
            right = value in {None, b"kept" if name == "slow" else value_of(key)}
            return Verdict.RIGHT if right else Verdict.WRONG, 0.0
        verdict, age = self.keys.judge(key, value, asked, answered)
        if name == "backup" and verdict is Verdict.OLD:
            return Verdict.LOST, age
        return verdict, age

    def change(self, key: bytes, *, delete: bool = False) -> bool:
        """Change a key, and say whether that was acknowledged."""
        assert self.writer is not None
        value = None if delete else b"version %d of %b" % (next(self._versions), key)
        version = self.keys.change(key, value, time.monotonic())
        self.writer.send(key, value)
        changed, result = self.writer.receive()
        assert changed == key
        if result == "ok":
            version.acknowledged = time.monotonic()
        return result == "ok"

    def new_triplet(self) -> Triplet:
        return Triplet(next(self._triplet_numbers))

    def mail(self, triplet: Triplet) -> dict[str, str]:
        """Give the request for a triplet."""
        client = triplet.number % _CLIENTS
        return {
            "protocol_state": "RCPT",
            "client_address": f"10.{client // 250}.{client % 250}.1",
            "client_name": "mx.example.net",
            "sender": "alice@example.net",
            "recipient": f"user{'abcdefghij'[triplet.number % 10]}{triplet.number}@example.com",
        }

    # What is there.

    def fill_cache(self) -> None:
        """Store what only memcached has."""
        self.memcached.set_many({key: value_of(key) for key in _CACHED})

    def processes(self) -> list[int]:
        """Give the process ids of the service."""
        children = Path(f"/proc/{self.service.pid}/task/{self.service.pid}/children").read_text().split()
        return [self.service.pid, *map(int, children)]

    def worker_processes(self) -> list[int]:
        """Give those that serve."""
        return self.processes()[1:] if self.workers > 1 else self.processes()

    def connections(self, pid: int) -> int:
        """Count those to clients that a process of the service has accepted."""
        places = [[address.removeprefix("unix:")] for address in (self.socketmap, self.policy)]
        lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
        # State 3 is that of a connection; it has the path of the socket that accepted it.
        accepted = {f"socket:[{line[6]}]" for line in lines if line[5] == "03" and line[7:] in places}
        return sum(str(file.readlink()) in accepted for file in Path(f"/proc/{pid}/fd").iterdir())

    def descriptors(self) -> int:
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self.processes())  # noqa: PTH208 (names are enough)

    def memory(self) -> int:
        """Give the bytes of memory that the service has for itself: without files, such as those of LMDB."""
        return sum(_anonymous(pid) for pid in self.processes())

    def wait_until_well(self) -> float:
        """Wait until new clients, at all workers, find that memcached, the backup and the greylist all are in use.

        :return: when the last of them found that they are not.
        :raises AssertionError: that takes too long.
        """
        last, in_a_row = float("-inf"), 0

        def is_well() -> bool:
            nonlocal last, in_a_row
            if self._serves():
                in_a_row += 1
            else:
                last, in_a_row = time.monotonic(), 0
            return in_a_row >= 3 * self.workers

        wait_until(is_well, "all is well again")
        return last

    def _serves(self) -> bool:
        key = self.random.choice(FIXED)
        cached = self.random.choice(_CACHED)
        expected = [b"OK " + value_of(key), b"OK " + value_of(key), b"OK " + value_of(cached)]
        try:
            with SocketmapClient(self.socketmap, 5) as client, PolicyClient(self.policy, 5) as policy:
                answers = [client.ask("t", key), client.ask("backup", key), client.ask("cached", cached)]
                return answers == expected and policy.ask(self.mail(self.new_triplet())).startswith(b"DEFER")
        except (OSError, EOFError):
            return False

    def reload(self, workers: int) -> None:
        """Let the service read its configuration, with another number of workers."""
        path = self.service.config_path
        write_config(path, re.sub("workers = [0-9]+", f"workers = {workers}", path.read_text()))
        self.service.reload()

    def is_stopped(self, pid: int) -> bool:
        return _status(pid, "State").startswith("T")

    def all_workers_serve(self) -> bool:
        """Say whether all workers are there, and catch SIGHUP: they do so from when they listen."""
        workers = self.worker_processes()
        return len(workers) == self.workers and all(_caught(pid) & 1 for pid in workers)


def _anonymous(pid: int) -> int:
    return int((_status(pid, "RssAnon") or "0").split()[0]) * 1024


def _caught(pid: int) -> int:
    """Give the mask of the signals that a process catches."""
    return int(_status(pid, "SigCgt") or "0", 16)


def _status(pid: int, name: str) -> str:
    """Give what the kernel says of a process; nothing of one that has just ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return line.partition(":")[2].strip()
    return ""
