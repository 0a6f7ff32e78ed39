"""Whether a table's servers have leases, which only trying can tell."""

from __future__ import annotations

from collections.abc import Callable

from twisted.logger import Logger

from socketmap_memcache.memcache.interface import LeasesUnsupportedError

#: Seconds for which nobody asks for leases after the server has turned out not to have them, at first and at most; it
#: doubles in between. Not for ever: a proxy closes the connection when it is asked for one, so that it looks like a
#: server that has died just then.
FIRST_REST = 10.0
LAST_REST = 600.0


class LeaseSupport:
    """Remembers what came of asking for leases."""

    _log = Logger()

    def __init__(self, table: str, clock: Callable[[], float]) -> None:
        """Expect that there are leases.

        :param table: its name, for the log.
        :param clock: gives seconds.
        """
        self._table = table
        self._clock = clock
        self._proven = False
        self._logged = False
        self._rest = FIRST_REST
        self._rests_until = float("-inf")

    def expected(self) -> bool:
        """Say whether to ask for leases at present."""
        return self._clock() >= self._rests_until

    def prove(self) -> None:
        """Hear that a server has leases."""
        self._proven = True
        self._rest = FIRST_REST

    def doubt(self, error: BaseException | None) -> None:
        """Hear that asking for a lease has failed. If that says nothing about leases, nothing comes of it."""
        if self._proven and not isinstance(error, LeasesUnsupportedError):
            return
        self._proven = False
        self._rests_until = self._clock() + self._rest
        self._rest = min(self._rest * 2, LAST_REST)
        if not self._logged:
            self._logged = True
            self._log.warn(
                "{table}: look-ups go on without leases, now and then they are tried again (lease = yes needs a direct "
                "connection to memcached 1.6; logged once): {error}",
                table=self._table,
                error=error,
            )
