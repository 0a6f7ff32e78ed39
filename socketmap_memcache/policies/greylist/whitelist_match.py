"""Whether a client or a mail address is in a list. What it costs does not depend on how long the list is, but for
regular expressions.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import lru_cache
from time import process_time

from socketmap_memcache.policies.greylist.key import parse_unmapped
from socketmap_memcache.policies.greylist.whitelist_regexp import Expression
from socketmap_memcache.policies.greylist.whitelist_syntax import (
    ClientEntry,
    Domain,
    Mailbox,
    MailEntry,
    Network,
)
from socketmap_memcache.tables.time_limit import TimeLimitError, call_with_limit

#: Bytes: what is longer is in no list. No name or address in mail is as long, and postgrey cuts it there.
LONGEST = 512

#: Seconds of processor time for all regular expressions of a list, because nothing else is done meanwhile.
TIME_LIMIT = 0.2

# Expressions that may be set aside; with the last of them, all others are, as each takes up to two limits.
_MOST_ASIDE = 10

# Names that need not be searched again. Most clients that are greylisted have the same one: ``unknown``.
_NAMES = 1000

# Bytes of a subject in which expressions that are quick are so, also a hundred of them; most names and addresses have
# less.
_QUICK_LENGTH = 64

# Expressions that are made into one: it is found several times faster than they are one after the other.
_JOINED = 100


Search = Callable[[bytes], "re.Match[bytes] | None"]


class SlowExpressionError(Exception):
    """A subject has not been found in time, and what took the time has been set aside.

    :ivar place: the file and the line of that expression.
    :ivar all_aside: whether there have been so many that all expressions are set aside.
    """

    def __init__(self, place: str, all_aside: bool) -> None:
        super().__init__(place)
        self.place = place
        self.all_aside = all_aside


class ClientMatcher:
    """A list of clients."""

    def __init__(self, entries: Iterable[ClientEntry]) -> None:
        """Take what the parser made of it."""
        entries = list(entries)
        self._domains = DomainSet(entry for entry in entries if isinstance(entry, Domain))
        self._networks = NetworkSet(entry for entry in entries if isinstance(entry, Network))
        self._expressions = ExpressionSet(entry for entry in entries if isinstance(entry, Expression))
        self._has_name = lru_cache(_NAMES)(self._find_name)

    def matches(self, name: bytes, address: bytes) -> bool:
        """Say whether a client is in the list.

        :param name: its host name, or ``unknown``.
        :param address: its IP address; anything else matches no address.
        :raises SlowExpressionError: it cannot be told, because a regular expression takes too long.
        """
        if self._networks.has(address):
            return True
        return len(name) <= LONGEST and self._has_name(name)

    def _find_name(self, name: bytes) -> bool:
        return self._domains.has(name.lower()) or self._expressions.found_in(name)

    def resume(self) -> None:
        """Use again what has been set aside."""
        self._expressions.resume()
        self._has_name.cache_clear()  # it may have what would have been found


class MailMatcher:
    """A list of recipients, or of senders."""

    def __init__(self, entries: Iterable[MailEntry]) -> None:
        """Take what the parser made of it."""
        entries = list(entries)
        self._mailboxes = frozenset(entry.address for entry in entries if isinstance(entry, Mailbox))
        self._domains = DomainSet(entry for entry in entries if isinstance(entry, Domain))
        self._expressions = ExpressionSet(entry for entry in entries if isinstance(entry, Expression))

    def matches(self, address: bytes) -> bool:
        """Say whether an address is in the list. One without a domain is ``user@`` of any domain.

        :raises SlowExpressionError: it cannot be told, because a regular expression takes too long.
        """
        if len(address) > LONGEST:
            return False
        folded = address.lower()
        local, at, domain = folded.rpartition(b"@")
        if not at:
            local, domain = domain, b""
        return self._has_user(local, domain) or self._domains.has(domain) or self._expressions.found_in(address)

    def resume(self) -> None:
        """Use again what has been set aside."""
        self._expressions.resume()

    def _has_user(self, local: bytes, domain: bytes) -> bool:
        """Look for the user, and for all that it can be an extension of."""
        mailboxes = self._mailboxes
        if not local:
            return not domain and b"" in mailboxes
        end = len(local)
        while end > 0:
            user = local[:end] + b"@"
            if user in mailboxes or user + domain in mailboxes:
                return True
            end = local.rfind(b"+", 0, min(end, len(local) - 1))  # something has to be behind the +
        return False


class DomainSet:
    """Domains and hosts."""

    def __init__(self, domains: Iterable[Domain]) -> None:
        """Take those of a list; their names are folded."""
        domains = list(domains)
        self._themselves = frozenset(domain.name for domain in domains if domain.itself)
        self._above = frozenset(domain.name for domain in domains if domain.below)

    def has(self, name: bytes) -> bool:
        """Say whether one of them is, or is above, a name that has been folded."""
        if name in self._themselves:
            return True
        above = self._above
        dot = name.find(b".")
        while dot >= 0:
            if name[dot + 1 :] in above:
                return True
            dot = name.find(b".", dot + 1)
        return False


class NetworkSet:
    """Addresses, kept as ranges that neither overlap nor touch, so that one search by halves finds any."""

    def __init__(self, networks: Iterable[Network]) -> None:
        """Take those of a list."""
        self._ranges: dict[int, tuple[list[int], list[int]]] = {}
        for network in sorted(networks, key=lambda network: network.first):
            firsts, lasts = self._ranges.setdefault(network.bits, ([], []))
            if lasts and network.first <= lasts[-1] + 1:
                lasts[-1] = max(lasts[-1], network.last)
            else:
                firsts.append(network.first)
                lasts.append(network.last)

    def has(self, text: bytes) -> bool:
        """Say whether one of them has an address, which is given as text."""
        if not self._ranges:
            return False
        address = parse_unmapped(text)
        if address is None:
            return False
        bits, value = address
        if bits not in self._ranges:
            return False
        firsts, lasts = self._ranges[bits]
        place = bisect_right(firsts, value) - 1
        return place >= 0 and value <= lasts[place]


class ExpressionSet:
    """Regular expressions. One that takes too long is set aside: nothing else is done while it is searched."""

    def __init__(self, expressions: Iterable[Expression]) -> None:
        """Compile those of a list."""
        expressions = list(expressions)
        self._joined_quick = _searches(expression for expression in expressions if expression.quick)
        self._joined_others = _searches(expression for expression in expressions if not expression.quick)
        self._all = [(_search(each.text), each.place) for each in sorted(expressions, key=lambda each: not each.quick)]
        self.resume()

    def found_in(self, subject: bytes) -> bool:
        """Say whether one of them is found.

        :raises SlowExpressionError: it takes too long.
        """
        if len(subject) > _QUICK_LENGTH:
            return self._found_slowly(self._quick, subject) or self._found_slowly(self._others, subject)
        return _found(self._quick, subject) or self._found_slowly(self._others, subject)

    def resume(self) -> None:
        """Use all of them, joined."""
        self._in_use = self._all
        self._quick, self._others = self._joined_quick, self._joined_others

    def _found_slowly(self, searches: list[Search], subject: bytes) -> bool:
        try:
            return bool(searches) and call_with_limit(TIME_LIMIT, lambda subject: _found(searches, subject), subject)
        except TimeLimitError:
            raise self._set_aside(subject) from None

    def _set_aside(self, subject: bytes) -> SlowExpressionError:
        """Use the expression that takes the most time for a subject no more, and return what is to be raised.

        The others are not joined any more, and all have the time limit.
        """
        taken: list[float] = []

        def search_each(subject: bytes) -> None:
            for search, _ in self._in_use:
                begin = process_time()
                try:
                    search(subject)
                finally:
                    taken.append(process_time() - begin)

        with suppress(TimeLimitError):
            call_with_limit(TIME_LIMIT, search_each, subject)
        slow = self._in_use[max(range(len(taken)), key=taken.__getitem__, default=0)]
        all_aside = len(self._all) - len(self._in_use) >= _MOST_ASIDE - 1
        self._in_use = [] if all_aside else [each for each in self._in_use if each is not slow]
        self._quick, self._others = [], [search for search, _ in self._in_use]
        return SlowExpressionError(slow[1], all_aside)


def _searches(expressions: Iterable[Expression]) -> list[Search]:
    expressions = list(expressions)
    joinable = [b"(?:%b)" % expression.text for expression in expressions if expression.joinable]
    joined = [b"|".join(joinable[start : start + _JOINED]) for start in range(0, len(joinable), _JOINED)]
    alone = [expression.text for expression in expressions if not expression.joinable]
    return [_search(text) for text in [*joined, *alone]]


def _search(text: bytes) -> Search:
    return re.compile(text, re.IGNORECASE).search


def _found(searches: list[Search], subject: bytes) -> bool:
    for search in searches:  # noqa: SIM110 (any() would take longer than the search)
        if search(subject):
            return True
    return False
