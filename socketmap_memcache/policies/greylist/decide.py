"""The decision on a triplet: postgrey's, as a pure function of what is known.

Two things are not as in postgrey. What has not been seen for ``max_age`` is unknown at once; there it is known until
the next clean-up. And a triplet that passes with a delay shorter than the usual one, which postgrey cannot do, is
stored as if it had been first seen that much earlier: whoever finds the record knows then that it has passed.
"""

from __future__ import annotations

from typing import NamedTuple

from socketmap_memcache.policies.greylist.record import Client, Triplet
from socketmap_memcache.policies.greylist.settings import Settings

#: Seconds in which a client is counted once.
COUNT_INTERVAL = 3600

#: Reasons, in postgrey's words.
NEW = b"new"
TRIPLET_FOUND = b"triplet found"
CLIENT_AWL = b"client AWL"


class Decision(NamedTuple):
    """What follows for a request.

    :ivar passed: whether the mail may pass now; else it is to be deferred.
    :ivar reason: in postgrey's words.
    :ivar delayed: seconds since the triplet was first seen, where it passes for the first time.
    :ivar missing: seconds that it has to wait yet; 0 when it passes.
    :ivar triplet: is to be stored, for ``triplet_ttl`` seconds; ``None`` where nothing is.
    :ivar client: is to be stored, for ``client_ttl`` seconds; ``None`` where nothing is.
    :ivar whitelisted: whether the client is not greylisted any more from now on.
    :ivar corrected: whether the triplet was first seen in the future, according to its record.
    """

    passed: bool
    reason: bytes
    delayed: int | None = None
    missing: int = 0
    triplet: Triplet | None = None
    triplet_ttl: int = 0
    client: Client | None = None
    client_ttl: int = 0
    whitelisted: bool = False
    corrected: bool = False


def decide(triplet: Triplet | None, client: Client | None, now: int, settings: Settings, delay: int) -> Decision:
    """Decide.

    :param triplet: as it is stored; ``None`` if it is not.
    :param client: as it is stored; ``None`` if it is not. It counts only with ``auto_whitelist_clients``.
    :param delay: that of the recipient; in general ``settings.delay``.
    """
    enough = settings.auto_whitelist_clients
    kept = settings.max_age + 1  # a record may be seen when it is just max_age old
    if client is not None and (not enough or client_is_over(client, now, settings)):
        client = None
    if client is not None and client.count >= enough:
        counts = now >= client.last + COUNT_INTERVAL or client.last > now
        return Decision(
            True, CLIENT_AWL, client=Client(client.count + 1, now) if counts else None, client_ttl=kept if counts else 0
        )

    first, had_passed, corrected = now, False, False
    if triplet is not None and now - triplet.last <= settings.max_age:
        first = triplet.first
        had_passed = triplet.last - first >= delay
        if not had_passed and now - first > settings.retry_window:
            first = now
        if first > now:
            first, corrected = now, True
    missing = delay - (now - first)
    if missing > 0:
        reason = NEW if first == now else b"early-retry (%ds missing)" % missing
        left = settings.retry_window - (now - first)
        return Decision(False, reason, None, missing, Triplet(first, now), max(left, 0) + 1, None, 0, False, corrected)

    stored = Triplet(min(first, now - settings.delay), now)
    if had_passed or first == now:  # the latter where there is no delay: nothing has been tried again
        return Decision(True, TRIPLET_FOUND, None, 0, stored, kept, None, 0, False, corrected)
    counted = None
    if enough and (client is None or now >= client.last + COUNT_INTERVAL):
        counted = Client(1 if client is None else client.count + 1, now)
    whitelisted = counted is not None and counted.count == enough
    counted_ttl = 0 if counted is None else kept
    return Decision(True, TRIPLET_FOUND, now - first, 0, stored, kept, counted, counted_ttl, whitelisted, corrected)


def triplet_is_over(triplet: Triplet, now: int, settings: Settings) -> bool:
    """Say whether a stored triplet makes no difference any more: it is as good as unknown."""
    has_passed = triplet.last - triplet.first >= settings.delay
    return now - triplet.last > settings.max_age or (not has_passed and now - triplet.first > settings.retry_window)


def client_is_over(client: Client, now: int, settings: Settings) -> bool:
    """Say whether a stored client makes no difference any more: it is as good as unknown."""
    return now - client.last > settings.max_age
