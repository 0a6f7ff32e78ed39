from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from socketmap_memcache.config.syntax import (
    Entry,
    ParsedFile,
    excerpt,
    expand,
    logical_lines,
    parse,
    read_file,
    split_key,
    split_list,
    strip_braces,
    suggestion,
)
from socketmap_memcache.errors import ConfigurationError, Problem

KEY_END = re.compile(rb"\s")

# Text made of what the rules are about.
odd_pieces = [b"a", b"bc", b"=", b" ", b"\t", b"\n", b"\n ", b"#", b"\r\n", b"\0", b"\xff"]
odd_text = st.lists(st.sampled_from(odd_pieces)).map(b"".join)


def lines_of(text: bytes) -> list[tuple[int, bytes]]:
    return list(logical_lines(text, "x.cf", []))


def values_of(text: bytes) -> dict[str, str]:
    parsed = parse(text, "x.cf")
    assert not parsed.errors
    return {name: entry.value for name, entry in parsed.entries.items()}


def texts(problems: list[Problem]) -> list[str]:
    return [str(problem) for problem in problems]


class TestReadFile:
    def test_content(self, tmp_path: Path) -> None:
        """A file's bytes come back as they are."""
        (tmp_path / "x.cf").write_bytes(b"ttl = 1\xff\r\n")
        assert read_file(str(tmp_path / "x.cf")) == b"ttl = 1\xff\r\n"

    def test_missing(self, tmp_path: Path) -> None:
        """A file that cannot be read is a configuration error that names it."""
        path = str(tmp_path / "none.cf")
        with pytest.raises(ConfigurationError, match="none.cf: cannot be read: No such file"):
            read_file(path)


class TestLogicalLines:
    @pytest.mark.parametrize(
        "text,lines",
        [
            (b"", []),
            (b"\n \n", []),
            (b"a", [(1, b"a")]),
            (b"a\nb\n", [(1, b"a"), (2, b"b")]),
            (b"a\n  b\n\tc", [(1, b"a  b\tc")]),
            (b"#x\n\n \na", [(4, b"a")]),
            (b" #x\na\n", [(2, b"a")]),
            (b"a\n#x\n #x\n\n b\nc", [(1, b"a b"), (6, b"c")]),
            (b"a \r\n b\r\n", [(1, b"a \r b\r")]),
            (b"a\n ", [(1, b"a")]),
        ],
    )
    def test_joined(self, text: bytes, lines: list[tuple[int, bytes]]) -> None:
        """Continuation lines are joined with their blanks, comments and empty lines may stand anywhere."""
        assert lines_of(text) == lines

    def test_white_space_first(self) -> None:
        """A first line with white space is ignored with its continuation, and warned about."""
        warnings: list[Problem] = []
        assert list(logical_lines(b" a\n b\nc", "x.cf", warnings)) == [(3, b"c")]
        assert texts(warnings) == ['x.cf:1: a logical line must not start with white space; ignored: " a b"']

    def test_nul(self) -> None:
        """A NUL cuts the logical line, also what continues it, and is warned about."""
        warnings: list[Problem] = []
        assert list(logical_lines(b"a\0b\n c\nd", "x.cf", warnings)) == [(1, b"a"), (3, b"d")]
        assert texts(warnings) == ["x.cf:1: text after a NUL byte is ignored"]

    @settings(deadline=None)
    @given(odd_text)
    def test_never_starts_with_white_space(self, text: bytes) -> None:
        """A logical line has no NUL and no newline, starts with neither white space nor '#', and comes in order."""
        numbers = []
        for number, line in lines_of(text):
            assert not line[:1].isspace()
            assert not line.startswith(b"#")
            assert b"\0" not in line
            assert b"\n" not in line
            numbers.append(number)
        assert numbers == sorted(set(numbers))


class TestParse:
    @pytest.mark.parametrize(
        "text,values",
        [
            (b"ttl=5", {"ttl": "5"}),
            (b"ttl \t= \t5 \r\n", {"ttl": "5"}),
            (b"ttl =", {"ttl": ""}),
            (b"ttl = 5 # five", {"ttl": "5 # five"}),
            (b"key_format = aa:\n  %s", {"key_format": "aa:  %s"}),
            (b'memcache = "a=b" {c} \\', {"memcache": '"a=b" {c} \\'}),
            (b"a = $b\nB = 2\nb = 3", {"a": "$b", "B": "2", "b": "3"}),
            (b"a = b = c", {"a": "b = c"}),
            (b"domain = \xc3\xa9", {"domain": "é"}),
            (b"domain = \xff", {"domain": "\udcff"}),
            (b"a = 1\0 2\n", {"a": "1"}),
            (b"a\n = 1", {"a": "1"}),
        ],
    )
    def test_entries(self, text: bytes, values: dict[str, str]) -> None:
        """Names and values lose the blanks around them and nothing else."""
        assert values_of(text) == values

    @pytest.mark.parametrize(
        "text,error",
        [
            (b"a", "x.cf:1: missing '=' after attribute name: \"a\""),
            (b"a b = c", "x.cf:1: missing '=' after attribute name: \"a b = c\""),
            (b"= c", 'x.cf:1: missing attribute name: "= c"'),
            (b"\0a = c", 'x.cf:1: missing attribute name: ""'),
        ],
    )
    def test_errors(self, text: bytes, error: str) -> None:
        """A line that Postfix would not start with is an error at that line."""
        assert texts(parse(text, "x.cf").errors) == [error]

    def test_all_errors(self) -> None:
        """Reading goes on after an error, so that all are found at once."""
        parsed = parse(b"a\nb = 1\n\nc d\n", "x.cf")
        assert [problem.line for problem in parsed.errors] == [1, 4]
        assert parsed.entries == {"b": Entry("b", "1", 2, "x.cf")}

    def test_last_wins(self) -> None:
        """The last entry of a name wins; only a different value is warned about."""
        parsed = parse(b"a = 1\na=1\na = 2\n", "x.cf")
        assert parsed.entries["a"] == Entry("a", "2", 3, "x.cf")
        assert texts(parsed.warnings) == ["x.cf:3: overriding earlier entry: a=1 (line 2)"]

    def test_byte_order_mark(self) -> None:
        """A byte order mark becomes part of the first name, as in Postfix, but not silently."""
        parsed = parse(b"\xef\xbb\xbfttl = 5", "x.cf")
        assert list(parsed.entries) == ["\ufeffttl"]
        assert "byte order mark" in str(parsed.warnings[0])

    @settings(deadline=None)
    @given(st.binary() | odd_text)
    def test_any_bytes(self, text: bytes) -> None:
        """Any bytes are read without an exception, and everything found has its place in the text."""
        parsed = parse(text, "x.cf")
        lines = text.count(b"\n") + 1
        problems = [*parsed.errors, *parsed.warnings]
        places = [(item.path, item.line) for item in problems]
        places += [(entry.path, entry.line) for entry in parsed.entries.values()]
        assert all(path == "x.cf" and 1 <= line <= lines for path, line in places)
        assert all(str(problem).isprintable() for problem in problems)

    @settings(deadline=None)
    @given(st.dictionaries(st.text("abc_01", min_size=1), st.text("a=#$ {\\\u00e9").map(str.strip)))
    def test_round_trip(self, values: dict[str, str]) -> None:
        """What is written as lines of name = value is read back."""
        text = "".join(f"{name} = {value}\n" for name, value in values.items())
        assert values_of(text.encode()) == values


class TestExcerpt:
    def test_short(self) -> None:
        """A short text is shown whole, with bytes that are not UTF-8 as escapes."""
        assert excerpt(b"a\xffb\xc3\xa9") == "a\\xffb\u00e9"

    def test_long(self) -> None:
        """A long text is cut, and control characters do not reach a terminal."""
        assert excerpt("\x1babc", 3) == "?ab..."


class TestSplitList:
    @pytest.mark.parametrize(
        "text,words",
        [
            ("", []),
            (" ,\t\r\n", []),
            ("a, b c,,d", ["a", "b", "c", "d"]),
            ("inline:{ a = b, {c = d} } e", ["inline:{ a = b, {c = d} }", "e"]),
            ("{a b}c d", ["{a b}c", "d"]),
            ("a} b", ["a}", "b"]),
            ("a {b c", ["a", "{b c"]),
            ("a\vb", ["a\vb"]),
        ],
    )
    def test_words(self, text: str, words: list[str]) -> None:
        """Items end at commas and blanks that are not in braces."""
        assert split_list(text) == words

    @settings(deadline=None)
    @given(st.text(alphabet="ab ,{}"))
    def test_nothing_lost(self, text: str) -> None:
        """Only separators are dropped, and no item is empty."""
        words = split_list(text)
        assert all(words)
        assert "".join(words).translate({32: None, 44: None}) == text.translate({32: None, 44: None})


class TestStripBraces:
    @pytest.mark.parametrize("text,inner", [("{}", ""), ("{ a }", " a "), ("{a{b}c}", "a{b}c")])
    def test_inner(self, text: str, inner: str) -> None:
        """The outer braces go, with nothing else."""
        assert strip_braces(text) == inner

    @pytest.mark.parametrize("text,reason", [("{a", "missing '}'"), ("{a{b}", "missing '}'"), ("{a}b", "after '}'")])
    def test_unbalanced(self, text: str, reason: str) -> None:
        """Braces that do not enclose all of the text are an error."""
        with pytest.raises(ValueError, match=reason):
            strip_braces(text)


class TestSplitKey:
    @pytest.mark.parametrize(
        "text,key,rest",
        [
            (b"", b"", b""),
            (b"a b c", b"a", b" b c"),
            (b"abc", b"abc", b""),
            (b'"a b"c d', b'"a b"c', b" d"),
            (b'"a \\" b" c', b'"a \\" b"', b" c"),
            (b"a\\ b c", b"a\\ b", b" c"),
            (b'a\\"b c', b'a\\"b', b" c"),
            (b"a\\", b"a\\", b""),
            (b'"a"', b'"a"', b""),
        ],
    )
    def test_split(self, text: bytes, key: bytes, rest: bytes) -> None:
        """A key ends at the first white space that is neither quoted nor after a backslash."""
        assert split_key(text, KEY_END) == (key, rest)

    @pytest.mark.parametrize("text", [b'"', b'a" b', b'"a\\" b'])
    def test_unbalanced(self, text: bytes) -> None:
        """A quote without a partner is an error."""
        with pytest.raises(ValueError, match="unbalanced"):
            split_key(text, KEY_END)


class TestSuggestion:
    def test_near(self) -> None:
        """The nearest known name is proposed, or none."""
        assert suggestion("ttll", ["ttl", "flags"]) == "; did you mean 'ttl'?"
        assert not suggestion("xyz", ["ttl", "flags"])


class TestExpand:
    @staticmethod
    def expanded(text: bytes, **defaults: str) -> ParsedFile:
        return expand(parse(text, "main.cf"), defaults)

    def value(self, text: bytes, **defaults: str) -> str:
        parsed = self.expanded(text, **defaults)
        assert not parsed.errors
        return parsed.entries["a"].value

    @pytest.mark.parametrize(
        "text,value",
        [
            (b"a = x", "x"),
            (b"a = $b/$(b)/${b}/${ b }-$b.$b_c\nb = 1\nb_c = 2", "1/1/1/1-1.2"),
            (b"a = $$b $$$b\nb = 1", "$b $1"),
            (b"a = $b\nb = $c\nc = $$d", "$d"),
            (b"a = <$b>\nb =", "<>"),
        ],
    )
    def test_values(self, text: bytes, value: str) -> None:
        """Names are replaced by their values, through any number of steps, and $$ by $."""
        assert self.value(text) == value

    def test_defaults(self) -> None:
        """A name that is not in the file has its default, which is expanded too; the file comes first."""
        assert self.value(b"a = $b $c\nc = 3", b="<$c>", c="4") == "<3> 3"

    def test_place(self) -> None:
        """An entry keeps its place, and errors found before are kept."""
        parsed = self.expanded(b"bad\na = $b\n", b="1")
        assert parsed.entries["a"] == Entry("a", "1", 2, "main.cf")
        assert [problem.line for problem in parsed.errors] == [1]

    @pytest.mark.parametrize(
        "text,error",
        [
            (b"a = $tabls\ntables = x", "main.cf:1: a: unknown parameter 'tabls'; did you mean 'tables'?"),
            (b"\na = $zzz", "main.cf:2: a: unknown parameter 'zzz'"),
            (b"a = $a", "main.cf:1: a: 'a' refers to itself"),
            (b"a = $b\nb = $a", "main.cf:2: b: 'a' refers to itself"),
            (b"a = $", "main.cf:1: a: a '$' must be followed by a name, {name}, (name) or another '$'"),
            (b"a = 5$-", "main.cf:1: a: a '$' must be followed by a name, {name}, (name) or another '$'"),
            (b"a = ${", "main.cf:1: a: a '$' must be followed by a name, {name}, (name) or another '$'"),
            (b"a = ${a?b}", "main.cf:1: a: a '$' must be followed by a name, {name}, (name) or another '$'"),
            (b"b = $d", "a default: d: unknown parameter 'x'"),
        ],
    )
    def test_errors(self, text: bytes, error: str) -> None:
        """What cannot be replaced is an error at the entry that says it, once."""
        parsed = self.expanded(text, d="$x")
        assert texts(parsed.errors) == [error.removeprefix("a default: ")]

    def test_too_deep(self) -> None:
        """A chain of a hundred names is refused, long before Python's stack ends."""
        text = "".join(f"n{number} = $n{number + 1}\n" for number in range(5000))
        errors = self.expanded(text.encode() + b"n5000 = 1").errors
        assert errors
        assert "nested in more than 100" in str(errors[0])

    @settings(deadline=None)
    @given(st.text(alphabet="ab$(){} ?:"))
    def test_any_value(self, value: str) -> None:
        """Any value is expanded or an error, never an exception; after an expansion no $ is left that was not $$."""
        entries = {"a": Entry("a", value, 1, "main.cf"), "b": Entry("b", "x", 2, "main.cf")}
        parsed = expand(ParsedFile("main.cf", entries), {})
        assert parsed.errors or "$$" in value or "$" not in parsed.entries["a"].value
