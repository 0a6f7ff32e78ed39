"""How ``socketmap-memcache greylist`` shows addresses, times and objects."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping

from socketmap_memcache.policies.greylist.log_line import printable as shown


def address_shown(address: bytes) -> str:
    """Return an e-mail address; the null sender is ``<>``, as Postfix logs it."""
    return shown(address) or "<>"


def time_shown(seconds: int | None) -> str:
    """Return a time as local time: a ``-`` for none, and the number itself for one that no calendar has."""
    if seconds is None:
        return "-"
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (OverflowError, OSError, ValueError):
        return str(seconds)


def json_line(values: Mapping[str, object]) -> bytes:
    """Return an object as one line; only ASCII, so that any terminal can show it."""
    return json.dumps(values).encode() + b"\n"
