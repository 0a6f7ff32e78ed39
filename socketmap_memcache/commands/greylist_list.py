"""``list`` and ``stats``: the whole of greylist_table, walked through."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Generator
from typing import Any

import attrs
from twisted.internet.defer import Deferred, inlineCallbacks

from socketmap_memcache.commands.greylist_display import json_line, time_shown
from socketmap_memcache.commands.greylist_filter import RowFilter, warn_of_hashed
from socketmap_memcache.commands.greylist_rows import (
    CLIENT_STATES,
    DAMAGED,
    HEADING,
    TRIPLET_STATES,
    Row,
    Rows,
    triplet_state,
)
from socketmap_memcache.commands.greylist_session import Session
from socketmap_memcache.commands.greylist_show import open_recipients
from socketmap_memcache.commands.map_console import FatalError
from socketmap_memcache.commands.map_streams import BLOCK_SIZE
from socketmap_memcache.policies.greylist.recipient_access import RecipientAccess
from socketmap_memcache.policies.greylist.record import Client, Triplet


@inlineCallbacks
def list_records(session: Session, options: argparse.Namespace) -> Generator[Deferred[Any], Any, int]:
    """Print the rows that are asked for, in the order of the table.

    :raises FatalError: the table cannot be walked through, or a filter cannot be used.
    :raises ConfigurationError: greylist_recipient_access cannot be opened.
    :raises TableError: a table failed.
    """
    wanted = RowFilter.read(options.client, options.sender, options.recipient, session.settings)
    if session.settings.privacy and not wanted.is_empty:
        raise FatalError("keys are hashed (greylist_privacy), only show CLIENT SENDER RECIPIENT finds a triplet")
    lists = open_recipients(session)
    rows = Rows(session)
    lines: list[bytes] = []
    size, found, unclear = 0, 0, 0
    try:
        while (row := (yield rows.next())) is not None:
            if not wanted.matches(row):
                unclear += row.plain is None
                continue
            if lists.recipient_access is not None:
                row = yield _by_recipient(row, lists.recipient_access, session)
            found += 1
            if found == 1 and not options.json:
                lines.append(HEADING.encode() + b"\n")
            lines.append(json_line(row.json()) if options.json else row.columns().encode() + b"\n")
            size += len(lines[-1])
            if size >= BLOCK_SIZE:
                yield session.sink.write(b"".join(lines))
                lines, size = [], 0
    finally:
        lists.close()
        if lines:
            yield session.sink.write(b"".join(lines))
    warn_of_hashed(session.console, unclear, "show")
    return 0


@inlineCallbacks
def _by_recipient(row: Row, access: RecipientAccess, session: Session) -> Generator[Deferred[Any], Any, Row]:
    """Give a triplet the state that it has with its recipient's own delay; where the key is hashed, nobody knows it."""
    if not isinstance(row.record, Triplet) or row.plain is None:
        return row
    delay = yield access.delay(row.plain[-1])
    settings = attrs.evolve(session.settings, delay=delay or 0)
    return attrs.evolve(row, state=triplet_state(row.record, session.now, settings))


@attrs.define
class Statistics:
    """What there is in a table.

    :ivar triplets: how many are in each state.
    :ivar clients: likewise.
    :ivar oldest: when the first triplet was first seen.
    :ivar newest: when anything was last seen.
    """

    triplets: Counter[str] = attrs.field(factory=Counter)
    clients: Counter[str] = attrs.field(factory=Counter)
    oldest: int | None = None
    newest: int | None = None

    def add(self, row: Row) -> None:
        """Count a row."""
        (self.triplets if row.is_triplet else self.clients)[row.state] += 1
        record = row.record
        if isinstance(record, Triplet):
            self.oldest = record.first if self.oldest is None else min(self.oldest, record.first)
        if isinstance(record, (Triplet, Client)):
            self.newest = record.last if self.newest is None else max(self.newest, record.last)

    def json(self) -> dict[str, object]:
        """Give it as a JSON object; all states are in it."""
        return {
            "triplets": {state: self.triplets[state] for state in TRIPLET_STATES},
            "clients": {state: self.clients[state] for state in CLIENT_STATES},
            "oldest": self.oldest,
            "newest": self.newest,
        }

    def text(self) -> str:
        """Give it as lines."""
        lines = []
        for name, states, counts in (
            ("triplets", TRIPLET_STATES, self.triplets),
            ("clients", CLIENT_STATES, self.clients),
        ):
            lines.append(f"{name:13} {sum(counts.values()):>9}")
            shown_states = [state for state in states if counts[state] or state != DAMAGED]
            lines += [f"  {state:11} {counts[state]:>9}" for state in shown_states]
        lines.append(f"first seen    {time_shown(self.oldest)}")
        lines.append(f"last seen     {time_shown(self.newest)}")
        return "\n".join(lines) + "\n"


@inlineCallbacks
def print_statistics(session: Session, options: argparse.Namespace) -> Generator[Deferred[Any], Any, int]:
    """Print how many triplets and clients there are, in which state.

    :raises FatalError: the table cannot be walked through.
    :raises ConfigurationError: greylist_recipient_access cannot be opened.
    :raises TableError: a table failed.
    """
    statistics = Statistics()
    lists = open_recipients(session)
    rows = Rows(session)
    try:
        while (row := (yield rows.next())) is not None:
            if lists.recipient_access is not None:
                row = yield _by_recipient(row, lists.recipient_access, session)
            statistics.add(row)
    finally:
        lists.close()
    yield session.sink.write(json_line(statistics.json()) if options.json else statistics.text().encode())
    return 0
