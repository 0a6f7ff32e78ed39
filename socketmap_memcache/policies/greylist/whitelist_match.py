"""Whether a client or a mail address is in a list. What it costs does not depend on how long the list is, but for
regular expressions.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable
from functools import lru_cache

from socketmap_memcache.policies.greylist.key import parse_unmapped
from socketmap_memcache.policies.greylist.whitelist_regexp import Expression
from socketmap_memcache.policies.greylist.whitelist_syntax import (
    ClientEntry,
    Domain,
    Mailbox,
    MailEntry,
    Network,
)
from socketmap_memcache.tables.time_limit import call_with_limit

#: Bytes: what is longer is in no list. No name or address in mail is as long, and postgrey cuts it there.
LONGEST = 512

#: Seconds of processor time for all regular expressions of a list, because nothing else is done meanwhile.
TIME_LIMIT = 0.2

# Names that need not be searched again. Most clients that are greylisted have the same one: ``unknown``.
_NAMES = 1000

# Bytes of a subject in which expressions that are quick are so; no host name has more.
_QUICK_LENGTH = 255

# Expressions that are made into one: it is found several times faster than they are one after the other.
_JOINED = 100


Search = Callable[[bytes], "re.Match[bytes] | None"]


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
        :raises TimeLimitError: it cannot be told, because the regular expressions take too long.
        """
        if self._networks.has(address):
            return True
        return len(name) <= LONGEST and self._has_name(name)

    def _find_name(self, name: bytes) -> bool:
        return self._domains.has(name.lower()) or self._expressions.found_in(name)


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

        :raises TimeLimitError: it cannot be told, because the regular expressions take too long.
        """
        if len(address) > LONGEST:
            return False
        folded = address.lower()
        local, at, domain = folded.rpartition(b"@")
        if not at:
            local, domain = domain, b""
        return self._has_user(local, domain) or self._domains.has(domain) or self._expressions.found_in(address)

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
    """Regular expressions."""

    def __init__(self, expressions: Iterable[Expression]) -> None:
        """Compile those of a list."""
        expressions = list(expressions)
        self._quick = _searches(expression for expression in expressions if expression.quick)
        self._others = _searches(expression for expression in expressions if not expression.quick)

    def found_in(self, subject: bytes) -> bool:
        """Say whether one of them is found.

        :raises TimeLimitError: it takes too long.
        """
        if len(subject) > _QUICK_LENGTH:
            return self._found_slowly(self._quick, subject) or self._found_slowly(self._others, subject)
        return _found(self._quick, subject) or self._found_slowly(self._others, subject)

    def _found_slowly(self, searches: list[Search], subject: bytes) -> bool:
        return bool(searches) and call_with_limit(TIME_LIMIT, lambda subject: _found(searches, subject), subject)


def _searches(expressions: Iterable[Expression]) -> list[Search]:
    expressions = list(expressions)
    joinable = [b"(?:%b)" % expression.text for expression in expressions if expression.joinable]
    joined = [b"|".join(joinable[start : start + _JOINED]) for start in range(0, len(joinable), _JOINED)]
    alone = [expression.text for expression in expressions if not expression.joinable]
    return [re.compile(text, re.IGNORECASE).search for text in [*joined, *alone]]


def _found(searches: list[Search], subject: bytes) -> bool:
    for search in searches:  # noqa: SIM110 (any() would take longer than the search)
        if search(subject):
            return True
    return False
