"""What greylisting would do with a request, and why, without doing it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import attrs
from twisted.internet.defer import Deferred, inlineCallbacks

from socketmap_memcache.policies.greylist.decide import Decision, decide
from socketmap_memcache.policies.greylist.key import (
    ClientAddress,
    client_key,
    parse_client,
    plain_triplet_key,
    triplet_key,
)
from socketmap_memcache.policies.greylist.lists import NEEDED, NO_ADDRESS, RECIPIENT_ACCESS, Lists
from socketmap_memcache.policies.greylist.record import RecordError, parse_triplet
from socketmap_memcache.policies.greylist.record import parse_client as parse_client_record
from socketmap_memcache.policies.greylist.settings import Settings
from socketmap_memcache.policies.greylist.texts import greylist_reply, header_reply
from socketmap_memcache.policies.interface import DUNNO, Request
from socketmap_memcache.tables.interface import ITable

_Record = TypeVar("_Record")


@attrs.frozen
class Explanation:
    """What would happen, and what it follows from; ``None`` for what was not asked.

    :ivar answer: the action that Postfix would get.
    :ivar reason: as in the log; or, where nothing can be decided, what is wrong with the request.
    :ivar exemptions: the lists that were asked, by their reasons, and whether the request is in them.
    :ivar may_auto_whitelist: whether the client's record counts.
    :ivar delay: of mail to the recipient, in seconds.
    :ivar plain_key: of the triplet, as postgrey would have it without its ``--privacy``.
    :ivar triplet_key: in the table; ``triplet_value`` is what is there.
    :ivar client_key: in the table; ``client_value`` is what is there.
    :ivar decision: what would be stored, too.
    """

    answer: bytes
    reason: bytes
    exemptions: Sequence[tuple[bytes, bool]] = ()
    client: ClientAddress | None = None
    may_auto_whitelist: bool | None = None
    delay: int | None = None
    plain_key: bytes | None = None
    triplet_key: bytes | None = None
    triplet_value: bytes | None = None
    client_key: bytes | None = None
    client_value: bytes | None = None
    decision: Decision | None = None


@inlineCallbacks
def explain(
    request: Request, now: int, settings: Settings, lists: Lists, table: ITable
) -> Generator[Deferred[Any], Any, Explanation]:
    """Decide as the service would, except for what only the service's process knows: which messages already have a
    header, and what it has deferred although the table forgets it.

    :param now: seconds since the epoch.
    :return: fails with :class:`~socketmap_memcache.errors.TableError` when a table does; the service would answer with
        its fail action.
    """
    for name in NEEDED:
        if name not in request:
            return Explanation(DUNNO, b"attribute missing: " + name)
    client = parse_client(request[b"client_address"], settings)
    if client is None:
        return Explanation(DUNNO, NO_ADDRESS)
    asked = []
    for reason, holds in lists.exemptions():
        asked.append((reason, holds(request)))
        if asked[-1][1]:
            return Explanation(DUNNO, reason, asked, client)
    delay = settings.delay
    if lists.recipient_access is not None:
        delay = yield lists.recipient_access.delay(request[b"recipient"])
        if delay is None:
            return Explanation(DUNNO, RECIPIENT_ACCESS, asked, client)
    may_auto_whitelist = lists.may_auto_whitelist(request)
    counting = settings if may_auto_whitelist else attrs.evolve(settings, auto_whitelist_clients=0)
    key, other_key = (
        triplet_key(client, request[b"sender"], request[b"recipient"], settings),
        client_key(client, settings),
    )
    value = yield table.lookup(key)
    other_value = yield table.lookup(other_key)
    triplet, record = _parsed(parse_triplet, value), _parsed(parse_client_record, other_value)
    decision = decide(triplet, record, now, counting, delay)
    return Explanation(
        _answer(request, decision, now, settings),
        decision.reason,
        asked,
        client,
        may_auto_whitelist,
        delay,
        plain_triplet_key(client, request[b"sender"], request[b"recipient"], settings),
        key,
        value,
        other_key,
        other_value,
        decision,
    )


def _answer(request: Request, decision: Decision, now: int, settings: Settings) -> bytes:
    if decision.passed:
        return DUNNO if decision.delayed is None else header_reply(settings, decision.delayed, now)
    return DUNNO if settings.training_mode else greylist_reply(settings, request, decision.missing)


def _parsed(parse: Callable[[bytes], _Record], value: bytes | None) -> _Record | None:
    """Read a record; one that cannot be read counts as none."""
    try:
        return None if value is None else parse(value)
    except RecordError:
        return None
