"""``domain``: the keys that a table is asked for, by the domains of their addresses."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, succeed

from socketmap_memcache.under_way import UnderWay

if TYPE_CHECKING:
    from socketmap_memcache.tables.match_list import MatchList


class DomainCheck:
    """Keeps the other keys from a table that has a list of domains."""

    def __init__(self, domain: MatchList | None, under_way: UnderWay) -> None:
        """:param domain: ``None`` lets all keys through.

        :param under_way: counts what waits for a table in the list.
        """
        self._domain = domain
        self._under_way = under_way

    def if_in_domain(self, key: bytes, action: Callable[[bytes], Deferred[Any]], skipped: object) -> Deferred[Any]:
        """Do something with a key if its domain is in the list.

        :param skipped: the result if it is not.
        """
        match = self._domain is None or self._domain.match_address(key)
        if isinstance(match, Deferred):
            self._under_way.count += 1
            return match.addCallback(lambda yes: action(key) if yes else skipped).addBoth(self._under_way.done)
        return action(key) if match else succeed(skipped)
