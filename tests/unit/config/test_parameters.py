from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from socketmap_memcache.config.parameters import Parameters
from socketmap_memcache.config.syntax import Entry, ParsedFile, excerpt, parse
from socketmap_memcache.errors import ConfigurationError, Problem


def parameters(text: str = "") -> Parameters:
    return Parameters(parse(text.encode(), "x.cf"))


def errors_of(read: Parameters) -> list[str]:
    warnings: list[Problem] = []
    try:
        read.finish(warnings)
    except ConfigurationError as error:
        return [str(problem) for problem in error.problems]
    return []


class TestText:
    def test_value(self) -> None:
        """A text is what the file says, even nothing, else the default."""
        read = parameters("a = x y\nb =\n")
        assert (read.text("a", "d"), read.text("b", "d"), read.text("c", "d")) == ("x y", "", "d")


class TestInteger:
    @pytest.mark.parametrize(
        "text,number",
        [
            ("5", 5),
            ("+10", 10),
            ("-5", -5),
            ("010", 10),
            ("-0", 0),
            ("0" * 5000 + "7", 7),
            ("2147483647", 2147483647),
            ("-2147483648", -2147483648),
        ],
    )
    def test_numbers(self, text: str, number: int) -> None:
        """What strtol(3) reads to its end as 32 bits is a number."""
        read = parameters(f"ttl = {text}")
        assert read.integer("ttl", 1) == number
        assert not errors_of(read)

    @pytest.mark.parametrize(
        "text",
        ["", "10s", "0x10", "1.5", "10 20", "+-1", "- 1", "\u0663", "2147483648", "-2147483649", "9" * 5000, "a"],
    )
    def test_not_numbers(self, text: str) -> None:
        """Anything else is an error with Postfix's text, and counts as the default."""
        read = parameters(f"\nttl = {text}")
        assert read.integer("ttl", 7) == 7
        assert errors_of(read) == [
            f"x.cf:2: bad numerical configuration: ttl = {excerpt(text)} (a decimal number is needed)",
        ]

    def test_default(self) -> None:
        """A default is not held to the bounds."""
        assert parameters().integer("ttl", 0, minimum=1) == 0

    def test_bounds(self) -> None:
        """The bounds are inclusive, and what is beyond is an error with Postfix's text."""
        read = parameters("a = 1\nb = 0\nc = 9\nd = 10")
        assert [read.integer(name, 5, minimum=1, maximum=9) for name in "abcd"] == [1, 5, 9, 5]
        assert errors_of(read) == [
            "x.cf:2: invalid b parameter value 0 < 1",
            "x.cf:4: invalid d parameter value 10 > 9",
        ]

    @settings(deadline=None)
    @given(st.integers(), st.sampled_from(["", " ", "\t\f\v\r\n "]))
    def test_any_integer(self, number: int, blanks: str) -> None:
        """All integers of 32 bits are read, after white space too, and no others."""
        read = Parameters(ParsedFile("x.cf", {"ttl": Entry("ttl", f"{blanks}{number}", 1, "x.cf")}))
        fits = -(2**31) <= number < 2**31
        assert read.integer("ttl", 7) == (number if fits else 7)
        assert bool(errors_of(read)) != fits


class TestBoolean:
    @pytest.mark.parametrize("text,value", [("yes", True), ("YES", True), ("no", False), ("No", False)])
    def test_values(self, text: str, value: bool) -> None:
        """Yes and no are read in any case."""
        assert parameters(f"fold_keys = {text}").boolean("fold_keys", not value) is value

    @pytest.mark.parametrize("text", ["", "true", "1", "yes no"])
    def test_errors(self, text: str) -> None:
        """Anything else is an error, and counts as the default."""
        read = parameters(f"fold_keys = {text}")
        assert read.boolean("fold_keys", True) is True
        assert errors_of(read) == [f"x.cf:1: bad boolean configuration: fold_keys = {text} (yes or no is needed)"]

    def test_default(self) -> None:
        """Without an entry the default counts."""
        assert parameters().boolean("fold_keys", True) is True


class TestTime:
    @pytest.mark.parametrize(
        "text,seconds",
        [
            ("0", 0),
            ("300", 300),
            ("300s", 300),
            ("+5m", 300),
            ("2h", 7200),
            ("35d", 3024000),
            ("2w", 1209600),
            ("3550w", 2147040000),
        ],
    )
    def test_units(self, text: str, seconds: int) -> None:
        """A number has the unit that follows it, or is seconds."""
        assert parameters(f"delay = {text}").time("delay", 1.5) == seconds

    @pytest.mark.parametrize("text", ["", "s", "-1", "1.5", "5 m", "5M", "5ms", "5y", "3551w", "9" * 5000])
    def test_errors(self, text: str) -> None:
        """Anything else, and a time that has not room in 32 bits, is an error, and counts as the default."""
        read = parameters(f"delay = {text}")
        assert read.time("delay", 1.5) == 1.5
        assert errors_of(read) == [
            f"x.cf:1: bad time value or unit: delay = {excerpt(text)} (a number and one of s, m, h, d, w)",
        ]

    def test_default(self) -> None:
        """Without an entry the default counts, which may have a fraction."""
        assert parameters().time("delay", 0.5) == 0.5


class TestWords:
    def test_words(self) -> None:
        """A list is split at commas and blanks, its default too."""
        read = parameters("a = b,c\n  inline:{ d = e } \nf =")
        assert read.words("a", "x") == ["b", "c", "inline:{ d = e }"]
        assert read.words("f", "x") == []
        assert read.words("g", "x, y") == ["x", "y"]


class TestProblems:
    def test_line(self) -> None:
        """A name's line is that of its entry, or 0."""
        assert parameters("\na = 1").line("a") == 2
        assert parameters("\na = 1").line("b") == 0

    def test_all_at_once(self) -> None:
        """Finishing raises every error, those of the syntax too, in the order of the file."""
        read = parameters("a = 1\nbad\nb = 2")
        read.error("b", "is wrong")
        read.error("a", "is wrong, too")
        read.error("c", "is needed")
        assert errors_of(read) == [
            "x.cf: is needed",
            "x.cf:1: is wrong, too",
            "x.cf:2: missing '=' after attribute name: \"bad\"",
            "x.cf:3: is wrong",
        ]

    def test_warnings(self) -> None:
        """Warnings are handed on in the order of the file, whether or not there are errors."""
        for text, raises in (("a = 1\na = 2\n", False), ("a = 1\na = 2\nbad", True)):
            warnings = [Problem("earlier")]
            read = parameters(text)
            read.warn("a", "is odd")
            read.warn("b", "is missing")
            if raises:
                with pytest.raises(ConfigurationError):
                    read.finish(warnings)
            else:
                read.finish(warnings)
            assert [str(warning) for warning in warnings] == [
                "earlier",
                "x.cf: is missing",
                "x.cf:2: overriding earlier entry: a=1 (line 1)",
                "x.cf:2: is odd",
            ]

    def test_adopt(self) -> None:
        """Errors from elsewhere keep their line; those without one get the place of the parameter."""
        read = parameters("\nbackup = texthash:/x")
        here, there = Problem("cannot be used", "x.cf"), Problem("cannot be read", "/x")
        read.adopt("backup", [Problem("bad line", "/x", 3), there, here, Problem("unknown type")])
        placed = "x.cf:2: backup: /x: cannot be read"
        assert errors_of(read) == ["/x:3: bad line", placed, "x.cf: cannot be used", "x.cf:2: unknown type"]

    def test_order(self) -> None:
        """Those of another file are told where that is named, and not in the order of all numbers."""
        read = parameters("a = 1\nb = 2\nc = 3")
        for name, problem in (("c", Problem("", "/z", 1)), ("b", Problem("", "/y", 7)), ("b", Problem("", "/y", 8))):
            read.adopt(name, [problem])
        read.error("a", "")
        assert errors_of(read) == ["x.cf:1: ", "/y:7: ", "/y:8: ", "/z:1: "]

    def test_command_line(self) -> None:
        """An entry that is in no file has errors without a place."""
        read = Parameters(ParsedFile("main.cf", {"ttl": Entry("ttl", "x")}))
        read.integer("ttl", 1)
        assert errors_of(read) == ["bad numerical configuration: ttl = x (a decimal number is needed)"]

    def test_unknown(self) -> None:
        """Names that nothing asked for are reported with the nearest known name, as errors or as warnings."""
        for fatal in (True, False):
            read = parameters("ttll = 1\nttl = 2\nzzz = 3")
            read.integer("ttl", 1)
            read.integer("flags", 0)
            read.unknown(fatal)
            warnings: list[Problem] = []
            errors = []
            try:
                read.finish(warnings)
            except ConfigurationError as error:
                errors = list(error.problems)
            assert [str(problem) for problem in (errors if fatal else warnings)] == [
                "x.cf:1: unknown parameter 'ttll'; did you mean 'ttl'?",
                "x.cf:3: unknown parameter 'zzz'",
            ]
            assert not (warnings if fatal else errors)

    @settings(deadline=None)
    @given(st.text())
    def test_any_value(self, value: str) -> None:
        """Any text is read as any type without an exception."""
        read = Parameters(ParsedFile("x.cf", {"a": Entry("a", value, 1, "x.cf")}))
        read.integer("a", 1)
        read.boolean("a", True)
        assert read.time("a", 1) >= 0
        read.words("a", "")
