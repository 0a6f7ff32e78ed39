"""Partial keys: the look-ups that Postfix makes in tables of its own, but not in a ``socketmap:`` table.

Postfix asks a ``memcache:`` table, or any table of fixed strings, for an address, then for the address without its
extension, for its domain and so on, and takes what it finds first. It asks a ``socketmap:`` for the full key only. With
``partial_keys`` the service makes these look-ups itself: all at once, and what counts is the first in Postfix's order.

The orders are those of virtual(5), canonical(5), transport(5) and access(5).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv6Address
from typing import NamedTuple, TypeAlias

import attrs
from twisted.internet.defer import Deferred, fail
from zope.interface import implementer

from socketmap_memcache.errors import PermanentError
from socketmap_memcache.tables.interface import ICursor, IRefusing, ISweptTable, ITable, ReadOnlyError, sweep
from socketmap_memcache.tables.lookup_first import lookup_first
from socketmap_memcache.tables.mail_address import add_extension, quote, split_extension, unquote
from socketmap_memcache.tables.match_list import MatchList
from socketmap_memcache.tables.read_only import refusal_of
from socketmap_memcache.under_way import UnderWay

#: Bytes: no address or host name in mail is longer (Postfix's line_length_limit). It could have thousands of parents.
KEY_LIMIT = 2048

#: The kinds of look-ups: the keys that they are made with, and what ``parent_domain_matches_subdomains`` of Postfix has
#: for them by default.
KINDS = {
    "address": True,  # an address: virtual_alias_maps, canonical_maps, recipient maps...
    "transport": False,  # an address: transport_maps
    "access": True,  # an address: check_sender_access, check_recipient_access
    "domain": True,  # a host name: check_helo_access, check_client_access
    "client": True,  # a host name or an address of a host: check_client_access
}


class Name(NamedTuple):
    """The local part of an address.

    :ivar local: without quotes.
    :ivar external: in quotes, if it needs them.
    :ivar extension: the part of the asked address that has been taken off it, delimiter included, or nothing.
    """

    local: bytes
    external: bytes
    extension: bytes = b""


#: Keys to try, that which counts most first, each with the local part that it has or is; ``None`` if it has none.
Candidates: TypeAlias = "dict[bytes, Name | None]"


@attrs.frozen
class PartialKeys:
    """How keys are made of the key that Postfix asks for.

    :ivar kind: one of :data:`KINDS`.
    :ivar delimiters: the characters of ``recipient_delimiter``, any of which begins an address extension.
    :ivar local_domains: the domains whose users are also looked up by name alone (kind ``address``), or ``None``.
    :ivar subdomains_match: whether ``example.com`` also stands for the domains below it; else ``.example.com`` does.
    :ivar propagate: whether an extension that the key found does not have is added to the addresses in its value, as
        ``propagate_unmatched_extensions`` has it for canonical and virtual (kind ``address``).
    """

    kind: str
    delimiters: bytes = b""
    local_domains: MatchList | None = None
    subdomains_match: bool = True
    propagate: bool = True

    def close(self) -> None:
        """Close the list of local domains."""
        if self.local_domains is not None:
            self.local_domains.close()

    def candidates(self, key: bytes, is_local: bool) -> Candidates:
        """Give the keys to try.

        :param key: as Postfix asks for it: any bytes.
        :param is_local: whether the key's domain is in ``local_domains``.
        """
        found: Candidates = {}
        if self.kind in {"client", "domain"}:
            found.update(dict.fromkeys(self._hosts(key)))
        elif self.kind == "address":
            self._add_addresses(found, key, is_local)
        else:
            self._add_addresses_and_domains(found, key)
        found.pop(b"", None)  # Postfix asks for no empty key
        return found

    def _hosts(self, key: bytes) -> Iterable[bytes]:
        if not _is_host_address(key):
            return self._domains(key)
        # The address of a host has networks, but no parent domains.
        return self._networks(key) if self.kind == "client" else [key]

    def _add_addresses(self, found: Candidates, key: bytes, is_local: bool) -> None:
        names, domain = self._names(key)
        # In canonical and virtual tables Postfix looks for addresses in quotes only, in others also for those without.
        # Those it asks for in a second query, and they are the keys that should have quotes and have none.
        unquoted = key != names[0].external + domain
        _add_names(found, names, domain, unquoted)
        if is_local:
            _add_names(found, names, b"", unquoted)
        found.setdefault(domain)

    def _add_addresses_and_domains(self, found: Candidates, key: bytes) -> None:
        names, domain = self._names(key)
        if not domain:
            # "*" of transport(5), "<>" for the sender of bounces: those are asked for as they are.
            found[key] = None
            return
        _add_names(found, names, domain, unquoted=True)
        for parent in self._domains(domain[1:]):
            found.setdefault(parent)
        if self.kind == "access":
            _add_names(found, names, b"@", unquoted=True)

    def _names(self, address: bytes) -> tuple[Sequence[Name], bytes]:
        """Give the local part, also without its extension if it has one, and the domain with its ``@``."""
        local, at, domain = address.rpartition(b"@")
        whole = unquote(local if at else domain)
        user, extension = split_extension(whole, self.delimiters)
        names = [Name(whole, quote(whole))]
        if extension:
            names.append(Name(user, quote(user), extension))
        return names, at + domain if at else b""

    def _domains(self, domain: bytes) -> Iterator[bytes]:
        while domain:
            yield domain
            dot = domain.find(b".", 1)
            if dot < 0:
                return
            domain = domain[dot + 1 :] if self.subdomains_match else domain[dot:]

    @staticmethod
    def _networks(address: bytes) -> Iterator[bytes]:
        delimiter = b":" if b":" in address else b"."
        while address:
            yield address
            address = address.rpartition(delimiter)[0]

    def value(self, value: bytes, name: Name | None) -> bytes:
        """Give the value as Postfix would have made it, had it tried the keys itself.

        What was asked for had an extension, and the key that was found has not: Postfix cannot know that.

        :param name: that of the candidate that was found.
        """
        if self.kind != "address" or name is None or not name.extension:
            return value
        if value.startswith(b"@"):
            # "The same user in another domain". Postfix would take the extension for part of the user.
            user, _, domain = (name.local + value).rpartition(b"@")
            value = quote(user) + b"@" + domain
        return add_extension(value, name.extension) if self.propagate else value


def _add_names(found: Candidates, names: Iterable[Name], domain: bytes, unquoted: bool) -> None:
    """Add addresses, those in quotes first, which is the order of Postfix.

    :param domain: with its ``@``; or empty.
    :param unquoted: whether to add those without quotes, too.
    """
    for name in names:
        found.setdefault(name.external + domain, name)
        if unquoted:
            found.setdefault(name.local + domain, name)


def _is_host_address(name: bytes) -> bool:
    """Say whether a name is an IPv4 or IPv6 address to Postfix."""
    if b":" not in name:
        octets = [int(octet) if octet.isdigit() and len(octet) < 10 else 256 for octet in name.split(b".")]
        return len(octets) == 4 and max(octets) < 256 and (octets[0] > 0 or not any(octets))
    try:
        IPv6Address(name.decode("ascii"))
    except ValueError:
        return False
    return b"%" not in name  # one with a scope is none to Postfix


@implementer(ISweptTable, IRefusing)
class PartialKeysTable:
    """Tries partial keys in a table. Everything but look-ups is that table's."""

    def __init__(self, table: ITable, partial_keys: PartialKeys) -> None:
        """Make a table that closes the other one, and the list of local domains."""
        self.name = table.name
        self._table = table
        self._lookup_first = lookup_first(table)
        self._partial_keys = partial_keys
        self._under_way = UnderWay(self._let_go)  # counts what waits for the list of local domains

    def lookup(self, key: bytes) -> Deferred[bytes | None]:
        """Look up the key and its partial keys; see :class:`ITable`.

        The first that exists counts. A failure of a key before that one is a failure of the whole, and so is a key of
        more than :data:`KEY_LIMIT` bytes.
        """
        if len(key) > KEY_LIMIT:
            return fail(PermanentError(f"{self.name}: a key of {len(key)} bytes is above the limit of {KEY_LIMIT}"))
        domains = self._partial_keys.local_domains
        match = domains is not None and domains.match(key.rpartition(b"@")[2])
        if not isinstance(match, Deferred):
            return self._lookup(match, key)
        self._under_way.count += 1
        return match.addCallback(self._lookup, key).addBoth(self._under_way.done)

    def _lookup(self, is_local: bool, key: bytes) -> Deferred[bytes | None]:
        candidates = self._partial_keys.candidates(key, is_local)
        keys = list(candidates)
        return self._lookup_first(keys).addCallback(self._found, keys, candidates)

    def _found(self, found: tuple[int, bytes] | None, keys: Sequence[bytes], candidates: Candidates) -> bytes | None:
        if found is None:
            return None
        place, value = found
        return self._partial_keys.value(value, candidates[keys[place]])

    def update(self, key: bytes, value: bytes, ttl: int | None = None) -> Deferred[bool]:
        """See :class:`ITable`."""
        return self._table.update(key, value, ttl)

    def delete(self, key: bytes) -> Deferred[bool]:
        """See :class:`ITable`."""
        return self._table.delete(key)

    def cursor(self) -> ICursor:
        """See :class:`ITable`."""
        return self._table.cursor()

    def sweep(self) -> ICursor:
        """Walk through the table, partial keys or not; see :class:`ISweptTable`."""
        return sweep(self._table)

    def refusal(self, operation: str) -> ReadOnlyError | None:
        """See :class:`IRefusing`."""
        return refusal_of(self._table, operation)

    def close(self) -> None:
        """See :class:`ITable`."""
        self._under_way.close()

    def _let_go(self) -> None:
        self._table.close()
        self._partial_keys.close()
