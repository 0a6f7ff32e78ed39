"""``regexp:/path``: results by regular expression, as regexp_table(5) describes it. The first rule that matches counts.

The expressions are POSIX ones; see :mod:`socketmap_memcache.tables.posix_regexp`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from time import perf_counter, process_time

import attrs
from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger
from zope.interface import implementer

from socketmap_memcache.config.syntax import WHITESPACE, excerpt
from socketmap_memcache.errors import PermanentError, TableError, TemporaryError
from socketmap_memcache.tables import rules
from socketmap_memcache.tables.folding import valid
from socketmap_memcache.tables.interface import IBatchTable
from socketmap_memcache.tables.posix_regexp import Expression, compile_posix
from socketmap_memcache.tables.read_only import ReadOnlyTable
from socketmap_memcache.tables.registry import TableContext
from socketmap_memcache.tables.time_limit import TimeLimitError, call_with_limit

#: Bytes: a longer key is not looked up. It is Postfix's line_length_limit: no address or name in mail is that long.
KEY_LIMIT = 2048

#: Seconds of processor time after which a look-up is given up, because nothing else is done meanwhile.
TIME_LIMIT = 0.5

_LEAST_TIME = 0.001

#: Seconds after which a rule is reported as slow, once.
SLOW = 0.02

_BLANKS = WHITESPACE.encode()
_SUBSTITUTION = re.compile(rb"\$(?:(\$)|([A-Za-z0-9_]+))?")
_BRACKETS = {b"{": b"}", b"(": b")"}


def open_regexp(name: str, context: TableContext) -> RegexpTable:
    """Open ``regexp:/path``. The file is read once; a reload of the service reads it again.

    :raises ConfigurationError: the file cannot be read. (A bad rule is a warning in the context, and is skipped.)
    """
    return RegexpTable(name, rules.load(name, RegexpLanguage(), context.warnings))


@attrs.frozen
class Pattern:
    """An expression that a key has to match, or not to match."""

    expression: Expression
    positive: bool

    def search(self, key: bytes, upper: bytes) -> re.Match[bytes] | bool | None:
        """Say whether a key matches; where the expression was found, by its match.

        :param upper: the key in upper case.
        """
        expression = self.expression
        found = expression.pattern.search(upper if expression.ignore_case else key)
        return found if self.positive else found is None


@attrs.frozen
class Condition:
    """One pattern, or ``/pattern/!/pattern/``: both have to match."""

    first: Pattern
    second: Pattern | None = None


#: Text and, by number, submatches.
Result = tuple[bytes | int, ...]
RegexpRule = rules.Rule[Condition, Result]


class RegexpLanguage(rules.Language[Condition, Result]):
    """How the rules of regexp_table(5) are written: ``[!]/pattern/[flags] result``."""

    kind = "regexp"

    def condition(self, text: bytes, warnings: list[str]) -> Condition:
        """Read what follows ``if``; see :class:`rules.Language`."""
        pattern, rest = _delimited(text)
        if rest.lstrip():
            warnings.append(
                f'ignoring extra text after the IF statement: "{excerpt(rest.lstrip())}" '
                "(do not begin the lines between IF and ENDIF with white space)"
            )
        return Condition(pattern.compile())

    def end(self, text: bytes, nested: bool, warnings: list[str]) -> None:
        """Read what follows ``endif``; see :class:`rules.Language`."""
        if not nested:
            raise ValueError("ENDIF without IF")
        if text.lstrip():
            warnings.append("ignoring extra text after ENDIF")

    def rule(self, text: bytes, warnings: list[str]) -> tuple[Condition, Result]:
        """Read a rule; see :class:`rules.Language`."""
        if text[:1].isalnum():
            raise ValueError("expected /pattern/, IF or ENDIF")
        first, rest = _delimited(text)
        second = None
        if rest.startswith(b"!"):
            second, rest = _delimited(rest)
        result = parse_result(rest.lstrip())
        if not rest.lstrip():
            warnings.append("no replacement text: using the empty string")
        highest = max((part for part in result if isinstance(part, int)), default=0)
        if highest and not first.positive:
            raise ValueError("$number in the replacement text of a negative match")
        condition = Condition(first.compile(), None if second is None else second.compile())
        if highest > condition.first.expression.pattern.groups:
            raise ValueError(f"replacement index {highest} is out of range")
        literal = b"".join(part for part in result if isinstance(part, bytes))
        if not valid(literal):
            warnings.append("the result is not UTF-8: each look-up that gets here will fail")
        return condition, result


@attrs.frozen
class _Source:
    """A pattern as it is written."""

    text: bytes
    positive: bool
    flags: bytes

    def compile(self) -> Pattern:
        """Compile it. Each flag reverses what its last occurrence, or the default, says."""
        expression = compile_posix(
            self.text,
            extended=self.flags.count(b"x") % 2 == 0,
            ignore_case=self.flags.count(b"i") % 2 == 0,
            newline=self.flags.count(b"m") % 2 == 1,
        )
        return Pattern(expression, self.positive)


def _delimited(text: bytes) -> tuple[_Source, bytes]:
    """Read ``[!]/pattern/[flags]``, whatever stands for the slash; return it, and what follows."""
    positive, rest = rules.negations(text)
    if not rest:
        raise ValueError("no regular expression")
    delimiter = rest[:1]
    position = 1
    while rest[position : position + 1] != delimiter:
        if rest[position:] == b"\\":
            break  # closes it as well
        position += 2 if rest[position : position + 1] == b"\\" else 1
        if position >= len(rest):
            raise ValueError(f'no closing delimiter "{excerpt(delimiter)}"')
    pattern, rest = rest[1:position], rest[position + 1 :]
    end = next((i for i, byte in enumerate(rest) if byte in _BLANKS + b"!"), len(rest))
    unknown = rest[:end].strip(b"imx")
    if unknown:
        raise ValueError(f'unknown option "{excerpt(unknown[:1])}"')
    return _Source(pattern, positive, rest[:end]), rest[end:]


def parse_result(text: bytes) -> Result:
    """Read a result with ``$1``, ``${1}``, ``$(1)``, and ``$$`` for a dollar sign.

    :raises ValueError: a dollar sign that is none of these.
    """
    parts: list[bytes | int] = []
    position = 0
    while (match := _SUBSTITUTION.search(text, position)) is not None:
        parts.append(text[position : match.start()])
        position = match.end()
        opening = text[position : position + 1]
        if match[1]:
            parts.append(b"$")
            continue
        if match[2] is None and opening in _BRACKETS:
            end = _closing(text, position, opening)
            name = text[position + 1 : end]
            position = end + 1
        else:
            name = match[2] or b""
        if not name.isdigit() or int(name[:10]) < 1:
            raise ValueError(f'bad replacement index "{excerpt(name)}"')
        parts.append(int(name[:10]))
    return (*parts, text[position:])


def _closing(text: bytes, position: int, opening: bytes) -> int:
    level = 0
    for place in range(position, len(text)):
        character = text[place : place + 1]
        level += (character == opening) - (character == _BRACKETS[opening])
        if not level:
            return place
    raise ValueError("truncated macro reference")


@implementer(IBatchTable)
class RegexpTable(ReadOnlyTable):
    """Has every key that a rule matches.

    While it looks, the process does nothing else. So a key above :data:`KEY_LIMIT`, and a look-up that takes longer
    than ``time_limit``, fail; rules that are slow are reported.
    """

    _log = Logger()

    def __init__(self, path: str, parsed: list[RegexpRule], time_limit: float = TIME_LIMIT, slow: float = SLOW) -> None:
        """Serve rules that were read before."""
        self.name = f"regexp:{path}"
        self._rules = parsed
        self._time_limit = time_limit
        self._slow = slow
        self._current = 0
        self._reported: set[int] = set()

    def lookup(self, key: bytes) -> Deferred[bytes | None]:
        """See :class:`ITable`."""
        try:
            return succeed(self._look_up(key, self._time_limit))
        except TableError:
            return fail()

    def lookup_first(self, keys: Sequence[bytes]) -> Deferred[tuple[int, bytes] | None]:
        """See :class:`IBatchTable`; the time limit is for all keys together."""
        end = process_time() + self._time_limit
        try:
            for place, key in enumerate(keys):
                value = self._look_up(key, max(end - process_time(), _LEAST_TIME))
                if value is not None:
                    return succeed((place, value))
        except TableError:
            return fail()
        return succeed(None)

    def _look_up(self, key: bytes, seconds: float) -> bytes | None:
        if not valid(key):
            return None
        if len(key) > KEY_LIMIT:
            raise PermanentError(f"{self.name}: a key of {len(key)} bytes is above the limit of {KEY_LIMIT}")
        try:
            return call_with_limit(seconds, self._find, key)
        except TimeLimitError:
            line = self._rules[self._current].line
            self._report(line, self._time_limit)
            raise TemporaryError(f"{self.name}, line {line}: no result within {self._time_limit:g} s") from None

    def close(self) -> None:
        """See :class:`ITable`."""

    def _find(self, key: bytes) -> bytes | None:
        upper = key.upper()
        number, started = 0, perf_counter()
        while number < len(self._rules):
            self._current = number
            rule = self._rules[number]
            condition = rule.condition
            found = condition.first.search(key, upper)
            if found and condition.second is not None and not condition.second.search(key, upper):
                found = None
            if found and rule.result is not None:
                result = self._expanded(rule, rule.result, found, key)
            now = perf_counter()
            if now - started > self._slow:
                self._report(rule.line, now - started)
            started = now
            if found and rule.result is not None:
                return result
            number = rule.end if rule.result is None and not found else number + 1
        return None

    def _expanded(self, rule: RegexpRule, result: Result, found: re.Match[bytes] | bool, key: bytes) -> bytes:
        if len(result) == 1:
            (value,) = result
        elif isinstance(found, bool):
            value = b"".join(part for part in result if isinstance(part, bytes))
        else:
            match = rule.condition.first.expression.longest(found)
            # The key may have been searched in upper case; a submatch that is undefined begins at -1 and ends there.
            value = b"".join(part if isinstance(part, bytes) else key[slice(*match.span(part))] for part in result)
        assert isinstance(value, bytes)
        if not valid(value):
            raise PermanentError(f"{self.name}, line {rule.line}: the result is not UTF-8")
        return value

    def _report(self, line: int, seconds: float) -> None:
        if line not in self._reported:
            self._reported.add(line)
            self._log.warn(
                "{table}, line {line}: slow: {milliseconds} ms for one key (logged once a rule)",
                table=self.name,
                line=line,
                milliseconds=round(seconds * 1000),
            )
