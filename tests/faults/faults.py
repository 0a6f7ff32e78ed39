"""The faults. Each is a function that breaks something of a site for a time, and ends when it is mended."""

from __future__ import annotations

import fcntl
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, BinaryIO

import attrs

from tests.integration.harness.memcached import Memcached
from tests.integration.harness.processes import connect, wait_until

from . import network
from .site import ALLOWANCE, BACKUP_TIMEOUT, POLICY_TIMEOUT, RETRY_PAUSE, TIMEOUT, Site

Break = Callable[[Site, float], None]


@attrs.frozen
class Fault:
    """One fault.

    :ivar site: the arguments of :func:`.start.site`, as items.
    :ivar empties: whether memcached loses what it has.
    :ivar backup: whether the backup is broken, and not memcached: a look-up may take the time limit of one of them.
    :ivar clock: whether the clock is.
    """

    name: str
    break_it: Break
    site: tuple[tuple[str, Any], ...]
    empties: bool = False
    backup: bool = False
    clock: bool = False

    @property
    def limit(self) -> float:
        """Seconds that a look-up may take."""
        return (BACKUP_TIMEOUT if self.backup else _longest(**dict(self.site))) + ALLOWANCE

    @property
    def policy_limit(self) -> float:
        """Seconds that a policy may take: for a look-up and an update, one after the other.

        A backup may need its time for each. A memcached that has let the look-up wait is not waited for again. Where
        the broken backup is not the policy's, nothing is waited for.
        """
        if not self.backup:
            return min(_longest(**dict(self.site)), POLICY_TIMEOUT) + ALLOWANCE
        return (0 if self.site == _SQLITE else min(2 * BACKUP_TIMEOUT, POLICY_TIMEOUT)) + ALLOWANCE


def _longest(tries: int = 1, **_: Any) -> float:
    """Give the seconds that memcached may take."""
    return tries * TIMEOUT + (tries - 1) * RETRY_PAUSE


def _repeat(seconds: float, pause: float) -> Iterator[None]:
    """Give turns for a time."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        yield
        time.sleep(min(pause, max(left, 0)))


def nothing(_: Site, seconds: float) -> None:
    time.sleep(seconds)


# memcached.


def killed(site: Site, seconds: float) -> None:
    site.memcached.kill()
    time.sleep(seconds)
    site.memcached.start()


def restarted(site: Site, seconds: float) -> None:
    for _ in _repeat(seconds, 0.3):
        site.memcached.restart()


def stopped(site: Site, seconds: float) -> None:
    site.memcached.freeze()
    time.sleep(seconds)
    site.memcached.thaw()


def emptied(site: Site, seconds: float) -> None:
    for _ in _repeat(seconds, 0.05):
        site.memcached.flush()


def full(site: Site, seconds: float) -> None:
    """Let it have no memory for anything more, and refuse to make room."""
    argv = site.memcached.argv
    site.memcached.kill()
    site.memcached.argv = [*argv, "-m", "2", "-M"]
    site.memcached.start()
    fill(site.memcached)
    time.sleep(seconds)
    site.memcached.kill()
    site.memcached.argv = argv
    site.memcached.start()


def fill(memcached: Memcached) -> None:
    """Store values of all sizes, until none is stored any more."""
    with connect(memcached.address) as connection, connection.makefile("rb") as replies:
        for size in (500_000, 50_000, 5_000, 500, 200, 100, 50, 30, 1):
            for number in range(100_000):
                connection.sendall(b"set fill%d-%d 0 0 %d\r\n%b\r\n" % (size, number, size, b"x" * size))
                if replies.readline() != b"STORED\r\n":
                    break


# The network.


def refused(site: Site, seconds: float) -> None:
    assert site.network is not None
    site.network.close()
    time.sleep(seconds)
    site.network.open()


def disturbed(replies: network.Fault, requests: network.Fault | None, site: Site, seconds: float) -> None:
    assert site.network is not None
    site.network.be_broken(seconds, replies, requests)


def late(site: Site, seconds: float) -> None:
    """Go on for so long that a look-up which is tried once too often takes longer than it may."""
    disturbed(network.late, None, site, max(seconds, _longest(**dict(_NETWORK)) + ALLOWANCE))


def one_behind(site: Site, seconds: float) -> None:
    """Fall behind again and again: what matters is where it begins, at a miss or at a hit."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        disturbed(network.previous, None, site, site.random.uniform(0.05, 0.5))
        time.sleep(site.random.uniform(0.05, 0.3))


# The backup.


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """Give the file, locked; the lock ends as soon as this process closes the file anywhere."""
    with path.open("rb+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield file


def lmdb_locked(site: Site, seconds: float) -> None:
    with _locked(site.directory / "backup.lmdb"):
        time.sleep(seconds)


def sqlite_locked(site: Site, seconds: float) -> None:
    database = sqlite3.connect(site.directory / "backup.db", isolation_level=None)
    database.execute("BEGIN EXCLUSIVE")
    time.sleep(seconds)
    database.rollback()
    database.close()


def corrupt(name: str, site: Site, seconds: float) -> None:
    """Let a damaged file be in the place of the good one, which then comes back from a copy."""
    path, copy = site.directory / name, site.directory / f"{name}.copy"
    with _locked(path) as file:  # nothing is written that is not in the copy
        copy.write_bytes(file.read())
        path.unlink()
        path.write_bytes(site.random.randbytes(8192))
    time.sleep(seconds)
    copy.replace(path)


def disk_slow(site: Site, seconds: float) -> None:
    assert site.host is not None
    site.host.set(disk_delay=0.3)
    time.sleep(seconds)
    site.host.set()


def disk_full(site: Site, seconds: float) -> None:
    assert site.host is not None
    site.host.set(disk_full=True)
    time.sleep(seconds)
    site.host.set()


def slow(site: Site, seconds: float) -> None:
    assert site.slow is not None
    site.slow._seconds = 0.7
    time.sleep(seconds)
    site.slow._seconds = 0.0


# The host.


def workers_killed(site: Site, seconds: float) -> None:
    for _ in _repeat(seconds, site.random.uniform(2.0, 3.0)):
        wait_until(site.all_workers_serve, "those killed before have been replaced")
        victim = site.random.choice(site.worker_processes())
        os.kill(victim, signal.SIGSTOP)
        wait_until(partial(site.is_stopped, victim), "it accepts nobody any more")
        site.ended += site.connections(victim)
        os.kill(victim, signal.SIGKILL)


def reloaded(site: Site, seconds: float) -> None:
    """Reload, with fewer workers and as many again."""
    for number, _ in zip(cycle((1, 2)), _repeat(seconds, 1.0), strict=False):
        site.reload(number)
    site.reload(2)


def clock_stepped(site: Site, seconds: float) -> None:
    """Step back while timers are needed, because memcached hangs; then far ahead, and back to the right time."""
    assert site.host is not None
    site.memcached.freeze()
    time.sleep(0.1)
    site.host.set(clock_offset=-3600)
    time.sleep(seconds)
    site.memcached.thaw()
    site.host.set(clock_offset=86400)
    time.sleep(seconds / 2)
    site.memcached.restart()
    time.sleep(0.05)
    site.host.set()


def name_fails(site: Site, seconds: float) -> None:
    """Let the name have no address, just when connections have to be made anew."""
    assert site.host is not None
    site.host.resolve("")
    site.memcached.restart()
    time.sleep(seconds)
    site.host.resolve("127.0.0.1")


def name_changes(site: Site, seconds: float) -> None:
    """Let the name have another address, and then the former one again; each time the server at the old one dies."""
    assert site.host is not None
    other = site.others[0]
    other.start()
    site.host.resolve("127.0.0.2")
    site.memcached.kill()
    time.sleep(seconds)
    site.memcached.start()
    site.host.resolve("127.0.0.1")
    other.kill()


_PROCESSES = (("workers", 2),)
_NETWORK = (("network", True), ("tries", 2))
_LMDB = (("host", True),)
_SQLITE = (("sql", True),)
_HOST = (("named", True), ("workers", 2))

FAULTS = [
    Fault("nothing", nothing, _PROCESSES),
    Fault("memcached killed", killed, _PROCESSES, empties=True),
    Fault("memcached restarted", restarted, _PROCESSES, empties=True),
    Fault("memcached stopped (SIGSTOP)", stopped, _PROCESSES),
    Fault("memcached emptied", emptied, _LMDB, empties=True),
    Fault("memcached full", full, _LMDB, empties=True),
    Fault("workers killed", workers_killed, _PROCESSES),
    Fault("memcached refuses", refused, _NETWORK),
    Fault("memcached answers garbage", partial(disturbed, network.garbage, None), _NETWORK),
    Fault("memcached answers late", late, _NETWORK),
    Fault("memcached answers the one before", one_behind, _NETWORK),
    Fault("memcached closes mid-value", partial(disturbed, network.cut, None), _NETWORK),
    Fault("network delays and loses", partial(disturbed, network.lossy, network.lossy), _NETWORK),
    Fault("backup locked (lmdb)", lmdb_locked, _LMDB, backup=True),
    Fault("backup's disk slow (lmdb)", disk_slow, _LMDB, backup=True),
    Fault("backup's disk full (lmdb)", disk_full, _LMDB, backup=True),
    Fault("backup corrupt (lmdb)", partial(corrupt, "backup.lmdb"), _LMDB, backup=True),
    Fault("backup locked (sqlite)", sqlite_locked, _SQLITE, backup=True),
    Fault("backup corrupt (sqlite)", partial(corrupt, "backup.db"), _SQLITE, backup=True),
    Fault("backup slow (socketmap)", slow, _SQLITE, backup=True),
    Fault("reload every second", reloaded, _HOST),
    Fault("clock stepped back and forth", clock_stepped, _HOST, empties=True, clock=True),
    Fault("name of memcached fails", name_fails, _HOST, empties=True),
    Fault("name of memcached changes", name_changes, _HOST, empties=True),
]
