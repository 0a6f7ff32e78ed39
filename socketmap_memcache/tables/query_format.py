"""``query`` and ``result_format``: the templates that Postfix's tables in SQL databases share.

The rules are those of sqlite_table(5) and its likes, and where these are silent, of what Postfix does.
"""

from __future__ import annotations

from collections.abc import Callable

from socketmap_memcache.tables.key_format import KEY_FIELDS, KeyParts, Template, fill, parse_template

# In a result_format lower-case letters stand for parts of the result, all else for parts of the key, as in a query.
_RESULT_FIELDS = {b"s": 0, b"u": 1, b"d": 2}
_KEY_PLACE = 3
_FIELDS = {name: _KEY_PLACE + place for name, place in KEY_FIELDS.items()} | _RESULT_FIELDS


class QueryFormat:
    """The two templates of a table. What either uses of a key, the key must have, or it is skipped."""

    def __init__(self, query: Template, result: Template, quote: Callable[[bytes], bytes]) -> None:
        """Join two templates.

        :param query: of :func:`parse_query`.
        :param result: of :func:`parse_result`.
        :param quote: makes a value safe inside the quotes of the query.
        """
        self._query = query
        self._result = result
        self._quote = quote
        of_query = [piece for piece in query if isinstance(piece, int)]
        of_result = [piece for piece in result if isinstance(piece, int)]
        of_key = [piece - _KEY_PLACE for piece in of_result if piece >= _KEY_PLACE]
        self._key_parts = KeyParts.used(of_query + of_key)
        self._result_parts = KeyParts.used(piece for piece in of_result if piece < _KEY_PLACE)

    def values(self, key: bytes) -> list[bytes] | None:
        """Return what a key gives to fill templates with, or ``None`` for one that is to be skipped: it is missing."""
        return self._key_parts.split(key)

    def query(self, key: bytes) -> bytes | None:
        """Return the query for a key, or ``None`` for a key that is to be skipped."""
        values = self.values(key)
        return None if values is None else fill(self._query, list(map(self._quote, values)))

    def result(self, value: bytes, key: bytes) -> bytes | None:
        """Return the result that a value of the database gives, or ``None`` if it gives none.

        An empty value gives none, nor does one that lacks what the template uses of it: with ``%d`` text after the last
        ``@``, with ``%u`` text before the last ``@`` if there is one.

        :param key: one that :meth:`query` does not skip.
        """
        key_values, values = self._key_parts.split(key), self._result_parts.split(value)
        if key_values is None or values is None:
            return None
        return fill(self._result, values + key_values)


def parse_query(template: str) -> Template:
    """Compile a ``query``.

    :raises ValueError: with the reason.
    """
    return parse_template(template.encode(errors="surrogateescape"), KEY_FIELDS)


def parse_result(template: str) -> Template:
    """Compile a ``result_format``.

    :raises ValueError: with the reason.
    """
    return parse_template(template.encode(errors="surrogateescape"), _FIELDS, "result")


def unquoted(query: str) -> list[str]:
    """Return the specifiers in a query that are not between single quotes, where they are open to SQL injection."""
    found = []
    quote = ""
    position = 0
    while position < len(query):
        character = query[position]
        if not quote and character in "'\"":
            quote = character
        elif character == quote:
            quote = ""
        elif character == "%":
            position += 1
            if quote != "'" and query[position : position + 1] != "%":
                found.append(query[position - 1 : position + 1])
        position += 1
    return found
