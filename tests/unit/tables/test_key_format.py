from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from socketmap_memcache.config.syntax import excerpt
from socketmap_memcache.tables.key_format import KeyFormat

templates = st.lists(st.sampled_from([*(f"%{letter}" for letter in "%sSuUdD123456789"), "x", ":"])).map("".join)


def model(template: str, key: str) -> str | None:
    """Each specifier is looked at by itself."""
    before, at, after = key.rpartition("@")
    labels = [label for label in reversed(after.split(".")) if label] if at else []
    skipped = not key

    def value(match: re.Match[str]) -> str:
        nonlocal skipped
        letter = match[1].lower()
        if letter.isdigit():
            skipped |= int(letter) > len(labels)
            return "" if skipped else labels[int(letter) - 1]
        if letter == "d":
            skipped |= not at or not after
        if letter == "u":
            skipped |= key == f"@{after}"
        return {"%": "%", "s": key, "u": before if at else key, "d": after}[letter]

    expanded = re.sub("%(.)", value, template)
    return None if skipped or not expanded else expanded


def expand(template: str, key: str) -> str | None:
    expanded = KeyFormat.parse(template).expand(key.encode())
    return None if expanded is None else expanded.decode()


class TestParse:
    @pytest.mark.parametrize("template", ["%", "%x", "a%", "%0", "%%%", "% s", "%\n", "%\u00e9"])
    def test_errors(self, template: str) -> None:
        """A % that is followed by anything else is an error that shows the template."""
        with pytest.raises(ValueError, match="invalid query template") as caught:
            KeyFormat.parse(template)
        assert excerpt(template) in str(caught.value)

    def test_not_utf8(self) -> None:
        """A template may have any bytes, given as bytes or as the text of a file."""
        for template in (b"\xff%s", "\udcff%s"):
            assert KeyFormat.parse(template).expand(b"k") == b"\xffk"
        with pytest.raises(ValueError, match=r"\\xff%"):
            KeyFormat.parse(b"\xff%")

    def test_template(self) -> None:
        """A format remembers how it was written."""
        assert KeyFormat.parse("a%%%s").template == b"a%%%s"


class TestExpand:
    @pytest.mark.parametrize(
        "template,expanded",
        [
            ("%s", "u@a.b.c"),
            ("%S", "u@a.b.c"),
            ("aliases:%s", "aliases:u@a.b.c"),
            ("%s.x", "u@a.b.c.x"),
            ("<%s>", "<u@a.b.c>"),
            ("%s%s", "u@a.b.cu@a.b.c"),
            ("%u/%U", "u/u"),
            ("%d/%D", "a.b.c/a.b.c"),
            ("%1.%2.%3", "c.b.a"),
            ("%2", "b"),
            ("%%", "%"),
            ("%%s", "%s"),
            ("100%%%s", "100%u@a.b.c"),
            ("constant", "constant"),
            ("%u at %d", "u at a.b.c"),
        ],
    )
    def test_values(self, template: str, expanded: str) -> None:
        """Each specifier stands for its part of the key."""
        assert expand(template, "u@a.b.c") == expanded

    @pytest.mark.parametrize(
        "template,key,expanded",
        [
            ("%u", "user", "user"),
            ("%u", "a@b@c.d", "a@b"),
            ("%d", "a@b@c.d", "c.d"),
            ("%u", "user@", "user"),
            ("%u", "@@", "@"),
            ("%d", "@dom", "dom"),
            ("%2.%1", "@domain.tld", "domain.tld"),
            ("%d", "user@[1.2.3.4]", "[1.2.3.4]"),
            ("%1", "user@[1.2.3.4]", "4]"),
            ("%1", "user@dom.", "dom"),
            ("%1", "user@.dom", "dom"),
            ("%2.%1", "user@a..b", "a.b"),
            ("%9", "u@9.8.7.6.5.4.3.2.1", "9"),
            ("x", "user", "x"),
        ],
    )
    def test_odd_keys(self, template: str, key: str, expanded: str) -> None:
        """The last @ divides a key, and empty labels of its domain do not count."""
        assert expand(template, key) == expanded

    @pytest.mark.parametrize(
        "template,key",
        [
            ("%s", ""),
            ("x", ""),
            ("", "user"),
            ("%u", "@dom"),
            ("%u", "@"),
            ("%d", "user"),
            ("%d", "user@"),
            ("%d", "@@"),
            ("%1", "user@"),
            ("%1", "x@."),
            ("%3", "user@a.b"),
            ("%3", "user@a..b."),
            ("%u%d", "user"),
            ("%u%d", "@dom"),
            ("%s%d", "user"),
            ("%%%9", "u@8.7.6.5.4.3.2.1"),
        ],
    )
    def test_suppressed(self, template: str, key: str) -> None:
        """A key that lacks anything the template uses is skipped, and so is an empty result."""
        assert expand(template, key) is None

    @settings(deadline=None)
    @given(templates, st.text(alphabet="ab@. \u00e9", max_size=12))
    def test_model(self, template: str, key: str) -> None:
        """Any template and key give what a slow reading of memcache_table(5) gives."""
        assert expand(template, key) == model(template, key)

    @settings(deadline=None)
    @given(st.text())
    def test_any_template(self, template: str) -> None:
        """Any text is a template or a ValueError."""
        try:
            key_format = KeyFormat.parse(template)
        except ValueError:
            return
        key_format.expand(b"user@example.com")
