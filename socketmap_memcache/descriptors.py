"""How many file descriptors the process may have."""

from __future__ import annotations

import os
import resource
from contextlib import suppress

#: Descriptors kept for what is not a client: logs, tables, servers behind tables, files that are read at a reload.
SPARE = 100


def raise_limit() -> int:
    """Raise the process's limit (RLIMIT_NOFILE) as far as it may itself, and give the limit that holds then.

    Most systems start processes with 1024, which is made for select(2), and let them have far more.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):  # where the system has a limit of its own below that
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return 2**31 - 1 if soft == resource.RLIM_INFINITY else soft


def keep_standard() -> None:
    """See to it that the descriptors 0 to 2 are taken, by ``/dev/null`` where they were closed.

    Else the reactor's own could get one of these numbers, over which twistd puts ``/dev/null`` when it goes into the
    background.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def left_for_clients(limit: int) -> int:
    """Give how many clients there can be with a limit; each takes one descriptor."""
    return max(limit - SPARE, limit // 2)
