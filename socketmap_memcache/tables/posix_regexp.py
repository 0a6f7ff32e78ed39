r"""POSIX regular expressions, as regcomp(3) reads them for Postfix, made into expressions of Python's.

Postfix's programs run in the C locale: a character is a byte, and only ASCII has letters. The GNU C library's
extensions (``\w``, ``\<``, back-references in extended expressions, ...) work as well, as with Postfix.

What matches is the same as with the GNU C library, and so is the text of the submatches but for some odd cases:

- a repeated group that can match nothing, as in ``(a*)+``: Python's last repetition is the empty one;
- an expression with ``$`` or a word boundary in it that could still end at several places: POSIX takes the longest
  text, Python here the first that it finds;
- empty alternatives in several groups, as in ``(|a)(|a)``: which of the groups gets the text differs.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import attrs

#: The largest number of repetitions, RE_DUP_MAX.
_MOST_REPEATED = 0x7FFF

_DIGITS = frozenset(b"0123456789")
_UPPER = frozenset(range(0x41, 0x5B))
_LOWER = frozenset(range(0x61, 0x7B))
_GRAPHIC = frozenset(range(0x21, 0x7F))
_ALL = frozenset(range(256))
_CLASSES = {
    b"alpha": _UPPER | _LOWER,
    b"alnum": _UPPER | _LOWER | _DIGITS,
    b"blank": frozenset(b" \t"),
    b"cntrl": frozenset({*range(0x20), 0x7F}),
    b"digit": _DIGITS,
    b"graph": _GRAPHIC,
    b"lower": _LOWER,
    b"print": _GRAPHIC | {0x20},
    b"punct": _GRAPHIC - _UPPER - _LOWER - _DIGITS,
    b"space": frozenset(b" \t\n\v\f\r"),
    b"upper": _UPPER,
    b"xdigit": _DIGITS | frozenset(b"abcdefABCDEF"),
}
_ESCAPED_CLASSES = {b"w": rb"\w", b"W": rb"\W", b"s": rb"[ \t-\r]", b"S": rb"[^ \t-\r]"}
_ESCAPED_ANCHORS = {
    b"<": rb"\b(?=\w)",
    b">": rb"\b(?<=\w)",
    b"b": rb"\b",
    b"B": rb"(?:(?<=\w)(?=\w)|(?<!\w)(?!\w))",  # Python's own differs for the empty text
    b"`": rb"\A",
    b"'": rb"\Z",
}


@attrs.frozen
class Expression:
    """A compiled expression.

    :ivar pattern: Python's.
    :ivar ignore_case: whether ``pattern`` is to search the subject in upper case: ``subject.upper()``.
    :ivar looks_ahead: whether what follows a match has a say in it.
    """

    pattern: re.Pattern[bytes]
    ignore_case: bool
    looks_ahead: bool

    def longest(self, match: re.Match[bytes]) -> re.Match[bytes]:
        """Return the longest of the matches that begin where this one begins: POSIX's choice."""
        if not self.looks_ahead:
            subject, start = match.string, match.start()
            for end in range(len(subject), match.end(), -1):
                longer = self.pattern.fullmatch(subject, start, end)
                if longer is not None:
                    return longer
        return match


def compile_posix(text: bytes, *, extended: bool, ignore_case: bool, newline: bool) -> Expression:
    """Compile an expression.

    :param text: has no NUL.
    :param extended: REG_EXTENDED, else the expression is a basic one.
    :param ignore_case: REG_ICASE.
    :param newline: REG_NEWLINE: ``^`` and ``$`` match at each line, ``.`` and ``[^...]`` do not match a newline.
    :raises ValueError: regcomp(3) would refuse it, with the reason; or its size is beyond reason.
    """
    try:
        parser = _Parser(text, extended, ignore_case, newline)
        pattern = re.compile(parser.parse(), re.DOTALL)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"the expression is too large: {error}") from error
    return Expression(pattern, ignore_case, parser.looks_ahead)


class _Token(NamedTuple):
    """``kind`` is the character that an operator has in an extended expression, or ``literal``, ``anchor``, ...

    :ivar value: what it is in Python, where that is known.
    """

    kind: str
    value: bytes = b""


_REPEATS = {"*": (0, None), "+": (1, None), "?": (0, 1)}


class _Parser:
    """One expression. The next token is always known; how it is read depends on what came before."""

    def __init__(self, text: bytes, extended: bool, ignore_case: bool, newline: bool) -> None:
        self._raw = text
        # As the GNU C library does it: both sides in upper case, so that [A-z] has none of the characters between.
        self._text = text.upper() if ignore_case else text
        self._extended = extended
        self._ignore_case = ignore_case
        self._newline = newline
        self._position = 0  # behind the token
        self._token = _Token("end")
        self._complete: set[int] = set()  # groups that can be referred to
        self._groups = 0
        self.looks_ahead = False

    def parse(self) -> bytes:
        """Return the expression in Python's syntax."""
        self._advance(caret=True)
        return self._alternatives(0)

    # Structure.

    def _alternatives(self, depth: int) -> bytes:
        before = frozenset(self._complete)
        branches = [self._branch(depth)]
        after = set(self._complete)
        while self._token.kind == "|":
            self._advance(caret=True)
            self._complete = set(before)
            branches.append(self._branch(depth))
            after |= self._complete
        self._complete = after
        return b"|".join(branches)

    def _branch(self, depth: int) -> bytes:
        source = b""
        while self._token.kind not in {"|", "end"} and not (depth and self._token.kind == ")"):
            source += self._piece(depth)
        return source

    def _piece(self, depth: int) -> bytes:
        kind, value = self._token
        if kind == "anchor":
            self._advance()  # what follows cannot repeat it
            self.looks_ahead = self.looks_ahead or not value.endswith((b"^)", rb"\A"))
            return value
        if kind in {"*", "+", "?"} or kind == "{":
            if self._extended or kind == "{":
                raise ValueError("nothing before a repetition operator")
            part = value
        elif kind == "(":
            part = self._group(depth)
        elif kind == "[":
            part = self._bracket()
        elif kind == "reference":
            part = self._reference()
        elif kind == ")" and not self._extended:
            raise ValueError(r"unmatched \)")
        elif kind == "backslash":
            raise ValueError("trailing backslash")
        else:
            part = value
        self._advance()
        while self._token.kind in {"*", "+", "?", "{"}:
            part = self._repeated(part)
        return part

    def _group(self, depth: int) -> bytes:
        self._groups += 1
        number = self._groups
        self._advance(caret=True)
        inner = self._alternatives(depth + 1)
        if self._token.kind != ")":
            raise ValueError("unmatched (" if self._extended else r"unmatched \(")
        self._complete.add(number)
        return b"(%b)" % inner

    def _reference(self) -> bytes:
        number = int(self._token.value)
        if number not in self._complete:
            raise ValueError(f"invalid back reference \\{number}")
        return rb"(?:\%d)" % number

    def _repeated(self, part: bytes) -> bytes:
        kind = self._token.kind
        least, most = self._interval() if kind == "{" else _REPEATS[kind]
        self._advance()
        if not self._extended and self._token.kind in {"*", "{"}:
            raise ValueError("a repetition of a repetition")
        times = b"{%d,%b}" % (least, b"" if most is None else b"%d" % most)
        return b"(?:%b)%b" % (part, times)

    def _interval(self) -> tuple[int, int | None]:
        close = b"}" if self._extended else rb"\}"
        end = self._text.find(close, self._position)
        content = self._text[self._position : end] if end >= 0 else b""
        match = re.fullmatch(rb"([0-9]*)(,?)([0-9]*)", content)
        if match is None or not content:
            raise ValueError("invalid content of {}" if end >= 0 else "unmatched {")
        self._position = end + len(close)
        least = int(match[1] or b"0")
        most = int(match[3]) if match[3] else None if match[2] else least
        if most is not None and least > most:
            raise ValueError("invalid content of {}")
        if max(least, most or 0) > _MOST_REPEATED:
            raise ValueError(f"more than {_MOST_REPEATED} repetitions")
        return least, most

    # Tokens.

    def _advance(self, *, caret: bool = False) -> None:
        """Read the next token.

        :param caret: whether a ``^`` is an anchor here in a basic expression.
        """
        self._token, self._position = self._peek(self._position, caret=caret)

    def _peek(self, start: int, *, caret: bool = False) -> tuple[_Token, int]:
        character = self._text[start : start + 1]
        after = start + 1
        if not character:
            return _Token("end"), start
        if character == b"\\":
            return self._escaped(self._raw[after : after + 1]), after + 1
        if character == b"^" and (self._extended or caret):
            return _Token("anchor", b"(?m:^)" if self._newline else rb"\A"), after
        if character == b"$" and (self._extended or self._ends_branch(after)):
            return _Token("anchor", b"(?m:$)" if self._newline else rb"\Z"), after
        if character == b".":
            return _Token("literal", b"[^\n]" if self._newline else b"."), after
        if character in (b"*", b"[") or (self._extended and character in b"|()+?{"):
            return _Token(character.decode(), re.escape(character)), after
        return _Token("literal", re.escape(character)), after

    def _ends_branch(self, position: int) -> bool:
        return self._peek(position)[0].kind in {"end", "|", ")"}

    def _escaped(self, character: bytes) -> _Token:
        if not character:
            return _Token("backslash")
        if character in _ESCAPED_CLASSES:
            return _Token("literal", _ESCAPED_CLASSES[character])
        if character in _ESCAPED_ANCHORS:
            return _Token("anchor", _ESCAPED_ANCHORS[character])
        if character in b"123456789":
            return _Token("reference", character)
        if not self._extended and character in b"|()+?{":
            return _Token(character.decode(), re.escape(character))
        return _Token("literal", re.escape(character))

    # Bracket expressions.

    def _bracket(self) -> bytes:
        negated = self._text[self._position : self._position + 1] == b"^"
        if negated:
            self._position += 1
        members: set[int] = set()
        first = True
        while first or not self._at(b"]"):
            members |= self._member(first)
            first = False
        self._position += 1
        if not negated:
            return _python_set(members)
        return _python_set(_ALL - members - ({0x0A} if self._newline else set()))

    def _at(self, text: bytes) -> bool:
        if self._position >= len(self._text):
            raise ValueError("unmatched [")
        return self._text.startswith(text, self._position)

    def _member(self, first: bool) -> frozenset[int]:
        """Read a character, a class, or a range."""
        if self._at(b"-") and not first and not self._at(b"---") and not self._at(b"-]"):
            raise ValueError("invalid range in []")
        kind, begin = self._element()
        if kind in b"=:" or not self._at(b"-") or self._at(b"-]") or self._at(b"---"):
            return begin
        self._position += 1
        self._at(b"")
        kind, end = self._element()
        if kind in b"=:" or min(begin) > min(end):
            raise ValueError("invalid range in []")
        return frozenset(range(min(begin), min(end) + 1))

    def _element(self) -> tuple[bytes, frozenset[int]]:
        """Read what may begin a range: the character of ``[. .]``, ``[= =]`` or ``[: :]`` that it is in, and it."""
        for kind in (b".", b"=", b":"):
            if self._at(b"[" + kind):
                return kind, self._symbol(kind)
        if self._at(b"---"):
            self._position += 2
        self._position += 1
        return b".", frozenset(self._text[self._position - 1 : self._position])

    def _symbol(self, kind: bytes) -> frozenset[int]:
        start = self._position + 2
        end = self._text.find(kind + b"]", start)
        if end < 0:
            raise ValueError("unmatched [")
        self._position = end + 2
        if kind != b":":
            if end - start != 1:
                raise ValueError("invalid collation character in []")
            return frozenset(self._text[start:end])
        name = self._raw[start:end]
        if name not in _CLASSES:
            raise ValueError("invalid character class in []")
        return _CLASSES[b"alpha" if self._ignore_case and name in (b"upper", b"lower") else name]


def _python_set(members: set[int] | frozenset[int]) -> bytes:
    ranges: list[list[int]] = []
    for member in sorted(members):
        if ranges and ranges[-1][1] == member - 1:
            ranges[-1][1] = member
        else:
            ranges.append([member, member])
    return b"[%b]" % b"".join(rb"\x%02x-\x%02x" % (begin, end) for begin, end in ranges)
