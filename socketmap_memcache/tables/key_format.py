"""``key_format``: the key that a cache is asked for, made of the key that Postfix looks up."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import attrs

from socketmap_memcache.config.syntax import excerpt

_SPECIFIER = re.compile(rb"%(.?)", re.DOTALL)

# The place of each value that a key gives, in the sequence that KeyParts.split() makes.
_KEY, _USER, _DOMAIN = 0, 1, 2

KEY_FIELDS = {b"s": _KEY, b"S": _KEY, b"u": _USER, b"U": _USER, b"d": _DOMAIN, b"D": _DOMAIN}
"""The place of the value that each specifier stands for."""
KEY_FIELDS |= {b"%d" % number: _DOMAIN + number for number in range(1, 10)}

Template = tuple[bytes | int, ...]
"""Literal text, which is not empty, and places of values."""


def parse_template(template: bytes, fields: Mapping[bytes, int], what: str = "query") -> Template:
    """Compile a template; ``%%`` stands for ``%``.

    :param fields: the place of the value that each specifier stands for.
    :param what: what is made with it, for the error.
    :raises ValueError: with the reason, for a ``%`` that is followed by anything else or by nothing.
    """
    pieces: list[bytes | int] = []
    literal = b""
    for position, text in enumerate(_SPECIFIER.split(template)):
        if position % 2 == 0:
            literal += text
        elif text == b"%":
            literal += b"%"
        elif text in fields:
            pieces += [literal, fields[text]]
            literal = b""
        else:
            reason = "after % comes one of %, s, u, d, S, U, D, 1 to 9"
            raise ValueError(f"invalid {what} template: {excerpt(template)} ({reason})")
    pieces.append(literal)
    return tuple(piece for piece in pieces if piece != b"")


def fill(template: Template, values: Sequence[bytes]) -> bytes:
    """Return the text of a template, with the values in their places."""
    return b"".join([values[piece] if isinstance(piece, int) else piece for piece in template])


@attrs.frozen
class KeyParts:
    """What templates use of a key."""

    _uses_user: bool
    _uses_domain: bool
    _labels: int  # as many labels must the domain have

    @classmethod
    def used(cls, places: Iterable[int]) -> KeyParts:
        """Make it of the places of values, as in :data:`KEY_FIELDS`, that are used together."""
        fields = set(places)
        highest = max(fields, default=_KEY)
        return cls(_USER in fields, highest >= _DOMAIN, max(0, highest - _DOMAIN))

    def split(self, key: bytes) -> list[bytes] | None:
        """Return the values in their places, or ``None`` for a key that is to be skipped.

        A key is skipped when it is empty or lacks what is used: ``%d`` and ``%1``-``%9`` need text after the last
        ``@``, ``%u`` needs text before the last ``@`` if there is one, ``%3`` needs three labels (empty ones do not
        count). One missing value is enough.
        """
        if not key:
            return None
        user, at, domain = key.rpartition(b"@")
        if not at:
            user, domain = key, b""
        if (self._uses_domain and not domain) or (self._uses_user and not user):
            return None
        values = [key, user, domain]
        if self._labels:
            labels = [label for label in domain.split(b".") if label]
            if len(labels) < self._labels:
                return None
            values += reversed(labels)
        return values


@attrs.frozen
class KeyFormat:
    """A template of memcache_table(5): text with ``%%``, ``%s``, ``%u``, ``%d``, ``%S``, ``%U``, ``%D``, ``%1``-``%9``.

    :ivar template: as it is written in the file; it may be empty, which suppresses every key.
    :ivar plain: the text before and after the only value, when that is the whole key; else ``None``.
    """

    template: bytes
    _pieces: Template
    plain: tuple[bytes, bytes] | None
    _parts: KeyParts

    @classmethod
    def parse(cls, template: str | bytes) -> KeyFormat:
        """Compile a template.

        :raises ValueError: with the reason, for a ``%`` that is followed by anything else or by nothing.
        """
        if isinstance(template, str):
            template = template.encode(errors="surrogateescape")
        pieces = parse_template(template, KEY_FIELDS)
        fields = [piece for piece in pieces if isinstance(piece, int)]
        plain = None
        if fields == [_KEY]:
            at = pieces.index(_KEY)
            plain = fill(pieces[:at], ()), fill(pieces[at + 1 :], ())
        return cls(template, pieces, plain, KeyParts.used(fields))

    def expand(self, key: bytes) -> bytes | None:
        """Return the template with the values of a key, or ``None`` for a key that is to be skipped.

        See :meth:`KeyParts.split`; a key is also skipped when the result is empty.
        """
        if self.plain is not None and key:
            before, after = self.plain
            return before + key + after
        values = self._parts.split(key)
        return (fill(self._pieces, values) or None) if values is not None else None
