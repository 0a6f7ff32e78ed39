"""``release`` and ``forget``: changes of single records."""

from __future__ import annotations

import argparse
from collections.abc import Generator
from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks

from socketmap_memcache.commands.greylist_filter import RowFilter, client_address, sender_address, warn_of_hashed
from socketmap_memcache.commands.greylist_rows import Rows
from socketmap_memcache.commands.greylist_session import Session
from socketmap_memcache.commands.greylist_show import open_recipients
from socketmap_memcache.commands.map_console import FatalError
from socketmap_memcache.policies.greylist.decide import triplet_is_over
from socketmap_memcache.policies.greylist.key import client_key, triplet_key
from socketmap_memcache.policies.greylist.log_line import printable
from socketmap_memcache.policies.greylist.postgrey_records import TRIPLETS
from socketmap_memcache.policies.greylist.record import RecordError, Triplet, format_record, parse_triplet
from socketmap_memcache.policies.greylist.settings import Settings


@inlineCallbacks
def release(session: Session, options: argparse.Namespace) -> Generator[Deferred[Any], Any, int]:
    """Store a triplet, known or not, as one that has passed, so that its next attempt does.

    :raises FatalError: the client is no IP address, or the table does not take the key.
    :raises ConfigurationError: greylist_recipient_access cannot be opened.
    :raises TableError: a table failed.
    """
    settings, now = session.settings, session.now
    client = client_address(options.client, settings)
    key = triplet_key(client, sender_address(options.sender), options.recipient, settings)
    delay = yield _delay(session, options.recipient)
    value = yield session.table.lookup(key)
    triplet = _released(value, now, delay, settings)
    stored = yield session.table.update(key, format_record(triplet), TRIPLETS.ttl(triplet, now, settings))
    if not stored:
        raise FatalError(f"greylist_table does not take the key {printable(key)}")
    known = "was known" if value is not None else "was not known"
    yield session.sink.write(f"released: {printable(key)} ({known})\n".encode())
    return 0


@inlineCallbacks
def _delay(session: Session, recipient: bytes) -> Generator[Deferred[Any], Any, int]:
    """Give the seconds after which a triplet has passed for sure."""
    lists = open_recipients(session)
    if lists.recipient_access is None:
        return session.settings.delay
    try:
        delay = yield lists.recipient_access.delay(recipient)
    finally:
        lists.close()
    return max(session.settings.delay, delay or 0)


def _released(value: bytes | None, now: int, delay: int, settings: Settings) -> Triplet:
    first = now - delay
    try:
        if value is not None:
            known = parse_triplet(value)
            if not triplet_is_over(known, now, settings):
                first = min(first, known.first)
    except RecordError:
        pass  # as good as unknown
    return Triplet(first, now)


@inlineCallbacks
def forget(session: Session, options: argparse.Namespace) -> Generator[Deferred[Any], Any, int]:
    """Delete a client's record, and a triplet, or all triplets of the client's network.

    :raises FatalError: the client is no IP address, or its triplets cannot be found.
    :raises TableError: the table failed.
    """
    settings = session.settings
    if options.sender is not None and options.recipient is None:
        raise FatalError("a sender without a recipient: give both, or the client alone")
    client = client_address(options.client, settings)
    yield _delete(session, client_key(client, settings))
    if options.sender is not None:
        yield _delete(session, triplet_key(client, sender_address(options.sender), options.recipient, settings))
        return 0
    if settings.privacy:
        raise FatalError("keys are hashed (greylist_privacy): to forget a triplet give its sender and recipient, too")
    wanted = RowFilter.read(options.client, None, None, settings)
    rows, unclear = Rows(session), 0
    while not session.stopped and (row := (yield rows.next())) is not None:
        if row.is_triplet and wanted.matches(row):
            yield _delete(session, row.key)
        unclear += row.is_triplet and row.plain is None
    warn_of_hashed(session.console, unclear, "forget")
    return 0


@inlineCallbacks
def _delete(session: Session, key: bytes) -> Generator[Deferred[Any], Any, None]:
    existed = yield session.table.delete(key)
    text = f"forgotten: {printable(key)}\n" if existed else f"not known: {printable(key)}\n"
    yield session.sink.write(text.encode())
