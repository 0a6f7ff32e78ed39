"""A query of a ``.cf`` file with parameters for its quoted parts, so that a server parses it once for many keys."""

from __future__ import annotations

import re
from collections.abc import Sequence

import attrs

from socketmap_memcache.tables.key_format import KEY_FIELDS, Template, fill, parse_template

# Where there is one of these, text between single quotes may be something else than a plain literal.
_ODD = re.compile(r"""["$\\]|--|/\*""")
# What makes a literal that follows it a special one, as E'' or DATE''.
_PREFIX = re.compile(r"[\w&]$")


@attrs.frozen
class ParameterQuery:
    """An SQL statement with ``$1``, ``$2``, ..., and what they stand for."""

    sql: bytes
    _templates: Sequence[Template]

    def values(self, parts: Sequence[bytes]) -> list[bytes]:
        """Return the values of the parameters, given the parts of a key, as ``QueryFormat.values`` has them."""
        return [fill(template, parts) for template in self._templates]


def parametrize(query: str) -> ParameterQuery | None:
    """Make parameters of the literals in a query that depend on the key.

    A literal in SQL has no type of its own, nor has a parameter; what is around it makes both the same.

    :param query: one that ``parse_query`` takes.
    :return: ``None`` for a query where that is not certain to mean the same.
    """
    if _ODD.search(query):
        return None
    sql: list[bytes] = []
    templates: list[Template] = []
    pieces = query.encode(errors="surrogateescape").split(b"'")
    if len(pieces) % 2 == 0:  # an open quote
        return None
    for index, piece in enumerate(pieces):
        template = parse_template(piece, KEY_FIELDS)
        depends = any(isinstance(part, int) for part in template)
        literal = index % 2 == 1
        if not depends:
            text = fill(template, ())
            sql.append(b"'%b'" % text if literal else text)
            continue
        before, after = (pieces[index - 1], pieces[index + 1]) if literal else (b"", b"")
        doubled = (not before and index > 1) or (not after and index < len(pieces) - 2)  # '' inside of a literal
        if not literal or doubled or _PREFIX.search(before.decode(errors="replace")):
            return None
        templates.append(template)
        sql.append(b"$%d" % len(templates))
    return ParameterQuery(b"".join(sql), templates)
