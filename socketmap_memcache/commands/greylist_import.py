"""``import-postgrey``: what postgrey remembers becomes what this service remembers."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Generator, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Generic

from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.python.failure import Failure

from socketmap_memcache.commands.greylist_session import Session
from socketmap_memcache.commands.map_console import FatalError
from socketmap_memcache.commands.map_tables import WINDOW
from socketmap_memcache.policies.greylist.log_line import printable as shown
from socketmap_memcache.policies.greylist.postgrey_database import (
    PostgreyDatabase,
    PostgreyDatabaseError,
    is_hashed,
    opened,
)
from socketmap_memcache.policies.greylist.postgrey_records import CLIENTS, TRIPLETS, Kind, R, has_our_network
from socketmap_memcache.policies.greylist.record import RecordError, format_record
from socketmap_memcache.tables.lookup_all import Answer, gather, lookup_all

#: What may become of an entry.
STORED, JOINED, KEPT, EXPIRED = "stored", "joined with ours", "there already", "expired"
HASHED, UNREADABLE = "hashed", "not readable"
_FATES = (STORED, JOINED, KEPT, EXPIRED, HASHED, UNREADABLE)


@inlineCallbacks
def import_postgrey(session: Session, options: argparse.Namespace) -> Generator[Deferred[Any], Any, int]:
    """Store postgrey's triplets and clients, and print how many.

    Of what both remember, the times are joined as if one of them had seen all: the earlier first, the later last time,
    the higher count. So it may be done again at any time. The files are read in the reactor's thread.

    :raises FatalError: there is no database that can be read.
    :raises TableError: the table failed.
    """
    settings, console = session.settings, session.console
    other_networks = 0

    def counted(entries: Iterator[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
        nonlocal other_networks
        for entry in entries:
            other_networks += not has_our_network(entry[0], settings)
            yield entry

    try:
        with opened(Path(options.directory)) as database:
            yield session.sink.write(_what_is_read(database, options.directory).encode())
            if database.log_error:
                console.warn(f"its log cannot be read, so the last hour may be missing: {database.log_error}")
            triplets, clients = Import(TRIPLETS, session), Import(CLIENTS, session)
            yield triplets.run(counted(database.triplets()))
            yield clients.run(database.clients())
    except PostgreyDatabaseError as error:
        raise FatalError(str(error)) from error
    console.clear()
    yield session.sink.write(f"triplets: {triplets.summary()}\nclients: {clients.summary()}\n".encode())
    if other_networks:
        text = "greylist_ipv4_prefix, greylist_ipv6_prefix and greylist_lookup_by_host are not as they were at postgrey"
        console.warn(f"{other_networks} triplets will not be found: {text}")
    hashed = triplets.counts[HASHED] + clients.counts[HASHED]
    if hashed:
        console.log("error", f"{hashed} entries are of postgrey --privacy, and need greylist_privacy = yes")
    return 1 if hashed else 0


def _what_is_read(database: PostgreyDatabase, directory: str) -> str:
    logs = f" and of its log ({database.logs})" if database.logs else ""
    return f"{shown(os.fsencode(directory))}: reading a copy of the files{logs}; postgrey may go on running\n"


class Import(Generic[R]):
    """Stores the entries of one of postgrey's files.

    :ivar counts: what has become of how many.
    """

    def __init__(self, kind: Kind[R], session: Session) -> None:
        """Begin with nothing."""
        self.counts: Counter[str] = Counter()
        self._kind: Kind[R] = kind
        self._session = session

    @inlineCallbacks
    def run(self, entries: Iterator[tuple[bytes, bytes]]) -> Generator[Deferred[Any], Any, None]:
        """Store the entries, unless the session is stopped meanwhile.

        :raises FatalError: the table does not take one.
        :raises TableError: the table failed.
        """
        session = self._session
        while not session.stopped and (part := list(islice(entries, WINDOW))):
            theirs: dict[bytes, R] = {}
            for key, value in part:
                self._take(key, value, theirs)
            ours = yield lookup_all(session.table, list(theirs))
            done = yield gather(self._store(theirs, ours))
            for result in done:
                if isinstance(result, Failure):
                    result.raiseException()
                if not result:
                    raise FatalError("greylist_table does not take all keys")
            session.console.progress(len(part))

    def summary(self) -> str:
        """Say what has become of the entries."""
        read = f"{sum(self.counts.values())} read"
        return ", ".join([read, *(f"{self.counts[fate]} {fate}" for fate in _FATES if self.counts[fate])])

    def _take(self, key: bytes, value: bytes, theirs: dict[bytes, R]) -> None:
        """Add an entry of postgrey's to those that are to be stored, if it is to be."""
        kind, session = self._kind, self._session
        try:
            table_key, record = kind.read(key, value, session.settings)
        except RecordError:
            self.counts[UNREADABLE] += 1
            return
        if is_hashed(key) and not session.settings.privacy:
            self.counts[HASHED] += 1
        elif kind.is_over(record, session.now, session.settings):
            self.counts[EXPIRED] += 1
        elif table_key in theirs:
            self.counts[JOINED] += 1
            theirs[table_key] = kind.join(theirs[table_key], record)
        else:
            theirs[table_key] = record

    def _store(self, theirs: dict[bytes, R], answers: list[Answer]) -> list[Deferred[bool]]:
        kind, session = self._kind, self._session
        updates = []
        for (key, record), answer in zip(theirs.items(), answers, strict=True):
            if isinstance(answer, Failure):
                answer.raiseException()
            known = None if answer is None else self._known(answer)
            new = record if known is None else kind.join(record, known)
            self.counts[STORED if known is None else KEPT if new == known else JOINED] += 1
            if new != known:
                ttl = kind.ttl(new, session.now, session.settings)
                updates.append(session.table.update(key, format_record(new), ttl))
        return updates

    def _known(self, value: bytes) -> R | None:
        """Read our own record; ``None`` for one that is of no use any more."""
        try:
            known = self._kind.parse(value)
        except RecordError:
            return None
        return None if self._kind.is_over(known, self._session.now, self._session.settings) else known
