from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from socketmap_memcache.tables.folding import fold, normalize, valid

NOT_UTF8 = [b"\xff", b"a\x80", b"\xc3", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"]


class TestFold:
    @pytest.mark.parametrize(
        "key,folded",
        [
            ("", ""),
            ("User@Example.COM", "user@example.com"),
            ("\u00dcser", "\u00fcser"),
            ("Stra\u00dfe", "strasse"),
            ("\u0130", "i\u0307"),
            ("\u03a3\u03c2", "\u03c3\u03c3"),
            ("\ufb01", "fi"),
            ("\u212a", "k"),
            ("\ufffe", "\ufffe"),
            ("\x00[\\]^_\x7f", "\x00[\\]^_\x7f"),
        ],
    )
    def test_folded(self, key: str, folded: str) -> None:
        """Keys are folded as Unicode says."""
        assert fold(key.encode()) == folded.encode()

    @pytest.mark.parametrize("key", NOT_UTF8)
    def test_not_utf8(self, key: bytes) -> None:
        """Truncated, overlong, surrogate and too large characters make a key that does not exist."""
        assert fold(key) is None
        assert not valid(key)

    @settings(deadline=None)
    @given(st.text())
    def test_stable(self, text: str) -> None:
        """A folded key stays as it is when it is folded again, as it is on its way through several tables."""
        try:
            folded = fold(text.encode())
        except UnicodeEncodeError:  # surrogates
            return
        assert folded is not None
        assert fold(folded) == folded

    @settings(deadline=None)
    @given(st.binary())
    def test_any_bytes(self, key: bytes) -> None:
        """Any bytes fold exactly when they are valid, and normalizing is folding or nothing."""
        assert (fold(key) is not None) == valid(key)
        assert normalize(key, fold_keys=True) == fold(key)
        assert normalize(key, fold_keys=False) == (key if valid(key) else None)
