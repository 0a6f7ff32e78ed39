from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast
from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from socketmap_memcache.errors import ConfigurationError, TemporaryError
from socketmap_memcache.tables import registry
from socketmap_memcache.tables.interface import ITable
from socketmap_memcache.tables.match_list import MatchList
from socketmap_memcache.tables.read_only import ReadOnlyTable
from socketmap_memcache.tables.registry import TableContext

if TYPE_CHECKING:
    from socketmap_memcache.memcache.pool import ClientPool


def context() -> TableContext:
    return TableContext(clients=cast("ClientPool", None))


@implementer(ITable)
class SlowTable(ReadOnlyTable):
    """A table that answers when the test says so."""

    def __init__(self, name: str, context: TableContext) -> None:
        self.name = f"slow:{name}"
        self.asked: list[bytes] = []
        self.answer: Deferred[bytes | None] = Deferred()
        self.closed = False
        opened.append(self)

    def lookup(self, key: bytes) -> Deferred[bytes | None]:
        self.asked.append(key)
        return self.answer

    def close(self) -> None:
        self.closed = True


opened: list[SlowTable] = []


class MatchListTests(SynchronousTestCase):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def setUp(self) -> None:
        opened.clear()
        patch = mock.patch.dict(registry._OPENERS, {"slow": f"{__name__}:SlowTable"})
        patch.start()
        self.addCleanup(patch.stop)

    def parse(self, spec: str) -> MatchList:
        return MatchList.parse(spec, context())

    def errors(self, spec: str, path: str | None = None, line: int = 0) -> list[str]:
        caught = self.assertRaises(ConfigurationError, MatchList.parse, spec, context(), path, line)
        return [str(problem) for problem in caught.problems]

    def write(self, name: str, text: str) -> str:
        path = self.folder / name
        path.write_text(text)
        return str(path)

    def matches(self, spec: str, *names: str) -> list[bool]:
        answers = []
        listed = self.parse(spec)
        for name in names:
            answer = listed.match(name.encode())
            answers.append(self.successResultOf(answer) if isinstance(answer, Deferred) else answer)
        return answers


class TestNames(MatchListTests):
    def test_exact(self) -> None:
        """A name matches itself, not the domains above or below it."""
        names = ["example.com", "sub.example.com", "com", "", "example.net"]
        assert self.matches("example.com, example.net", *names) == [True, False, False, False, True]
        assert self.matches(".example.com", "sub.example.com", ".example.com") == [False, True]

    def test_case(self) -> None:
        """Names and items are folded."""
        assert self.matches("Example.COM B\u00dcCHER.de", "eXample.com", "b\u00fccher.DE") == [True, True]

    def test_at_once(self) -> None:
        """Where names decide, the answer is there at once."""
        listed = self.parse("a !b slow:x")
        assert listed.match(b"a") is True
        assert listed.match(b"b") is False
        assert isinstance(listed.match(b"c"), Deferred)

    def test_nothing(self) -> None:
        """A list without items matches nothing, not even an empty name."""
        assert self.matches(" , ", "", "a") == [False, False]

    def test_not(self) -> None:
        """An exclamation mark turns the meaning round, two turn it back; the first match decides."""
        assert self.matches("!a b a", "a", "b") == [False, True]
        assert self.matches("a !a", "a") == [True]
        assert self.matches("!!a", "a") == [True]
        assert self.matches("!!!a static:all", "a", "b") == [False, True]
        assert self.matches("!a", "a", "b") == [False, False]

    def test_nothing_after_not(self) -> None:
        """An exclamation mark alone is an error, at the place that the caller names."""
        assert self.errors("a, ! b !!", "x.cf", 7) == ["x.cf:7: no pattern after '!'"] * 2
        assert self.errors("!") == ["no pattern after '!'"]

    def test_brackets(self) -> None:
        """An address literal is a name, with its colons."""
        assert self.matches("[IPv6:::1] [1.2.3.4]", "[ipv6:::1]", "[1.2.3.4]", "1.2.3.4") == [True, True, False]

    def test_braces(self) -> None:
        """Text in braces is one item."""
        assert self.matches("{a b}", "a", "{a b}") == [False, True]

    def test_comment(self) -> None:
        """A comment after other text ends the list, with a warning."""
        into = context()
        listed = MatchList.parse("a #b c", into, "x.cf", 3)
        assert [listed.match(name) for name in (b"a", b"b", b"#b", b"c")] == [True, False, False, False]
        assert [(warning.path, warning.line) for warning in into.warnings] == [("x.cf", 3)]

    def test_not_utf8(self) -> None:
        """An item that is not UTF-8 matches nothing, with a warning, and a name that is not matches nothing."""
        into = context()
        listed = MatchList.parse("\udcff static:all", into)
        assert listed.match(b"\xff") is False
        assert len(into.warnings) == 1
        assert "is not UTF-8" in str(into.warnings[0])

    @settings(deadline=None)
    @example("/\x00")
    @given(st.text())
    def test_any_text(self, spec: str) -> None:
        """Any text is a list or a ConfigurationError."""
        try:
            listed = self.parse(spec)
        except ConfigurationError:
            return
        listed.match(b"example.com")


class TestFiles(MatchListTests):
    def test_items(self) -> None:
        """A file is read as if its items stood in its place; comments and continuation lines are read as anywhere."""
        path = self.write("list", "# domains\na, B\n  #x\n  c\n!d\n\ne\n")
        names = ["a", "b", "c", "d", "e", "f"]
        assert self.matches(f"{path} f", *names) == [True, True, True, False, True, True]
        assert self.matches(f"!b {path}", *names) == [True, False, True, False, True, False]

    def test_not(self) -> None:
        """An exclamation mark before a file stands before each item in it."""
        inner = self.write("inner", "c !d")
        path = self.write("list", f"a !b !{inner}")
        assert self.matches(f"!{path} static:all", "a", "b", "c", "d", "e") == [False, True, True, False, True]

    def test_twice(self) -> None:
        """One file may stand in several places."""
        path = self.write("list", "a")
        assert self.matches(f"{path} {path}", "a", "b") == [True, False]

    def test_missing(self) -> None:
        """A file that cannot be read is an error that names it, also in another file."""
        path = self.write("list", "a\n/none/at/all\n!\n")
        assert self.errors(f"{path} /none", "x.cf", 2) == [
            "/none/at/all: cannot be read: No such file or directory",
            f"{path}:3: no pattern after '!'",
            "/none: cannot be read: No such file or directory",
        ]

    def test_itself(self) -> None:
        """A file that contains itself is an error, where Postfix would never end."""
        path = str(self.folder / "list")
        other = self.write("other", f"b\n{path}")
        self.write("list", f"a\n{other}\n")
        assert self.errors(path) == [f"{other}:2: the file {path} contains itself"]

    def test_indented(self) -> None:
        """A first line that is indented is ignored, with a warning."""
        path = self.write("list", " a\nb\n")
        into = context()
        listed = MatchList.parse(path, into)
        assert [listed.match(b"a"), listed.match(b"b")] == [False, True]
        assert [warning.path for warning in into.warnings] == [path]


class TestTables(MatchListTests):
    def test_found(self) -> None:
        """Any value is a match, even an empty one."""
        assert self.matches("inline:{ a=1, b= }", "A", "b", "c") == [True, True, False]
        assert self.matches("!inline:{ a=1 } static:all", "a", "b") == [False, True]
        assert self.matches("static:all", "", "x") == [True, True]

    def test_not_folded(self) -> None:
        """A table that is made when it is opened keeps its keys as they are, and so the folded name may miss them."""
        path = self.write("table", "Example.COM 1\nexample.net 1\n")
        assert self.matches(f"texthash:{path}", "Example.COM", "EXAMPLE.net") == [False, True]
        assert self.matches("inline:{A=1, b=1}", "A", "B") == [False, True]

    def test_order(self) -> None:
        """Items after a table count only when it has not the name."""
        listed = self.parse("a !slow:x b slow:y c")
        assert [listed.match(b"a"), len(opened[0].asked)] == [True, 0]
        for first, second, result in ((b"1", None, False), (None, b"1", True), (None, None, False)):
            opened[0].answer, opened[1].answer = Deferred(), Deferred()
            answer = listed.match(b"D")
            assert isinstance(answer, Deferred)
            opened[0].answer.callback(first)
            if first is None:
                self.assertNoResult(answer)
                opened[1].answer.callback(second)
            assert self.successResultOf(answer) is result
        assert opened[0].asked == [b"d"] * 3
        assert opened[1].asked == [b"d"] * 2

    def test_name_after_table(self) -> None:
        """A name after a table is found once the table has answered."""
        listed = self.parse("slow:x b")
        answer = listed.match(b"b")
        assert isinstance(answer, Deferred)
        opened[0].answer.callback(None)
        assert self.successResultOf(answer) is True

    def test_failure(self) -> None:
        """A table that fails is a failure, not a missing match; names before it still decide."""
        listed = self.parse("a fail:x b")
        assert listed.match(b"a") is True
        answer = listed.match(b"b")
        assert isinstance(answer, Deferred)
        self.failureResultOf(answer, TemporaryError)

    def test_cannot_open(self) -> None:
        """Tables that cannot be opened are errors, all of them, and those already open are closed."""
        unknown, missing, unnamed = self.errors("slow:x nope:y texthash:/none fail:", "x.cf", 4)
        assert unknown.startswith("x.cf:4: table 'nope:y': unknown table type 'nope'")
        assert missing == "/none: cannot be read: No such file or directory"
        assert unnamed == "x.cf:4: fail: needs a name, for example fail:maintenance"
        assert opened[0].closed

    def test_close(self) -> None:
        """Closing a list closes its tables."""
        listed = self.parse("a slow:x b slow:y")
        listed.close()
        assert [table.closed for table in opened] == [True, True]


class TestAddress(MatchListTests):
    def test_domain(self) -> None:
        """The text after the last @ is matched."""
        listed = self.parse("example.com")
        keys = [b"u@Example.com", b"a@b@example.com", b"u@example.com@x", b"u@sub.example.com"]
        assert [listed.match_address(key) for key in keys] == [True, True, False, False]

    def test_no_local_part(self) -> None:
        """A key without an @, or with nothing before it, is not in any list."""
        listed = self.parse("static:all example.com")
        assert [listed.match_address(key) for key in (b"@example.com", b"example.com", b"", b"@")] == [False] * 4

    def test_empty_domain(self) -> None:
        """An empty domain is asked for, and only a table can have it."""
        assert self.parse("a").match_address(b"user@") is False
        answer = self.parse("static:all").match_address(b"user@")
        assert isinstance(answer, Deferred)
        assert self.successResultOf(answer) is True
