"""What ``key_format`` and ``domain`` do with keys, beside what Postfix itself does."""

from __future__ import annotations

import random
import re
import unicodedata

import pytest
from twisted.internet.defer import Deferred

from socketmap_memcache.errors import ConfigurationError, TemporaryError
from socketmap_memcache.tables.folding import fold
from socketmap_memcache.tables.key_format import KeyFormat
from socketmap_memcache.tables.match_list import MatchList
from tests.unit.deferreds import result_of

from .oracle import ODD_BYTES, Oracle, at_once, context


def matches(listed: MatchList, key: bytes) -> bool:
    match = listed.match_address(key)
    return result_of(match) if isinstance(match, Deferred) else match


class TestKeys:
    def test_key_format(self, oracle: Oracle, source: random.Random) -> None:
        """Generated templates make the keys that Postfix asks memcached for, of ordinary and odd keys."""
        pieces = [*(f"%{letter}" for letter in "%sSuUdD12345679"), "%s", "x", ":", "\u00e9"]
        templates = ["".join(source.choices(pieces, k=source.randrange(1, 5))) for _ in range(100)]
        local, label = ("u", "U+x", "a.b", '"q r"', "\u00dc"), ("A", "b", "\u00e9", "", "xn--x")
        domains = [".".join(source.choices(label, k=source.randrange(1, 6))) for _ in range(50)]
        keys = list(dict.fromkeys([*ODD_BYTES, *(f"{source.choice(local)}@{domain}".encode() for domain in domains)]))

        def compare(template: str) -> None:
            key_format = KeyFormat.parse(template)
            expanded = [key_format.expand(folded) for folded in map(fold, keys) if folded]
            wanted = [b"get " + key for key in expanded if key and not re.search(rb"\s", key)]
            assert oracle.requests(f"key_format = {template}", keys)[0] == wanted, template

        at_once(compare, [*templates, "%s", "", "constant"])

    def test_wrong_key_format(self, oracle: Oracle) -> None:
        """Templates that are refused are those that Postfix stops at."""

        def compare(template: str) -> None:
            with pytest.raises(ValueError, match="invalid query template"):
                KeyFormat.parse(template)
            _, complaints = oracle.requests(f"key_format = {template}", [b"key"])
            assert f"Invalid query template: {template}" in complaints

        at_once(compare, ["%", "a%", "%x", "%0", "%%%", "% s", "%:"])

    def test_folding(self, oracle: Oracle) -> None:
        """Letters and marks that every Unicode library knows are folded as Postfix folds them."""
        characters = [chr(code) for code in range(0x80, 0x110000)]
        characters = [c for c in characters if unicodedata.ucd_3_2_0.category(c)[0] in "LM" and c < "\u3400"]
        keys = ["".join(characters[at : at + 50]).encode() for at in range(0, len(characters), 50)]
        assert len(keys) > 50
        assert oracle.requests("", keys)[0] == [b"get " + (fold(key) or b"") for key in keys]


class TestDomain:
    NAMES = ("a.example", "b.example", "B.Example", "sub.a.example", "\u00dc.example", "c", "[1.2.3.4]", ".a.example")

    def items(self, source: random.Random, oracle: Oracle, separators: tuple[str, ...] = (", ", ",", " ")) -> str:
        """Return a random list, perhaps with files and tables."""

        def item() -> str:
            kind = source.choices(["name", "file", "inline", "texthash", "static"], weights=[12, 2, 1, 1, 1])[0]
            if kind == "file":
                return oracle.write("#a\n" + self.items(source, oracle, (", ", "\n", "\n#b\n ")) + "\n")
            names = source.choices(self.NAMES, k=3)
            if kind == "inline":
                return "inline:{ " + ", ".join(f"{name}=x" for name in names) + " }"
            if kind == "texthash":
                return "texthash:" + oracle.write("".join(f"{name} x\n" for name in dict.fromkeys(names)))
            return "static:all" if kind == "static" and source.random() < 0.3 else names[0]

        marks = source.choices(["", "!", "!!"], weights=[5, 3, 1], k=source.randrange(1, 6))
        return source.choice(separators).join(mark + item() for mark in marks)

    def test_lists(self, oracle: Oracle, source: random.Random) -> None:
        """Generated lists let through the keys that Postfix asks memcached for."""
        keys = [f"{local}@{name}" for local in ("u", "", "x@y") for name in (*self.NAMES, "A.EXAMPLE", "d", "")]
        encoded = list(dict.fromkeys([*(key.encode() for key in keys), *ODD_BYTES]))

        def compare(spec: str) -> None:
            listed = MatchList.parse(spec, context())
            folded = [key for key in map(fold, encoded) if key]
            matching = [key for key in folded if matches(listed, key)]
            wanted = [b"get " + key for key in matching if not re.search(rb"\s", key)]
            assert oracle.requests(f"domain = {spec}", encoded)[0] == wanted, spec

        at_once(compare, [self.items(source, oracle) for _ in range(150)] + [",", "#a", "c #a", "{c d.example}"])

    def test_failure(self, oracle: Oracle) -> None:
        """A table that fails is a failure where Postfix reports one, and no failure where an item before it decides."""

        def compare(spec: str) -> None:
            listed = MatchList.parse(spec, context())
            requests, complaints = oracle.requests(f"domain = {spec}", [b"u@a"])
            try:
                match = matches(listed, b"u@a")
            except TemporaryError:
                assert "query error" in complaints
                assert not requests
            else:
                assert "query error" not in complaints
                assert requests == ([b"get u@a"] if match else [])

        at_once(compare, ["fail:x", "b fail:x a", "!fail:x a", "a fail:x", "!a fail:x"])

    def test_nothing_after_not(self, oracle: Oracle) -> None:
        """An exclamation mark alone is an error as in Postfix."""
        with pytest.raises(ConfigurationError, match="no pattern after '!'"):
            MatchList.parse("a ! b", context())
        assert "no pattern after '!'" in oracle.requests("domain = a ! b", [b"u@a"])[1]
