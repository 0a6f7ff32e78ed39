"""Which rows ``socketmap-memcache greylist`` is asked for."""

from __future__ import annotations

import re
from fnmatch import translate
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import attrs

from socketmap_memcache.commands.greylist_rows import Row
from socketmap_memcache.commands.map_console import Console, FatalError
from socketmap_memcache.policies.greylist.key import ClientAddress, normalize_sender, parse_client
from socketmap_memcache.policies.greylist.log_line import printable as shown
from socketmap_memcache.policies.greylist.settings import Settings
from socketmap_memcache.tables.folding import fold

_WILD = re.compile(rb"[*?]")


def client_address(text: bytes, settings: Settings) -> ClientAddress:
    """Read a client's address on the command line.

    :raises FatalError: it is none.
    """
    client = parse_client(text, settings)
    if client is None:
        raise FatalError(f"{shown(text)}: not an IP address")
    return client


def sender_address(text: bytes) -> bytes:
    """Read a sender on the command line: the null sender may be written ``<>``."""
    return b"" if text == b"<>" else text


@attrs.frozen
class RowFilter:
    """Says which rows are meant; those with hashed keys never are, where anything is asked for.

    :ivar client: an address, which stands for its network in triplets, or a network; ``None`` for any.
    :ivar sender: a pattern for the address in the key; ``None`` for any.
    :ivar recipient: likewise.
    """

    client: ClientAddress | IPv4Network | IPv6Network | None
    sender: re.Pattern[bytes] | None
    recipient: re.Pattern[bytes] | None

    @classmethod
    def read(cls, client: bytes | None, sender: bytes | None, recipient: bytes | None, settings: Settings) -> RowFilter:
        """Make one of what the command line says.

        :param client: an IP address or network.
        :param sender: an address, ``@domain``, or a pattern with ``*`` and ``?``; and so is the recipient.
        :raises FatalError: the client is neither.
        """
        senders = None if sender is None else _pattern(sender_address(sender), settings)
        recipients = None if recipient is None else _pattern(recipient)
        return cls(None if client is None else _client(client, settings), senders, recipients)

    @property
    def is_empty(self) -> bool:
        """Whether all rows are meant."""
        return self.client is None and self.sender is None and self.recipient is None

    def matches(self, row: Row) -> bool:
        """Say whether a row is meant."""
        if self.is_empty:
            return True
        if row.plain is None:
            return False
        client, *addresses = row.plain
        if self.client is not None and not _is_of(self.client, client, row.is_triplet):
            return False
        sender, recipient = addresses or (None, None)
        return _fits(self.sender, sender) and _fits(self.recipient, recipient)


def warn_of_hashed(console: Console, count: int, operation: str) -> None:
    """Tell of entries whose keys do not say whether they are meant.

    :param count: how many there are, if any.
    :param operation: what can be done with one of them.
    """
    if count:
        console.warn(f"{count} entries have hashed keys and may be meant too; {operation} CLIENT SENDER RECIPIENT")


def _is_of(client: ClientAddress | IPv4Network | IPv6Network, text: bytes, is_triplet: bool) -> bool:
    if isinstance(client, ClientAddress):
        return text == (client.network if is_triplet else client.text).lower()
    try:
        return ip_address(text.partition(b"/")[0].decode()) in client
    except ValueError:
        return False


def _client(text: bytes, settings: Settings) -> ClientAddress | IPv4Network | IPv6Network:
    if b"/" not in text:
        return client_address(text, settings)
    try:
        return ip_network(text.decode(), strict=False)
    except ValueError:
        raise FatalError(f"{shown(text)}: not an IP network") from None


def _pattern(text: bytes, settings: Settings | None = None) -> re.Pattern[bytes]:
    """:param settings: those by which the address in the key was made, for a sender."""
    if _WILD.search(text):
        literal = _folded(text).replace(b"[", b"[[]")  # of an address as user@[192.0.2.1]
        return re.compile(translate(literal.decode("latin-1")).encode("latin-1"))
    if text.startswith(b"@"):
        return re.compile(rb".*" + re.escape(_folded(text)), re.DOTALL)
    return re.compile(re.escape(_folded(text if settings is None else normalize_sender(text, settings))))


def _folded(text: bytes) -> bytes:
    return fold(text) or text


def _fits(pattern: re.Pattern[bytes] | None, address: bytes | None) -> bool:
    """Say whether there is no pattern, or an address that it matches."""
    return pattern is None or (address is not None and pattern.fullmatch(address) is not None)
