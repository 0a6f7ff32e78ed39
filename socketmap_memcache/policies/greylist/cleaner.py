"""Deletes records that make no difference any more, for tables that do not do so themselves.

An entry with a time to live ends by itself in most tables, but not in all, and some need somebody to walk through them
before they delete it.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, inlineCallbacks
from twisted.internet.task import deferLater
from twisted.logger import Logger

from socketmap_memcache.clock import time_of_day
from socketmap_memcache.errors import TableError
from socketmap_memcache.policies.greylist.decide import client_is_over, triplet_is_over
from socketmap_memcache.policies.greylist.key import CLIENT, TRIPLET
from socketmap_memcache.policies.greylist.record import RecordError, parse_client, parse_triplet
from socketmap_memcache.policies.greylist.settings import Settings
from socketmap_memcache.tables.interface import ITable, NoBackupError, ReadOnlyError, sweep

#: Seconds from the start to the first walk, and from the end of one to the next.
FIRST_PAUSE, PAUSE = 600.0, 24 * 3600.0

#: Seconds from a walk that failed to the next one.
RETRY_PAUSE = 3600.0

#: Entries between two breaks of a walk.
STEPS = 50

#: Seconds that a walk takes, about, if the table has not grown since the one before; and a break, at most.
DURATION, LONGEST_BREAK = 3600.0, 1.0

#: Entries that a table is expected to have at the first walk.
EXPECTED = 500_000


class Cleaner:
    """Walks through a table from time to time, one entry after the other, with breaks."""

    _log = Logger()

    def __init__(
        self,
        table: ITable,
        settings: Settings,
        reactor: Any,
        first_pause: float = FIRST_PAUSE,
        pause: float = PAUSE,
        duration: float = DURATION,
    ) -> None:
        """Begin to wait for the first walk.

        :param table: is not closed with this.
        :param first_pause: seconds until the first walk.
        :param pause: seconds between two walks.
        :param duration: seconds that a walk may take.
        """
        self._table = table
        self._settings = settings
        self._reactor = reactor
        self._seconds = time_of_day(reactor)
        self._first_pause = first_pause
        self._pause = pause
        self._duration = duration
        self._expected = EXPECTED
        self._life = self._live()

    def stop(self) -> None:
        """Walk no more. Idempotent."""
        self._life.cancel()

    @inlineCallbacks
    def _live(self) -> Generator[Deferred[Any], Any, None]:
        pause = self._first_pause
        while True:
            try:
                yield deferLater(self._reactor, pause)
                pause = RETRY_PAUSE
                yield self._walk()
                pause = self._pause
            except CancelledError:
                return
            except (NoBackupError, ReadOnlyError):
                return  # it cannot be walked through, and forgets by itself
            except TableError as error:
                self._log.warn("{table}: clean-up: {error}", table=self._table.name, error=error)
            except Exception:  # noqa: BLE001 (or what is over would be kept from now on)
                self._log.failure("{table}: clean-up has failed in an unforeseen way", table=self._table.name)

    @inlineCallbacks
    def _walk(self) -> Generator[Deferred[Any], Any, None]:
        """Walk through the table once."""
        cursor = sweep(self._table)
        seen = deleted = 0
        while (entry := (yield cursor.next())) is not None:
            seen += 1
            if self._is_over(*entry):
                # Whoever sees it again at this moment waits once more.
                deleted += yield self._table.delete(entry[0])
            if seen % STEPS == 0:
                yield deferLater(self._reactor, min(self._duration * STEPS / self._expected, LONGEST_BREAK))
        self._expected = max(seen, 1)
        text = "{table}: clean-up finished. before: {before}, after: {after}"
        self._log.info(text, table=self._table.name, before=seen, after=seen - deleted)

    def _is_over(self, key: bytes, value: bytes) -> bool:
        """Say whether an entry is to be deleted. What is not a record is left alone: who knows whose it is."""
        now = int(self._seconds())
        try:
            if key.startswith(TRIPLET):
                return triplet_is_over(parse_triplet(value), now, self._settings)
            return key.startswith(CLIENT) and client_is_over(parse_client(value), now, self._settings)
        except RecordError:
            return False
