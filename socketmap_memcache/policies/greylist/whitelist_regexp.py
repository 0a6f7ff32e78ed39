r"""Perl's regular expressions, as lists made for postgrey have them, made into expressions of Python's.

Both work on bytes, where only ASCII has letters. Case never counts, as with postgrey, but within ``(?-i:...)``. A
subject is one line: what differs between the two only at a newline (``$``, ``\z``, ``(?s)``) is the same here.
"""

from __future__ import annotations

import re

import attrs

_TOKEN = re.compile(
    rb"""
      (?P<set> \[ \^? \]? (?: \\. | \[:\^?\w+:\] | [^]\\] )* \] )
    | \\ (?P<escape> x\{[0-9A-Fa-f]{1,2}\} | x[0-9A-Fa-f]{2} | k(?:<\w+>|'\w+'|\{\w+\}) | . )
    | \(\? (?P<group> P?<[A-Za-z_]\w*> | '\w+' | P=\w+\) | [:=!>] | <[=!] | [imsx]*(?:-[imsx]+)?: | [imsx]+\) )
    | (?P<bad> \(\?.? | \\ )
    | (?P<other> . )
    """,
    re.VERBOSE | re.DOTALL,
)
_IN_SET = re.compile(
    rb"\\(?P<escape>x\{[0-9A-Fa-f]{1,2}\}|x[0-9A-Fa-f]{2}|.)|\[:(?P<name>\^?\w+):\]|(?P<other>.)", re.DOTALL
)

_SAME = frozenset(b"dDwWsSAbBtnrfa0123456789")
_SAME_IN_SET = frozenset(b"dDwWsSbtnrfa01234567")
_WRITTEN_OTHERWISE = {b"z": rb"\Z", b"Z": rb"\Z", b"h": rb"[ \t]", b"H": rb"[^ \t]"}
_CLASSES = {
    b"alnum": b"0-9A-Za-z",
    b"alpha": b"A-Za-z",
    b"blank": rb" \t",
    b"cntrl": rb"\x00-\x1f\x7f",
    b"digit": b"0-9",
    b"graph": rb"!-\x7e",
    b"lower": b"A-Za-z",  # case does not count
    b"print": rb"\x20-\x7e",
    b"punct": rb"!-/:-@\[-`{-\x7e",
    b"space": rb"\s",
    b"upper": b"A-Za-z",
    b"word": rb"\w",
    b"xdigit": b"0-9A-Fa-f",
}


# So many repeats (also of ?, and that of a search which may begin anywhere), and a search may take long. One of two
# alternatives counts for half of one: how often a group is tried anew does not grow with the subject.
_MANY_REPEATS = 4


# Where in a set a member is. After an item a minus makes a range with what follows; after a class it only looks so.
_ITEM, _AFTER_ITEM, _AFTER_CLASS, _RANGE_END = range(4)


@attrs.frozen
class Expression:
    """What a list says between its slashes.

    :ivar text: for Python's ``re``.
    :ivar joinable: whether it means the same as one of several alternatives.
    :ivar quick: whether a search in a short subject ends soon, whatever the subject: there are few repeats, and none
        of a group.
    :ivar place: the file and the line that it is from; for messages.
    """

    text: bytes
    joinable: bool
    quick: bool
    place: str = attrs.field(default="", eq=False)


def translate(text: bytes) -> Expression:
    """Make an expression of Perl's into one of Python's.

    :raises ValueError: Perl would refuse it, or Python has nothing that does the same; the text says what.
    """
    parts: list[bytes] = []
    joinable = True
    repeats = 0.0 if text.startswith(b"^") else 1.0
    depth = 0
    before = b""
    for token in _TOKEN.finditer(text):
        kind, value = token.lastgroup, token[token.lastgroup or 0]
        if kind == "bad":
            raise ValueError(f"{token[0].decode(errors='replace')} is not supported in a regular expression")
        if kind == "set":
            parts.append(_set(value))
        elif kind == "escape":
            parts.append(_escape(value))
            joinable &= value[:1] not in b"k123456789"
        elif kind == "group":
            parts.append(_group(value))
            joinable &= not value.startswith((b"P", b"'")) and (value[:1] != b"<" or value in {b"<=", b"<!"})
        elif value == b"[":  # Python would say the same, and before that warn of what else it might mean
            raise ValueError("bad regular expression: unterminated character set")
        else:
            parts.append(value)
            if value in {b"*", b"+", b"{"}:
                repeats += 1 if before != b")" else _MANY_REPEATS
            elif value == b"?" or (value == b"|" and not depth):  # the ^ is not that of the other alternative
                repeats += 1
            elif value == b"|":
                repeats += 0.5
        depth += (kind == "group" and value[-1:] != b")") + (token[0] == b"(") - (token[0] == b")")
        before = token[0]
    translated = b"".join(parts)
    try:
        re.compile(translated, re.IGNORECASE)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"bad regular expression: {error}") from error
    return Expression(translated, joinable, joinable and repeats < _MANY_REPEATS)


def _escape(value: bytes) -> bytes:
    if value[:1] == b"k":
        return b"(?P=%b)" % value[2:-1]
    return _WRITTEN_OTHERWISE.get(value) or _character(value, _SAME)


def _set(text: bytes) -> bytes:
    """Translate ``[...]``. What Python may give a meaning of its own some day is written with a backslash."""
    opening = b"[^" if text.startswith(b"[^") else b"["
    parts = [opening]
    place = _ITEM
    for member in _IN_SET.finditer(text, len(opening), len(text) - 1):
        if member["name"] is not None:
            if member["name"] not in _CLASSES:
                raise ValueError(f"{member[0].decode(errors='replace')} is not supported in a regular expression")
            parts.append(_CLASSES[member["name"]])
            place = _AFTER_CLASS
            continue
        if member["escape"] is not None:
            parts.append(rb" \t" if member["escape"] == b"h" else _character(member["escape"], _SAME_IN_SET))
        elif member[0] == b"-" and place in {_AFTER_ITEM, _AFTER_CLASS}:
            parts.append(b"-" if place == _AFTER_ITEM else rb"\-")
            place = _RANGE_END if place == _AFTER_ITEM else _ITEM
            continue
        else:
            parts.append(b"\\" + member[0] if member[0] in b"[]&|~-" else member[0])
        place = _ITEM if place == _RANGE_END else _AFTER_ITEM
    return b"".join(parts) + b"]"


def _character(value: bytes, same: frozenset[int]) -> bytes:
    """Translate what is behind a backslash, where it is one character or a class that Python knows by the same name."""
    if value[:1] == b"x" and len(value) > 1:
        return rb"\x%02x" % int(value[1:].strip(b"{}"), 16)
    if value.isalnum() and value[0] not in same:
        raise ValueError(f"\\{value.decode()} is not supported in a regular expression")
    return b"\\" + value


def _group(value: bytes) -> bytes:
    """Translate what is behind ``(?``. Flags that change nothing, as case does not count anyway, are left out."""
    name = re.fullmatch(rb"P?[<'](\w+)[>']", value)
    if name:
        return b"(?P<%b>" % name[1]
    if value.endswith(b")") and not value.startswith(b"P"):
        return b""
    return b"(?" + value
