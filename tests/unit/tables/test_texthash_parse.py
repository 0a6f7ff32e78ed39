from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from socketmap_memcache.errors import Problem
from socketmap_memcache.tables import texthash


class TestTexthashParse(SynchronousTestCase):
    def parse(self, text: bytes, fold_keys: bool = True) -> tuple[dict[bytes, bytes], list[str]]:
        warnings: list[Problem] = []
        entries = texthash.parse(text, "map", fold_keys, warnings)
        return entries, [str(warning) for warning in warnings]

    def test_entries(self) -> None:
        """A key ends at the first white space; the value is the rest of the logical line."""
        text = b"# aliases\nA@B  one two \t\n\n\t three  \r\nc\xc3\x9c\tx\n"
        assert self.parse(text) == ({b"a@b": b"one two \t\t three", b"c\xc3\xbc": b"x"}, [])

    def test_quoted(self) -> None:
        """Quotes and backslashes hide white space and stay in the key."""
        text = b'"a b"@c x\nd\\ e y\n'
        assert self.parse(text) == ({b'"a b"@c': b"x", b"d\\ e": b"y"}, [])

    def test_unfolded(self) -> None:
        """Keys are left alone if so wished."""
        assert self.parse(b"A x\na y\n", fold_keys=False) == ({b"A": b"x", b"a": b"y"}, [])

    def test_duplicates(self) -> None:
        """The first of equal keys counts, and each other is warned about, even with the same value."""
        warnings = [f'map:{line}: duplicate entry: "{key}"; the first one counts' for line, key in ((2, "A"), (3, "a"))]
        assert self.parse(b"a x\nA y\na x\n") == ({b"a": b"x"}, warnings)

    def test_ignored(self) -> None:
        """Lines that are no entry are ignored with a warning."""
        text = b' first x\na\nb \xff\n"c x\n\0 y\nd z\n'
        entries, warnings = self.parse(text)
        assert entries == {b"d": b"z"}
        assert warnings == [
            'map:1: a logical line must not start with white space; ignored: " first x"',
            'map:2: expected format: key whitespace value; ignored: "a"',
            'map:3: non-UTF-8 input; ignored: "b \\xff"',
            'map:4: unbalanced \'"\'; ignored: ""c x"',
            "map:5: text after a NUL byte is ignored",
            'map:5: expected format: key whitespace value; ignored: ""',
        ]

    def test_alias_file(self) -> None:
        """A key with a colon at its end counts, with a warning, for the file may be one for aliases(5)."""
        entries, warnings = self.parse(b"root: me\n")
        assert entries == {b"root:": b"me"}
        assert warnings == ['map:1: this is in "key: value" format; is it an alias file?']

    @settings(deadline=None)
    @given(st.binary())
    def test_any_bytes(self, text: bytes) -> None:
        """Any bytes are read without an exception."""
        entries, _ = self.parse(text)
        assert all(entries.values())
        assert all(entries)
