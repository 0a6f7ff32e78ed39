"""``show``: what is known of one triplet and its client, and what would happen now."""

from __future__ import annotations

import argparse
from collections.abc import Generator
from typing import Any

import attrs
from twisted.internet.defer import Deferred, inlineCallbacks

from socketmap_memcache.commands.greylist_display import time_shown
from socketmap_memcache.commands.greylist_filter import client_address, sender_address
from socketmap_memcache.commands.greylist_rows import DAMAGED, client_state, triplet_state
from socketmap_memcache.commands.greylist_session import Session
from socketmap_memcache.policies.greylist.explain import Explanation, explain
from socketmap_memcache.policies.greylist.lists import Lists
from socketmap_memcache.policies.greylist.log_line import printable
from socketmap_memcache.policies.greylist.recipient_access import open_recipient_access
from socketmap_memcache.policies.greylist.record import RecordError, parse_client, parse_triplet
from socketmap_memcache.policies.greylist.settings import Settings

_ABSENT = "never seen, or not any more"


@inlineCallbacks
def show(session: Session, options: argparse.Namespace) -> Generator[Deferred[Any], Any, int]:
    """Print it.

    :raises FatalError: the client is no IP address.
    :raises ConfigurationError: greylist_recipient_access cannot be opened.
    :raises TableError: a table failed.
    """
    client_address(options.client, session.settings)
    lists = open_recipients(session)
    request = {
        b"client_address": options.client,
        b"client_name": b"unknown",
        b"sender": sender_address(options.sender),
        b"recipient": options.recipient,
    }
    try:
        explanation = yield explain(request, session.now, session.settings, lists, session.table)
        if explanation.decision is None:
            text = f"now      passes: {printable(explanation.reason)}\n"
        else:
            text = "".join(f"{line}\n" for line in _lines(explanation, session.now, session.settings))
        yield session.sink.write(text.encode())
    finally:
        lists.close()
    return 0


def open_recipients(session: Session) -> Lists:
    """Open greylist_recipient_access, of all lists.

    :raises ConfigurationError: with all that is wrong with it.
    """
    name = "greylist_recipient_access"
    lists = Lists(recipient_access=open_recipient_access(name, session.parameters, session.settings, session.context))
    session.check()
    return lists


def _lines(explanation: Explanation, now: int, settings: Settings) -> list[str]:
    decision, delay = explanation.decision, explanation.delay
    assert decision is not None
    assert delay is not None
    reason = printable(decision.reason)
    return [
        f"triplet  {printable(explanation.triplet_key or b'')}",
        f"         {triplet_shown(explanation.triplet_value, now, settings, delay)}",
        f"client   {printable(explanation.client_key or b'')}",
        f"         {client_shown(explanation.client_value, now, settings)}",
        f"now      {'passes' if decision.passed else 'is deferred'}: {reason} (whitelists aside: see greylist test)",
    ]


def triplet_shown(value: bytes | None, now: int, settings: Settings, delay: int) -> str:
    """Say in words what is stored of a triplet.

    :param delay: that of the recipient.
    """
    if value is None:
        return _ABSENT
    try:
        triplet = parse_triplet(value)
    except RecordError as error:
        return f"{DAMAGED}: {error}"
    state = triplet_state(triplet, now, attrs.evolve(settings, delay=delay))
    return f"{state}, first seen {time_shown(triplet.first)}, last seen {time_shown(triplet.last)}"


def client_shown(value: bytes | None, now: int, settings: Settings) -> str:
    """Say in words what is stored of a client."""
    if value is None:
        return _ABSENT
    try:
        client = parse_client(value)
    except RecordError as error:
        return f"{DAMAGED}: {error}"
    state = client_state(client, now, settings)
    return f"{state}, {client.count} counted, last {time_shown(client.last)}"
