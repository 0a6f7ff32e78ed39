"""The entries of greylist_table as ``socketmap-memcache greylist`` shows them."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import attrs
from twisted.internet.defer import Deferred, inlineCallbacks

from socketmap_memcache.commands.greylist_display import address_shown, time_shown
from socketmap_memcache.commands.greylist_session import Session
from socketmap_memcache.commands.map_console import FatalError
from socketmap_memcache.errors import PermanentError
from socketmap_memcache.policies.greylist.decide import client_is_over, triplet_is_over
from socketmap_memcache.policies.greylist.key import CLIENT, TRIPLET
from socketmap_memcache.policies.greylist.log_line import printable as shown
from socketmap_memcache.policies.greylist.postgrey_database import is_hashed
from socketmap_memcache.policies.greylist.record import Client, RecordError, Triplet, parse_client, parse_triplet
from socketmap_memcache.policies.greylist.settings import Settings

#: What a triplet may be, and a client.
WAITING, MAY_PASS, PASSED = "waiting", "may pass", "passed"
COUNTED, WHITELISTED = "counted", "whitelisted"
EXPIRED, DAMAGED = "expired", "damaged"
TRIPLET_STATES = (WAITING, MAY_PASS, PASSED, EXPIRED, DAMAGED)
CLIENT_STATES = (COUNTED, WHITELISTED, EXPIRED, DAMAGED)

_ROW = "{:11}  {:19}  {:19}  {:>5}  {:15}  {:32}  {}"
HEADING = _ROW.format("STATE", "FIRST SEEN", "LAST SEEN", "COUNT", "CLIENT", "SENDER", "RECIPIENT")


@attrs.frozen
class Row:
    """An entry.

    :ivar key: as it is in the table.
    :ivar plain: the key's parts: client, sender and recipient of a triplet, or just the client; ``None`` where the key
        is hashed.
    :ivar record: ``None`` for one that cannot be read.
    """

    key: bytes
    plain: tuple[bytes, ...] | None
    state: str
    record: Triplet | Client | None

    @property
    def is_triplet(self) -> bool:
        """Whether it is one; else it is a client."""
        return self.key.startswith(TRIPLET)

    def columns(self) -> str:
        """Give it as a line below :data:`HEADING`, without the end."""
        client, *addresses = (self.key[len(TRIPLET) :],) if self.plain is None else self.plain
        sender, recipient = map(address_shown, addresses) if addresses else ("-", "-")
        record = self.record
        first, count = "-", "-"
        if isinstance(record, Triplet):
            first = time_shown(record.first)
        elif record is not None:
            count = str(record.count)
        last = time_shown(None if record is None else record.last)
        return _ROW.format(self.state, first, last, count, shown(client), sender, recipient)

    def json(self) -> dict[str, object]:
        """Give it as a JSON object."""
        values: dict[str, object] = {"type": "triplet" if self.is_triplet else "client", "key": shown(self.key)}
        if self.plain is not None:
            values.update(zip(("client", "sender", "recipient"), map(shown, self.plain), strict=False))
        values["state"] = self.state
        record = self.record
        if isinstance(record, Triplet):
            values["first"] = record.first
        elif record is not None:
            values["count"] = record.count
        if record is not None:
            values["last"] = record.last
        return values


def read_row(key: bytes, value: bytes, now: int, settings: Settings) -> Row | None:
    """Make a row of an entry; ``None`` for one that is not greylisting's."""
    try:
        if key.startswith(TRIPLET):
            triplet = parse_triplet(value)
            return Row(key, _split(key, settings), triplet_state(triplet, now, settings), triplet)
        if key.startswith(CLIENT):
            client = parse_client(value)
            return Row(key, _split(key, settings), client_state(client, now, settings), client)
    except RecordError:
        return Row(key, _split(key, settings), DAMAGED, None)
    return None


def triplet_state(triplet: Triplet, now: int, settings: Settings) -> str:
    """Say what a triplet is now."""
    if triplet_is_over(triplet, now, settings):
        return EXPIRED
    if triplet.last - triplet.first >= settings.delay:
        return PASSED
    return MAY_PASS if now - triplet.first >= settings.delay else WAITING


def client_state(client: Client, now: int, settings: Settings) -> str:
    """Say what a client is now."""
    if client_is_over(client, now, settings):
        return EXPIRED
    enough = settings.auto_whitelist_clients
    return WHITELISTED if enough and client.count >= enough else COUNTED


def _split(key: bytes, settings: Settings) -> tuple[bytes, ...] | None:
    """Take a key apart; a slash that belongs to an address is told from the others where that is possible."""
    plain = key[len(TRIPLET) :]
    if plain.startswith(b"#") or is_hashed(plain):
        return None
    if key.startswith(CLIENT):
        return (plain,)
    client, _, addresses = plain.partition(b"/")
    if settings.lookup_by_host:
        bits, _, addresses = addresses.partition(b"/")
        client += b"/" + bits
    # A sender may have slashes before its "@", but not after it.
    at = 0 if addresses.startswith(b"/") else max(addresses.find(b"@"), 0)
    end = addresses.find(b"/", at)
    if end < 0:  # a sender without domain
        end = addresses.find(b"/")
    return (client, addresses[:end], addresses[end + 1 :]) if end >= 0 else None


class Rows:
    """Walks through the table."""

    def __init__(self, session: Session) -> None:
        """Begin before the first row."""
        self._session = session
        self._cursor = session.table.cursor()

    @inlineCallbacks
    def next(self) -> Generator[Deferred[Any], Any, Row | None]:
        """Fire with the next row, and after the last one with ``None``.

        :raises FatalError: the table cannot be walked through.
        """
        session = self._session
        try:
            while (entry := (yield self._cursor.next())) is not None:
                session.console.progress(1)
                key, value = entry
                if (row := read_row(key, value, session.now, session.settings)) is not None:
                    return row
        except PermanentError as error:
            hint = "give it a backup that can, or look at single triplets with: show CLIENT SENDER RECIPIENT"
            raise FatalError(f"greylist_table cannot be walked through: {error}; {hint}") from error
        return None
