"""Typed values out of a parsed file, with the checks and the error texts of Postfix."""

from __future__ import annotations

import re
from collections.abc import Iterable
from operator import itemgetter

import attrs

from socketmap_memcache.config.syntax import ParsedFile, excerpt, split_list, suggestion
from socketmap_memcache.errors import ConfigurationError, Problem

_INTEGER = re.compile(r"[ \t\n\v\f\r]*([+-]?)0*([0-9]{1,10})")
_TIME = re.compile(r"([ \t\n\v\f\r]*[+-]?[0-9]+)([smhdw]?)")
_LARGEST = 2**31 - 1
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 60 * 60, "d": 24 * 60 * 60, "w": 7 * 24 * 60 * 60}


#: A problem, and the line of this file that it came of, be it in this file or in another one.
_Placed = tuple[int, Problem]


@attrs.define
class Parameters:
    """Reads parameters one by one and remembers what was wrong with them.

    A value that cannot be used counts as its default, so that reading goes on and :meth:`finish` raises everything
    that is wrong at once.
    """

    _parsed: ParsedFile
    _asked: set[str] = attrs.field(factory=set, init=False)
    _errors: list[_Placed] = attrs.field(factory=list, init=False)
    _warnings: list[_Placed] = attrs.field(factory=list, init=False)

    def text(self, name: str, default: str) -> str:
        """Return the value as it is written; it may be empty."""
        value = self._value(name)
        return default if value is None else value

    def integer(self, name: str, default: int, minimum: int | None = None, maximum: int | None = None) -> int:
        """Return a decimal number of 32 bits, with or without a sign.

        Units are not understood, an empty value is an error, and so is one beyond the bounds, which are inclusive.
        """
        value = self._value(name)
        if value is None:
            return default
        number = _integer(value)
        if number is None:
            self.error(name, f"bad numerical configuration: {name} = {excerpt(value)} (a decimal number is needed)")
        elif minimum is not None and number < minimum:
            self.error(name, f"invalid {name} parameter value {number} < {minimum}")
        elif maximum is not None and number > maximum:
            self.error(name, f"invalid {name} parameter value {number} > {maximum}")
        else:
            return number
        return default

    def boolean(self, name: str, default: bool) -> bool:
        """Return what ``yes`` or ``no``, in any case, stands for."""
        value = self._value(name)
        if value is None:
            return default
        if value.lower() not in {"yes", "no"}:
            self.error(name, f"bad boolean configuration: {name} = {excerpt(value)} (yes or no is needed)")
            return default
        return value.lower() == "yes"

    def time(self, name: str, default: float) -> float:
        """Return seconds, 0 or more; a number may be followed by s, m, h, d or w (seconds are meant without)."""
        value = self._value(name)
        if value is None:
            return default
        match = _TIME.fullmatch(value)
        number = _integer(match[1]) if match else None
        if match is None or number is None or not 0 <= number * _SECONDS[match[2]] <= _LARGEST:
            self.error(name, f"bad time value or unit: {name} = {excerpt(value)} (a number and one of s, m, h, d, w)")
            return default
        return number * _SECONDS[match[2]]

    def words(self, name: str, default: str) -> list[str]:
        """Return the items of a list that is separated by commas or blanks; ``{...}`` is one item.

        :param default: the list as it would be written in the file.
        """
        return split_list(self.text(name, default))

    def line(self, name: str) -> int:
        """Return the number of the line where the value is set, or 0 where it is not."""
        entry = self._parsed.entries.get(name)
        return 0 if entry is None else entry.line

    def error(self, name: str, text: str) -> None:
        """Note that the value of a parameter cannot be used."""
        self._errors.append((self.line(name), self._problem(name, text)))

    def warn(self, name: str, text: str) -> None:
        """Note that the value of a parameter can be used, but is hardly what was meant."""
        self._warnings.append((self.line(name), self._problem(name, text)))

    def adopt(self, name: str, problems: Iterable[Problem]) -> None:
        """Note errors found elsewhere because of this parameter; those without a line get its place."""
        for problem in problems:
            if problem.path is None:
                self.error(name, problem.text)
            elif problem.line or problem.path == self._parsed.path:
                self._errors.append((self.line(name), problem))
            else:
                self.error(name, f"{name}: {problem}")

    def accept(self, names: Iterable[str]) -> None:
        """Let names count as known, though nothing may ask for them."""
        self._asked.update(names)

    def unknown(self, fatal: bool) -> None:
        """Note the names in the file that nothing asked for: as errors if fatal, else as warnings."""
        found = self._errors if fatal else self._warnings
        for name in self._parsed.entries:
            if name not in self._asked:
                text = f"unknown parameter {name!r}{suggestion(name, self._asked)}"
                found.append((self.line(name), self._problem(name, text)))

    def finish(self, warnings: list[Problem]) -> None:
        """Hand all warnings on, in the order of the file; those of another one where that is named.

        :raises ConfigurationError: with all errors, in the same order.
        """
        warnings += _in_order(self._parsed.warnings, self._warnings)
        errors = _in_order(self._parsed.errors, self._errors)
        if errors:
            raise ConfigurationError(errors)

    def _value(self, name: str) -> str | None:
        self._asked.add(name)
        entry = self._parsed.entries.get(name)
        return None if entry is None else entry.value

    def _problem(self, name: str, text: str) -> Problem:
        entry = self._parsed.entries.get(name)
        return Problem(text, self._parsed.path) if entry is None else Problem(text, entry.path, entry.line)


def _in_order(parsed: Iterable[Problem], placed: Iterable[_Placed]) -> list[Problem]:
    both = [*((problem.line, problem) for problem in parsed), *placed]
    return [problem for _, problem in sorted(both, key=itemgetter(0))]


def _integer(text: str) -> int | None:
    """Read an integer as C's strtol does, and refuse what does not fit into 32 bits."""
    match = _INTEGER.fullmatch(text)
    number = int(match[1] + match[2]) if match else None
    return number if number is not None and -_LARGEST - 1 <= number <= _LARGEST else None
