"""What the files that postmap(1) makes have in common, whatever library indexes them."""

from __future__ import annotations

import os
import time
from pathlib import Path

from socketmap_memcache.errors import Problem

#: Seconds: a source that changed as recently as this may be about to be indexed, and Postfix does not warn either.
_JUST_EDITED = 100

FORMS = (b"\0", b"")
"""What may follow each key and value in such a file, the usual form first.

postmap's ``-N`` and ``-n`` choose. Postfix asks for both forms until one of them has a key, and then asks for that one
alone; here both are always asked for, so that a file with both has the same answers at all times.
"""


def without_nul(stored: bytes) -> bytes:
    """Return a key or value as Postfix sees it: up to its first NUL."""
    return stored.partition(b"\0")[0]


def stamp(status: os.stat_result) -> tuple[int, ...]:
    """Return what tells one file, and one state of it, from another."""
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def age_warnings(source: str, indexed: str) -> list[Problem]:
    """Say so if a text file was changed after the file that was made of it, as Postfix does when it opens a table.

    :param source: need not exist.
    """
    try:
        changed = Path(source).stat().st_mtime
        made = Path(indexed).stat().st_mtime
    except OSError:
        return []
    if made < changed < time.time() - _JUST_EDITED:
        return [Problem(f"is older than its source {os.path.basename(source)}; run postmap", indexed)]  # noqa: PTH119
    return []
