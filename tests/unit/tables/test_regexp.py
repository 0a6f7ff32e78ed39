from __future__ import annotations

import signal
import tempfile
import threading
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from socketmap_memcache.errors import PermanentError, Problem, TemporaryError
from socketmap_memcache.tables import rules
from socketmap_memcache.tables.interface import IBatchTable, ITable
from socketmap_memcache.tables.posix_regexp import compile_posix
from socketmap_memcache.tables.regexp import RegexpLanguage, RegexpTable, parse_result
from socketmap_memcache.tables.registry import TableContext
from socketmap_memcache.tables.time_limit import TimeLimitError, call_with_limit
from tests.unit.deferreds import result_of

if TYPE_CHECKING:
    from socketmap_memcache.memcache.pool import ClientPool


def parsed(text: str | bytes, **limits: float) -> tuple[RegexpTable, list[str]]:
    """Give the table that a text makes, and its warnings."""
    warnings: list[Problem] = []
    encoded = text if isinstance(text, bytes) else text.encode()
    table = RegexpTable("f", rules.parse(encoded, "f", RegexpLanguage(), warnings), **limits)
    return table, [str(warning) for warning in warnings]


class RegexpTests(SynchronousTestCase):
    def lookups(self, text: str, *keys: str) -> list[str | None]:
        table, warnings = parsed(text)
        assert warnings == []
        values = [self.successResultOf(table.lookup(key.encode())) for key in keys]
        return [None if value is None else value.decode() for value in values]

    def test_first_match(self) -> None:
        """The first rule that matches somewhere in the key counts; case does not."""
        assert self.lookups("/b/ one\n/a/ two\n", "aB", "A", "c", "") == ["one", "two", None, None]

    def test_flags(self) -> None:
        """Each flag reverses a default: i the case, x extended expressions, m the lines."""
        assert self.lookups("/a+/i one\n/a+/x two\n", "a", "A", "A+") == ["one", None, "two"]
        assert self.lookups("/^b/m x\n/^b/mm y\n", "a\nb", "b") == ["x", "x"]

    def test_negated(self) -> None:
        """A negated pattern matches what it is not found in; a second pattern has to match too."""
        assert self.lookups("!/a/ $$x\n/a/!/b/ y\n!!/c/ z\n", "b", "a", "ab", "abc") == ["$x", "y", None, "z"]

    def test_delimiters(self) -> None:
        """Any character delimits a pattern, and is hidden by a backslash; a last backslash ends it, too."""
        assert self.lookups("|a\\|b| x\n!aba y\n", "a|b", "b") == ["x", None]
        table, warnings = parsed("/x\\")
        assert warnings == ["f:1: no replacement text: using the empty string"]
        assert self.successResultOf(table.lookup(b"x")) == b""

    def test_substitution(self) -> None:
        """Submatches are put into the result in the key's own case; those that are undefined or empty are nothing."""
        text = "/^(A)?(b*)(c)$/ 1=$1 2=${2} 3=$(3) $$1 $$\n/^()x/ [$1]\n"
        assert self.lookups(text, "abBC", "c", "x") == ["1=a 2=bB 3=C $1 $", "1= 2= 3=c $1 $", "[]"]

    def test_longest(self) -> None:
        """Of the matches that begin first the longest counts for the submatches, and then the first alternative."""
        assert self.lookups("/(|a|ab)(c|bcd)?/ $1-$2\n", "abcde") == ["a-bcd"]
        assert self.lookups("/(a|ab)(.*)$/ $1-$2\n", "abc") == ["a-bc"]

    def test_second_pattern_has_no_submatches(self) -> None:
        """Submatches are those of the first pattern."""
        assert self.lookups("/(a)/!/(b)/ $1\n", "a", "ab") == ["a", None]

    def test_blocks(self) -> None:
        """The rules of a block count where all of its conditions hold."""
        text = "if /a/\nif !/b/\n/./ a-not-b\nendif\n/c/ a-b-c\nENDIF\n/./ other\n"
        assert self.lookups(text, "a", "abc", "ab", "b") == ["a-not-b", "a-b-c", "other", "other"]

    def test_no_endif(self) -> None:
        """A block without an end goes to the end of the file, with a warning."""
        table, warnings = parsed("if /a/\n/./ x\n")
        assert warnings == ["f:1: IF has no matching ENDIF"]
        assert [self.successResultOf(table.lookup(key)) for key in (b"a", b"b")] == [b"x", None]

    def test_extra_text(self) -> None:
        """Text after IF and ENDIF is ignored with a warning."""
        table, warnings = parsed("if /a/ b\n/./ x\nendif c\n/./ y\n")
        assert len(warnings) == 2
        assert [self.successResultOf(table.lookup(key)) for key in (b"a", b"b")] == [b"x", b"y"]

    def test_bytes(self) -> None:
        """A character is a byte; a result that cuts one of UTF-8 in two fails; a key that is not UTF-8 is missing."""
        table, warnings = parsed(b"/^(.)$/ one\n/^(.)./ $1\n")
        assert warnings == []
        self.failureResultOf(table.lookup("\u00e9".encode()), PermanentError)
        assert self.successResultOf(table.lookup(b"\xff")) is None
        table, warnings = parsed(b"/a/ \xff\n")
        assert "not UTF-8" in warnings[0]
        self.failureResultOf(table.lookup(b"a"), PermanentError)

    def test_long_key(self) -> None:
        """A key above the limit fails; it is not a miss."""
        table, _ = parsed("/b/ x\n")
        assert self.successResultOf(table.lookup(b"a" * 2048)) is None
        self.failureResultOf(table.lookup(b"a" * 2049), PermanentError)

    def test_endless(self) -> None:
        """A look-up that takes too long is stopped and fails; its rule is logged, once; the next is none the wiser."""
        table, _ = parsed("/x/ y\n/^(a+)+$/ z\n", time_limit=0.02)
        with capturedLogs() as logs:
            for _ in range(2):
                failure = self.failureResultOf(table.lookup(b"a" * 50 + b"!"), TemporaryError)
                assert "line 2: no result within 0.02 s" in failure.getErrorMessage()
        assert len(logs) == 1
        assert self.successResultOf(table.lookup(b"x")) == b"y"

    def test_first_of_several(self) -> None:
        """Several keys have one time limit together; the first that is found counts, a failure before it is one."""
        table, _ = parsed("/^b$/ z\n/^(a+)+$/ y\n", time_limit=0.02)
        assert IBatchTable.providedBy(table)
        assert self.successResultOf(table.lookup_first([b"x", b"b", b"a" * 60 + b"!"])) == (1, b"z")
        assert self.successResultOf(table.lookup_first([b"x", b"y"])) is None
        before = process_time()
        self.failureResultOf(table.lookup_first([b"a" * 60 + b"!"] * 50), TemporaryError)
        assert process_time() - before < 0.5

    def test_slow(self) -> None:
        """A rule that was slow once is logged, once."""
        table, _ = parsed("/a/ x\n/b/ y\n", slow=-1)
        with capturedLogs() as logs:
            for _ in range(2):
                assert self.successResultOf(table.lookup(b"b")) == b"y"
        assert [formatEvent(event).partition(":")[0] for event in logs] == ["regexp", "regexp"]
        assert "line 1: slow:" in formatEvent(logs[0])

    def test_no_limit_in_threads(self) -> None:
        """In another thread, where no signal arrives, a call is not limited."""
        results: list[bytes] = []
        thread = threading.Thread(target=lambda: results.append(call_with_limit(1, bytes.upper, b"a")))
        thread.start()
        thread.join()
        assert results == [b"A"]

    def test_limit(self) -> None:
        """A call that takes its time is stopped, and one that ends in time gives its result."""

        def spin(argument: bytes) -> bytes:
            while True:
                argument = argument.lower()

        self.assertRaises(TimeLimitError, call_with_limit, 0.01, spin, b"")
        assert call_with_limit(10, bytes.upper, b"a") == b"A"
        signal.raise_signal(signal.SIGVTALRM)  # one that comes too late

    def test_open(self) -> None:
        """The table is opened by its path, with its warnings."""
        context = TableContext(clients=cast("ClientPool", None))
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "t")
            path.write_bytes(b"/a/ b\nx y\n")
            table = context.open_table(f"regexp:{path}")
        verifyObject(ITable, table)
        assert [warning.line for warning in context.warnings] == [2]
        assert self.successResultOf(table.lookup(b"a")) == b"b"
        table.close()


@pytest.mark.parametrize(
    "line, reason",
    [
        ("abc", "expected /pattern/, IF or ENDIF"),
        ("iff /a/", "expected /pattern/, IF or ENDIF"),
        ("!", "no regular expression"),
        ("if", "no regular expression"),
        ("/a", 'no closing delimiter "/"'),
        ("/a\\/", 'no closing delimiter "/"'),
        ("/a/y b", 'unknown option "y"'),
        ("/a/!/b c", 'no closing delimiter "/"'),
        ("endif", "ENDIF without IF"),
        ("/(/ x", "unmatched ("),
        ("/(a)/ $2", "replacement index 2 is out of range"),
        ("/a/ $1", "replacement index 1 is out of range"),
        ("/(a)/ $0", 'bad replacement index "0"'),
        ("/(a)/ $1a", 'bad replacement index "1a"'),
        ("/(a)/ $", 'bad replacement index ""'),
        ("/(a)/ $.", 'bad replacement index ""'),
        ("/(a)/ ${}", 'bad replacement index ""'),
        ("/(a)/ ${(1}", 'bad replacement index "(1"'),
        ("/(a)/ ${1", "truncated macro reference"),
        ("!/(a)/ $1", "$number in the replacement text of a negative match"),
    ],
)
def test_bad_rule(line: str, reason: str) -> None:
    """A bad rule is skipped, with a warning that says where and why; the others count."""
    table, warnings = parsed(f"/z/ a\n{line}\n/./ b\n")
    assert warnings == [f'f:2: {reason}; skipped: "{line}"']
    assert [result_of(table.lookup(key)) for key in (b"z", b"a")] == [b"a", b"b"]


@pytest.mark.parametrize(
    "expression, extended, reason",
    [
        (b"*a", True, "nothing before"),
        (b"a|*b", True, "nothing before"),
        (b"(+a)", True, "nothing before"),
        (b"^*", True, "nothing before"),
        (rb"\{1\}", False, "nothing before"),
        (rb"a\{1\}*", False, "repetition of a repetition"),
        (b"a{1", True, "unmatched {"),
        (b"a{}", True, "invalid content"),
        (b"a{x}", True, "invalid content"),
        (b"a{2,1}", True, "invalid content"),
        (b"a{32768}", True, "more than 32767"),
        (b"(a", True, "unmatched ("),
        (rb"\(a", False, "unmatched"),
        (rb"a\)", False, "unmatched"),
        (rb"(a\1)", True, "back reference"),
        (rb"(a)|\1", True, "back reference"),
        (b"a\\", True, "trailing backslash"),
        (b"[a", True, "unmatched ["),
        (b"[", True, "unmatched ["),
        (b"[a-", True, "unmatched ["),
        (b"[[:alpha:", True, "unmatched ["),
        (b"[b-a]", True, "invalid range"),
        (b"[[=ab=]]", True, "invalid collation"),
        (b"[[.a", True, "unmatched ["),
        (b"[a-b-c]", True, "invalid range"),
        (b"[a-[:digit:]]", True, "invalid range"),
        (b"[[:no:]]", True, "invalid character class"),
        (b"[[.ab.]]", True, "invalid collation"),
        (b"(" * 5000 + b")" * 5000, True, "too large"),
    ],
)
def test_bad_expression(expression: bytes, extended: bool, reason: str) -> None:
    """What regcomp(3) refuses is refused."""
    with pytest.raises(ValueError, match=reason.replace("(", r"\(").replace("[", r"\[").replace("{", r"\{")):
        compile_posix(expression, extended=extended, ignore_case=True, newline=False)


@pytest.mark.parametrize(
    "expression, flags, texts",
    [
        # A text that begins with "!" is not matched.
        (rb"a\{2\}", "", [b"aa", b"!a"]),
        (rb"^*a", "", [b"*a", b"!a"]),
        (rb"\(^a\|b$\)", "", [b"ax", b"xb", b"!xax"]),
        (rb"a^b$c", "", [b"a^b$c"]),
        (rb"\(a\)\1", "", [b"aa", b"!ab"]),
        (rb"a+\?", "", [b"a"]),
        (b"a{,2}b", "x", [b"b", b"aab"]),
        (b"x(a{0}){2,}y", "x", [b"xy"]),
        (b"a)|}", "x", [b"a)", b"}", b"!a"]),
        (rb"\d\.", "x", [b"d.", b"!1.", b"!d1"]),
        (rb"^\w\W\s\S$", "x", [b"a- x", b"!aa x"]),
        (rb"\<a\>", "x", [b"-a-", b"!ab", b"!ba"]),
        (rb"a\B", "x", [b"ab", b"!a"]),
        (rb"\`a\b\'", "x", [b"a", b"!ba"]),
        (b"[]a-]", "x", [b"]", b"-", b"a", b"!b"]),
        (b"[^]a]", "x", [b"b", b"!]"]),
        (b"[---]", "x", [b"-", b"!a"]),
        (b"[a---]", "x", [b"a", b"-", b"!b"]),
        (b"[a[.b.][=c=][:digit:]]", "x", [b"a", b"b", b"c", b"7", b"!d"]),
        (b"[[:lower:]]", "xi", [b"A", b"a"]),
        (b"[[:lower:]]", "x", [b"!A", b"a"]),
        (b"[A-z]", "xi", [b"a", b"!_"]),
        (b"[A-z]", "x", [b"a", b"_"]),
        (rb"\a", "xi", [b"!a"]),
        (b"[^\x01-\xff]", "x", [b"!a"]),
        (b"a.b", "x", [b"a\nb"]),
        (b"a.b", "xm", [b"!a\nb"]),
        (b"a[^x]b", "xm", [b"!a\nb"]),
        (b"^b$", "xm", [b"a\nb\nc"]),
        (b"(a|b|)c()", "x", [b"c"]),
    ],
)
def test_expression(expression: bytes, flags: str, texts: list[bytes]) -> None:
    """Expressions match what they match in Postfix."""
    compiled = compile_posix(expression, extended="x" in flags, ignore_case="i" in flags, newline="m" in flags)
    for text in texts:
        subject = text.removeprefix(b"!").upper() if "i" in flags else text.removeprefix(b"!")
        assert (compiled.pattern.search(subject) is None) is text.startswith(b"!"), text


@given(st.binary(max_size=20), st.binary(max_size=20), st.booleans(), st.booleans(), st.booleans())
def test_any_expression(text: bytes, key: bytes, extended: bool, ignore_case: bool, newline: bool) -> None:
    """Any bytes are an expression, or refused with a ValueError."""
    try:
        compiled = compile_posix(text, extended=extended, ignore_case=ignore_case, newline=newline)
    except ValueError:
        return
    found = compiled.pattern.search(key)
    assert found is None or len(compiled.longest(found)[0]) >= len(found[0])


@given(st.text("$(){}1a", max_size=10))
def test_any_result(text: str) -> None:
    """Any text is a result, or refused with a ValueError."""
    try:
        parts = parse_result(text.encode())
    except ValueError:
        return
    assert parts[-1] == b"" or isinstance(parts[-1], bytes)
