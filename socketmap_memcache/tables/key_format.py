"""``key_format``: the key that a cache is asked for, made of the key that Postfix looks up."""

from __future__ import annotations

import re

import attrs

from socketmap_memcache.config.syntax import excerpt

_SPECIFIER = re.compile(rb"%(.?)", re.DOTALL)

# The place of each specifier's value in the tuple that expand() makes.
_KEY, _USER, _DOMAIN = 0, 1, 2
_FIELDS = {b"s": _KEY, b"S": _KEY, b"u": _USER, b"U": _USER, b"d": _DOMAIN, b"D": _DOMAIN}
_FIELDS |= {b"%d" % number: _DOMAIN + number for number in range(1, 10)}


@attrs.frozen
class KeyFormat:
    """A template of memcache_table(5): text with ``%%``, ``%s``, ``%u``, ``%d``, ``%S``, ``%U``, ``%D``, ``%1``-``%9``.

    :ivar template: as it is written in the file; it may be empty, which suppresses every key.
    """

    template: bytes
    _pieces: tuple[bytes | int, ...]  # literal text, or the place of a value
    _plain: tuple[bytes, bytes] | None  # what is before and after the only value, when that is the whole key
    _uses_user: bool
    _uses_domain: bool
    _labels: int  # as many labels must the domain have

    @classmethod
    def parse(cls, template: str | bytes) -> KeyFormat:
        """Compile a template.

        :raises ValueError: with the reason, for a ``%`` that is followed by anything else or by nothing.
        """
        if isinstance(template, str):
            template = template.encode(errors="surrogateescape")
        pieces: list[bytes | int] = []
        literal = b""
        for position, text in enumerate(_SPECIFIER.split(template)):
            if position % 2 == 0:
                literal += text
            elif text == b"%":
                literal += b"%"
            elif text in _FIELDS:
                pieces += [literal, _FIELDS[text]]
                literal = b""
            else:
                reason = "after % comes one of %, s, u, d, S, U, D, 1 to 9"
                raise ValueError(f"invalid query template: {excerpt(template)} ({reason})")
        pieces.append(literal)
        fields = [piece for piece in pieces if isinstance(piece, int)]
        highest = max(fields, default=_KEY)
        return cls(
            template,
            tuple(piece for piece in pieces if piece != b""),
            (pieces[0], literal) if fields == [_KEY] and isinstance(pieces[0], bytes) else None,
            _USER in fields,
            highest >= _DOMAIN,
            max(0, highest - _DOMAIN),
        )

    def expand(self, key: bytes) -> bytes | None:
        """Return the template with the values of a key, or ``None`` for a key that is to be skipped.

        A key is skipped when it is empty or lacks what the template uses: ``%d`` and ``%1``-``%9`` need text after the
        last ``@``, ``%u`` needs text before the last ``@`` if there is one, ``%3`` needs three labels (empty ones do
        not count). One missing value is enough. So is a result that is empty.
        """
        if not key:
            return None
        if self._plain is not None:
            before, after = self._plain
            return before + key + after
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
        return b"".join([values[piece] if isinstance(piece, int) else piece for piece in self._pieces]) or None
