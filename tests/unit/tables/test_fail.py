from __future__ import annotations

from socketmap_memcache.errors import TemporaryError

from .small_table_tests import SmallTableTests


class TestFail(SmallTableTests):
    def test_lookup(self) -> None:
        """Every look-up fails for the time being, and says which table it was; also after closing."""
        table = self.open("fail:maintenance")
        table.close()
        for key in (b"", b"key"):
            failure = self.failureResultOf(table.lookup(key), TemporaryError)
            assert "fail:maintenance" in failure.getErrorMessage()

    def test_not_utf8(self) -> None:
        """A key that is not UTF-8 is missing in any table."""
        assert self.lookup(self.open("fail:x"), b"\xff") is None

    def test_no_name(self) -> None:
        """The name must not be empty."""
        assert self.errors("fail:") == ["fail: needs a name, for example fail:maintenance"]
