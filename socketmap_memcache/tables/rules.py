"""Files of rules of which the first that matches counts: what cidr_table(5) and regexp_table(5) have in common.

A rule that cannot be used is skipped with a warning, as Postfix does. The rules between a skipped ``if`` and its
``endif`` then hold for all keys, and the ``endif`` is skipped too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Generic, TypeVar

import attrs

from socketmap_memcache.config.syntax import excerpt, logical_lines, read_file
from socketmap_memcache.errors import ConfigurationError, Problem

Condition = TypeVar("Condition")
Result = TypeVar("Result")


@attrs.define(eq=False)
class Rule(Generic[Condition, Result]):
    """A rule, or an ``if``.

    :ivar line: where it begins.
    :ivar condition: what a key has to match.
    :ivar result: what the key gets then; ``None`` for an ``if``.
    :ivar inside: the innermost ``if`` around it.
    :ivar end: of an ``if``: the number of the first rule after its block.
    """

    line: int
    condition: Condition
    result: Result | None
    inside: Rule[Condition, Result] | None
    end: int = 0


class Language(ABC, Generic[Condition, Result]):
    """What the rules of one type of table look like. Its methods raise :class:`ValueError` for a bad rule.

    :cvar kind: the type of the table.
    """

    kind: ClassVar[str]

    @abstractmethod
    def condition(self, text: bytes, warnings: list[str]) -> Condition:
        """Read what follows ``if``."""

    @abstractmethod
    def end(self, text: bytes, nested: bool, warnings: list[str]) -> None:
        """Read what follows ``endif``; ``nested`` says whether there is an ``if`` to be ended."""

    @abstractmethod
    def rule(self, text: bytes, warnings: list[str]) -> tuple[Condition, Result]:
        """Read any other line: what has to match, and what the result is."""


def load(path: str, language: Language[Condition, Result], warnings: list[Problem]) -> list[Rule[Condition, Result]]:
    """Read a file of rules.

    :param warnings: is filled with what Postfix would log.
    :raises ConfigurationError: the file cannot be read.
    """
    if not path:
        raise ConfigurationError([Problem(f"{language.kind}: needs the path of a file")])
    return parse(read_file(path), path, language, warnings)


def parse(
    text: bytes, path: str, language: Language[Condition, Result], warnings: list[Problem]
) -> list[Rule[Condition, Result]]:
    """Read the text of such a file; see :func:`load`."""
    rules: list[Rule[Condition, Result]] = []
    open_ifs: list[Rule[Condition, Result]] = []
    for number, line in logical_lines(text, path, warnings):
        line = line.rstrip()  # noqa: PLW2901
        complaints: list[str] = []
        inside = open_ifs[-1] if open_ifs else None
        try:
            rest = _after(b"if", line)
            if rest is not None:
                rule = Rule(number, language.condition(rest, complaints), None, inside)
                rules.append(rule)
                open_ifs.append(rule)
            elif (rest := _after(b"endif", line)) is not None:
                language.end(rest, bool(open_ifs), complaints)
                open_ifs.pop().end = len(rules)
            else:
                rules.append(Rule(number, *language.rule(line, complaints), inside))
        except ValueError as error:
            complaints.append(f'{error}; skipped: "{excerpt(line)}"')
        warnings += [Problem(complaint, path, number) for complaint in complaints]
    for rule in reversed(open_ifs):
        rule.end = len(rules)
        warnings.append(Problem("IF has no matching ENDIF", path, rule.line))
    return rules


def negations(text: bytes) -> tuple[bool, bytes]:
    """Take exclamation marks and blanks off the beginning; say whether what follows is to match or not."""
    rest = text.lstrip(b"! \t\n\v\f\r")
    return text[: len(text) - len(rest)].count(b"!") % 2 == 0, rest


def _after(word: bytes, line: bytes) -> bytes | None:
    """Return what follows a word, in any case, at the beginning of a line; ``None`` where it is not there."""
    rest = line[len(word) :]
    return rest if line[: len(word)].lower() == word and not rest[:1].isalnum() else None
