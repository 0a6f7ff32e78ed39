from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from socketmap_memcache.errors import ConfigurationError

from .small_table_tests import SmallTableTests, context


class TestInline(SmallTableTests):
    def test_pairs(self) -> None:
        """Pairs are written with or without braces, and values in braces may have blanks and commas."""
        table = self.open("inline:{a=1, B=2,{ c = x, y }\t{d=} =empty,{e=f=g}}")
        table.close()
        keys = [b"a", b"b", b"c", b"d", b"", b"e", b"f"]
        assert [self.lookup(table, key) for key in keys] == [b"1", b"2", b"x, y", b"", b"empty", b"f=g", None]

    def test_case(self) -> None:
        """Keys are folded, and of equal keys the last counts."""
        table = self.open("inline:{\u00dc=1, a=2, A=3}")
        assert [self.lookup(table, key.encode()) for key in ("\u00dc", "\u00fc", "a")] == [b"1", b"1", b"3"]

    def test_not_utf8(self) -> None:
        """A key that is not UTF-8 is missing."""
        assert self.lookup(self.open("inline:{a=1}"), b"\xff") is None

    def test_quoted(self) -> None:
        """Quotes and backslashes hide blanks and stay in the key."""
        table = self.open(r'inline:{{"a =b" = 1}, {c\ d = 2}}')
        assert [self.lookup(table, key) for key in (b'"a =b"', b"c\\ d", b"a =b")] == [b"1", b"2", None]

    def test_errors(self) -> None:
        """What Postfix does not open is an error that shows the table."""
        for name, reason in {
            "": "bad syntax",
            "a=b": "bad syntax",
            "{}": "empty table",
            "{ , }": "empty table",
            "{a}": "missing '='",
            "{a = b}": "missing '='",
            "{{a b = c}}": "missing '='",
            "{{}}": "no key found",
            "{a=b": "missing '}'",
            "{a=b}c": "after '}'",
            "{{a=b}c}": "after '}'",
            '{{"a=b}}': "unbalanced",
            "{a=\udcff}": "bad UTF-8",
        }.items():
            (error,) = self.errors(f"inline:{name}")
            assert reason in error
            assert 'need "inline:{name=value...}"' in error

    @settings(deadline=None)
    @given(st.text())
    def test_any_name(self, name: str) -> None:
        """Any text is a table or a ConfigurationError."""
        try:
            table = context().open_table(f"inline:{{{name}}}")
        except ConfigurationError:
            return
        self.lookup(table, b"key")
