"""What the whitelists say: postgrey's syntax, with what it takes and then never matches mended or refused.

One entry a line; ``#`` begins a comment anywhere, and white space around an entry does not count. Neither does case.

A list of **clients** has, as postgrey(8):

``host.domain``
    that host or domain, and all below it.
``.domain``, ``*.domain``
    what is below the domain, but not the domain itself: so access(5) takes the first (where
    ``parent_domain_matches_subdomains`` does not make it superfluous), and certificates have the second. postgrey takes
    them and never matches them.
``a.b.c.d``, ``a.b.c``, ``a.b``, ``a``
    an IPv4 address, or the addresses that begin so, as in access(5). postgrey takes ``a.b`` for ``a.b.0``, and ``a``
    for a name.
``a.b.c.d/length``, ``a:b::/length``, ``a:b::c``
    a network or an address. Bits behind the length do not count. IPv4 and IPv6 never match each other, not even with
    ``::/0``, as in cidr_table(5); IPv4 addresses that are written as IPv6 ones (``::ffff:a.b.c.d``) are IPv4.
``/expression/``
    a regular expression of Perl's that is searched in the client's name; see :mod:`.whitelist_regexp`.

A list of **mail addresses** has:

``user@domain``, ``user@``
    that user, in that domain or in any, also with an extension: ``user+extension@domain``.
``domain``
    all addresses in the domain, and in all domains below.
``@domain``
    all addresses in that very domain, as in virtual(5). postgrey takes it and never matches it.
``.domain``, ``*.domain``
    all addresses in domains below the domain, as for clients.
``/expression/``
    as for clients; it is searched in the whole address.
``<>``
    in a list of senders: the null sender of bounces.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

import attrs

from socketmap_memcache.config.syntax import excerpt
from socketmap_memcache.errors import Problem
from socketmap_memcache.policies.greylist.whitelist_regexp import Expression, translate
from socketmap_memcache.tables.cidr import Address, parse_address

_HOST = re.compile(rb"[\w-]+(?:\.[\w-]+)*")
_MAIL_DOMAIN = re.compile(rb"[\w\x80-\xff-]+(?:\.[\w\x80-\xff-]+)*|\[[^]]+\]")
_CONTROL = re.compile(rb"[\x00-\x20\x7f]")
_LIKE_IPV4 = re.compile(rb"[0-9./-]+")
_MAPPED = 0xFFFF  # ::ffff:0:0/96


@attrs.frozen
class Domain:
    """A domain, or a host.

    :ivar itself: whether it is meant itself; :ivar below: whether all below it is meant.
    """

    name: bytes
    itself: bool = True
    below: bool = True


@attrs.frozen
class Mailbox:
    """``user@domain``, ``user@``, or nothing for the null sender."""

    address: bytes


@attrs.frozen
class Network:
    """The addresses from the first to the last, of 32 or 128 bits."""

    bits: int
    first: int
    last: int


ClientEntry = Domain | Network | Expression
MailEntry = Domain | Mailbox | Expression
Entry = TypeVar("Entry")


def parse_clients(text: bytes, path: str, problems: list[Problem]) -> list[ClientEntry]:
    """Read a list of clients.

    :param path: the file that the text came from; it is only named.
    :param problems: is filled with what cannot be used; the other entries are returned.
    """
    return _parse(text, path, problems, _client)


def parse_recipients(text: bytes, path: str, problems: list[Problem]) -> list[MailEntry]:
    """Read a list of recipients; see :func:`parse_clients`."""
    return _parse(text, path, problems, _mail)


def parse_senders(text: bytes, path: str, problems: list[Problem]) -> list[MailEntry]:
    """Read a list of senders; see :func:`parse_clients`."""
    return _parse(text, path, problems, lambda entry: Mailbox(b"") if entry == b"<>" else _mail(entry))


def unmapped(address: Address) -> Address:
    """Return an address, but the IPv4 address for one that is mapped into IPv6."""
    bits, value = address
    return (32, value & 0xFFFFFFFF) if bits == 128 and value >> 32 == _MAPPED else address


def _parse(text: bytes, path: str, problems: list[Problem], read: Callable[[bytes], Entry]) -> list[Entry]:
    entries = []
    for number, line in enumerate(text.split(b"\n"), 1):
        entry = line.partition(b"#")[0].strip()
        if not entry:
            continue
        try:
            if _CONTROL.search(entry):
                hint = r" (in a regular expression write \s)" if entry.startswith(b"/") else ""
                raise ValueError(f"one entry a line, without white space or control characters in it{hint}")
            found = read(entry)
            entries.append(attrs.evolve(found, place=f"{path}:{number}") if isinstance(found, Expression) else found)
        except ValueError as error:
            problems.append(Problem(f'{error}: "{excerpt(entry)}"', path, number))
    return entries


def _client(entry: bytes) -> ClientEntry:
    if entry.startswith(b"/"):
        return _expression(entry)
    if b"@" in entry:
        raise ValueError(
            "an e-mail address in a list of clients, which has host names and IP addresses "
            "(greylist_sender_whitelist and greylist_recipient_whitelist have e-mail addresses)"
        )
    if b":" in entry or _LIKE_IPV4.fullmatch(entry):
        return _network(entry)
    return _domain(entry, _HOST, "neither a host name or domain, nor an IP address or network")


def _mail(entry: bytes) -> MailEntry:
    if entry.startswith(b"/"):
        return _expression(entry)
    if entry.startswith(b"<"):
        raise ValueError("an e-mail address is written without < and >")
    if parse_address(entry.partition(b"/")[0]) or _LIKE_IPV4.fullmatch(entry):
        raise ValueError("an IP address in a list of e-mail addresses (greylist_client_whitelist has IP addresses)")
    local, at, domain = entry.rpartition(b"@")
    if not at:
        return _domain(domain, _MAIL_DOMAIN, "neither a domain nor an e-mail address")
    if local == b"*":
        raise ValueError(f"for all addresses in a domain write @{excerpt(domain)}")
    if not _MAIL_DOMAIN.fullmatch(domain) and (domain or not local):
        raise ValueError("not an e-mail address, because of what is behind the @")
    return Mailbox(entry.lower()) if local else Domain(domain.lower(), below=False)


def _expression(entry: bytes) -> Expression:
    if len(entry) < 3 or not entry.endswith(b"/"):
        raise ValueError(r"a regular expression is written /expression/, without flags; for # write \x23")
    return translate(entry[1:-1])


def _domain(entry: bytes, form: re.Pattern[bytes], complaint: str) -> Domain:
    name = entry.removeprefix(b"*.").removeprefix(b".")
    if not form.fullmatch(name):
        raise ValueError(complaint)
    return Domain(name.lower(), itself=name == entry)


def _network(entry: bytes) -> Network:
    text, slash, length = entry.partition(b"/")
    numbers = text.split(b".")
    if not slash and b":" not in text and len(numbers) < 4:
        text, length = b".".join([*numbers, *[b"0"] * (4 - len(numbers))]), b"%d" % (8 * len(numbers))
    address = parse_address(text)
    if address is None:
        raise ValueError("neither an IP address nor a network (address/length)")
    if slash and not (length.isdigit() and int(length[:4]) <= address[0]):
        raise ValueError(f"the length of such a network, behind the /, is 0 to {address[0]}")
    host_bits = address[0] - int(length) if length else 0
    bits, value = unmapped(address) if host_bits <= 32 else address
    first = value >> host_bits << host_bits
    return Network(bits, first, first | (1 << host_bits) - 1)
