from __future__ import annotations

from .small_table_tests import SmallTableTests


class TestStatic(SmallTableTests):
    def test_lookup(self) -> None:
        """Every key has the value, also the empty one, unless it is not UTF-8."""
        table = self.open("static:a b")
        table.close()
        assert [self.lookup(table, key) for key in (b"", b"K", b"\xff")] == [b"a b", b"a b", None]

    def test_braces(self) -> None:
        """Braces around the value go, with the blanks next to them."""
        values = {"static:{ a b }": b"a b", "static:{}": b"", "static:{a{b}}": b"a{b}", "static:a}": b"a}"}
        assert {spec: self.lookup(self.open(spec), b"k") for spec in values} == values

    def test_errors(self) -> None:
        """A missing value, unbalanced braces, text after them, and a value that is not UTF-8 are errors."""
        assert self.errors("static:") == ["static: needs a value, for example static:all"]
        assert "missing '}'" in self.errors("static:{a")[0]
        assert "syntax error after '}'" in self.errors("static:{a}b")[0]
        assert "not UTF-8" in self.errors("static:\udcff")[0]
