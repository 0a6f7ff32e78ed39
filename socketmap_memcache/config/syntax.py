"""The text rules that Postfix's files share: logical lines, ``name = value``, lists, braces, quoted keys, ``$name``.

The rules are those of postconf(5) and of what Postfix does: text that makes Postfix stop is an error here, text that
makes it log a warning is a warning. Only :func:`read_file` does I/O.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path

import attrs

from socketmap_memcache.errors import ConfigurationError, Problem

WHITESPACE = " \t\n\v\f\r"
"""What Postfix takes for white space; ``str.strip()`` alone takes more. ``bytes.strip()`` takes exactly these."""

_SEPARATORS = ", \t\r\n"
_MOST_NESTED = 100  # where Postfix, too, calls the nesting of $name unreasonable
_REFERENCE = re.compile(r"\$(?:(\$)|([A-Za-z0-9_]+)|\{([^{}]*)\}|\(([^()]*)\))?")
_NAME = re.compile(r"[A-Za-z0-9_]+")


@attrs.frozen
class Entry:
    """One ``name = value``.

    :ivar value: UTF-8 text; other bytes are kept as ``surrogateescape`` does.
    :ivar line: where the entry begins, counted from 1; 0 for one that is in no file (``--set name=value``).
    :ivar path: the file, or ``--set``; ``None`` where there is none.
    """

    name: str
    value: str
    line: int = 0
    path: str | None = None


@attrs.frozen
class ParsedFile:
    """All that a file in main.cf syntax says, with all that is wrong with it.

    :ivar entries: by name; names are case-sensitive, and the last entry of a name wins.
    :ivar errors: what Postfix would not start with.
    :ivar warnings: what Postfix reads, though hardly as it was meant.
    """

    path: str
    entries: dict[str, Entry] = attrs.Factory(dict)
    errors: list[Problem] = attrs.Factory(list)
    warnings: list[Problem] = attrs.Factory(list)


def read_file(path: str) -> bytes:
    """Return what is in a file.

    :raises ConfigurationError: naming the file, when it cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigurationError([Problem(f"cannot be read: {error.strerror}", path)]) from error
    except ValueError as error:  # a NUL in its name
        raise ConfigurationError([Problem(f"no file can have this name: {excerpt(path)!r}")]) from error


def parse(text: bytes, path: str) -> ParsedFile:
    """Read text in main.cf syntax, as postconf(5) describes it, without expanding ``$name``.

    Any bytes are read to their end, so that one run finds every error.

    :param path: the file that the text came from; it is only named.
    """
    parsed = ParsedFile(path)
    if text.startswith(codecs.BOM_UTF8):
        mark = "begins with a UTF-8 byte order mark, which becomes part of the first name: save the file without it"
        parsed.warnings.append(Problem(mark, path, 1))
    for number, line in logical_lines(text, path, parsed.warnings):
        try:
            name, value = _split_name_value(line)
        except ValueError as error:
            parsed.errors.append(Problem(f'{error}: "{excerpt(line)}"', path, number))
            continue
        earlier = parsed.entries.get(name)
        if earlier is not None and earlier.value != value:
            overriding = f"overriding earlier entry: {excerpt(name)}={excerpt(earlier.value)} (line {earlier.line})"
            parsed.warnings.append(Problem(overriding, path, number))
        parsed.entries[name] = Entry(name, value, number, path)
    return parsed


def logical_lines(text: bytes, path: str, warnings: list[Problem]) -> Iterator[tuple[int, bytes]]:
    """Split text into logical lines: a line that begins with white space continues the one before.

    The leading white space of a continuation line is kept. Empty lines and comment lines are skipped, also between a
    line and its continuation. A first line that begins with white space is ignored with its continuations, and a line
    is cut at a NUL byte, both with a warning.

    :param path: the file that the text came from, for the warnings.
    :return: the number, counted from 1, of the first physical line, and the logical line without its newline.
    """
    number, parts = 0, list[bytes]()
    for count, line in enumerate(text.split(b"\n"), 1):
        bare = line.lstrip()
        if not bare or bare.startswith(b"#"):
            continue
        if parts and line[:1].isspace():
            parts.append(line)
            continue
        if parts:
            yield from _finished(number, parts, path, warnings)
        number, parts = count, [line]
    if parts:
        yield from _finished(number, parts, path, warnings)


def _finished(number: int, parts: list[bytes], path: str, warnings: list[Problem]) -> Iterator[tuple[int, bytes]]:
    line, nul, _ = b"".join(parts).partition(b"\0")
    if nul:
        warnings.append(Problem("text after a NUL byte is ignored", path, number))
    if line[:1].isspace():
        ignored = f'a logical line must not start with white space; ignored: "{excerpt(line)}"'
        warnings.append(Problem(ignored, path, number))
    else:
        yield number, line


def _split_name_value(line: bytes) -> tuple[str, str]:
    before, equals, value = line.partition(b"=")
    name = before.strip()
    if not name:
        raise ValueError("missing attribute name")
    if not equals or len(name.split()) > 1:
        raise ValueError("missing '=' after attribute name")
    return name.decode(errors="surrogateescape"), value.strip().decode(errors="surrogateescape")


def excerpt(text: bytes | str, length: int = 60) -> str:
    """Return the beginning of a text in a form that every terminal and log can show, at most ``length`` bytes of it."""
    if isinstance(text, str):
        text = text.encode(errors="surrogateescape")
    shown = text[:length].decode(errors="backslashreplace")
    shown = "".join(character if character.isprintable() else "?" for character in shown)
    return shown if len(text) <= length else shown + "..."


def split_list(text: str) -> list[str]:
    """Split a list at commas and blanks, as Postfix does; text between ``{`` and ``}`` is not split, and keeps them."""
    words = []
    begin, level = None, 0
    for position, character in enumerate(text):
        if level == 0 and character in _SEPARATORS:
            if begin is not None:
                words.append(text[begin:position])
                begin = None
            continue
        if begin is None:
            begin = position
        if character == "{":
            level += 1
        elif character == "}" and level > 0:
            level -= 1
    if begin is not None:
        words.append(text[begin:])
    return words


def strip_braces(text: str) -> str:
    """Return what is between the ``{`` that begins a text and the ``}`` that ends it.

    :param text: begins with ``{``.
    :raises ValueError: the ``}`` is missing, or is not the end.
    """
    level = 0
    for position, character in enumerate(text):
        if character == "{":
            level += 1
        elif character == "}":
            level -= 1
            if level == 0:
                if position + 1 < len(text):
                    raise ValueError(f"syntax error after '}}' in {text!r}")
                return text[1:position]
    raise ValueError(f"missing '}}' in {text!r}")


def split_option(option: str) -> tuple[str, str]:
    """Split ``name=value``, or ``{ name = value with blanks }``.

    :raises ValueError: it is neither.
    """
    text = strip_braces(option) if option.startswith("{") else option
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ValueError(f"{option!r}: write name=value, or {{ name = value }}")
    return name.strip(), value.strip()


def split_key(text: bytes, end: re.Pattern[bytes]) -> tuple[bytes, bytes]:
    """Split text at the end of the key that it begins with.

    A key of a table may contain anything between double quotes or after a backslash. Both stay in the key.

    :param end: matches the byte that ends a key.
    :return: the key, and the rest from the byte that ended it.
    :raises ValueError: a quote has no partner.
    """
    if b'"' not in text and b"\\" not in text:
        found = end.search(text)
        position = found.start() if found else len(text)
        return text[:position], text[position:]
    quoted = False
    position = 0
    while position < len(text):
        character = text[position : position + 1]
        if character == b"\\":
            position += 1
        elif character == b'"':
            quoted = not quoted
        elif not quoted and end.match(character):
            break
        position += 1
    if quoted:
        raise ValueError("unbalanced '\"'")
    return text[:position], text[position:]


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'ttl'?``, or nothing when no known name is near."""
    nearest = get_close_matches(name, known, n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


def expand(parsed: ParsedFile, defaults: Mapping[str, str]) -> ParsedFile:
    """Replace ``$name``, ``${name}`` and ``$(name)`` by the value of that name, and ``$$`` by ``$``.

    For the service's own file; Postfix does not expand anything in the files of tables.

    :param defaults: the values of the names that are not in the file; they may contain ``$name`` themselves.
    :return: the file with all values replaced. Errors are added for names that are neither in the file nor have a
        default, for names that refer to themselves, and for a ``$`` without a name.
    """
    expansion = _Expansion(parsed.entries, defaults, list(parsed.errors))
    entries = {name: attrs.evolve(entry, value=expansion.value(name)) for name, entry in parsed.entries.items()}
    return attrs.evolve(parsed, entries=entries, errors=expansion.errors)


@attrs.define
class _Expansion:
    """One run of :func:`expand`."""

    entries: Mapping[str, Entry]
    defaults: Mapping[str, str]
    errors: list[Problem]
    _done: dict[str, str] = attrs.Factory(dict)
    _under_way: list[str] = attrs.Factory(list)

    def value(self, name: str) -> str:
        if name not in self._done:
            self._under_way.append(name)
            entry = self.entries.get(name)
            raw = self.defaults[name] if entry is None else entry.value
            self._done[name] = _REFERENCE.sub(self._replacement, raw)
            self._under_way.pop()
        return self._done[name]

    def _replacement(self, reference: re.Match[str]) -> str:
        dollar, *names = reference.groups()
        if dollar:
            return dollar
        name = next((name.strip(WHITESPACE) for name in names if name is not None), "")
        if not _NAME.fullmatch(name):
            self._error("a '$' must be followed by a name, {name}, (name) or another '$'")
        elif name not in self.entries and name not in self.defaults:
            self._error(f"unknown parameter {name!r}{suggestion(name, {*self.entries, *self.defaults})}")
        elif name in self._under_way:
            self._error(f"{name!r} refers to itself")
        elif len(self._under_way) >= _MOST_NESTED:
            self._error(f"{name!r} is nested in more than {_MOST_NESTED} others")
        else:
            return self.value(name)
        return reference[0]

    def _error(self, text: str) -> None:
        name = self._under_way[-1]
        entry = self.entries.get(name, Entry(name, ""))
        self.errors.append(Problem(f"{excerpt(name)}: {text}", entry.path, entry.line))
