from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from twisted.trial.unittest import SynchronousTestCase

from socketmap_memcache.memcache.security import Security, check_username, read_password, read_pem


class TestFiles(SynchronousTestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory(prefix="security-")
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name, "file")

    def password_file(self, contents: bytes, mode: int = 0o600) -> str:
        self.path.write_bytes(contents)
        self.path.chmod(mode)
        return str(self.path)

    def error(self, contents: bytes, mode: int = 0o600) -> str:
        return str(self.assertRaises(ValueError, read_password, self.password_file(contents, mode)))

    def test_first_line(self) -> None:
        """The password is the first line, whatever ends it."""
        for contents in (b"secret", b"secret\n", b"secret\r\n", b"secret\nmore\n"):
            assert read_password(self.password_file(contents)) == b"secret"
        assert read_password(self.password_file(b"s\xff", 0o400)) == b"s\xff"

    def test_mode(self) -> None:
        """A file that others than its owner may read or write is refused, with the command that helps."""
        for mode in (0o640, 0o604, 0o620, 0o666):
            error = self.error(b"secret\n", mode)
            assert f"(mode {mode:04o}): chmod 600 {self.path}" in error
            assert "secret" not in error

    def test_no_password(self) -> None:
        """A line that cannot be sent as a password is refused, and not shown."""
        for contents in (b"", b"\n", b"two words", b"user:word", b"tab\t", b"x" * 257, b"x" * 2000, b"nul\0"):
            error = self.error(contents)
            assert "the first line is no password" in error
            assert "word'" not in error

    def test_unreadable(self) -> None:
        """A file that cannot be read is an error that names it and says why."""
        for read in (read_password, read_pem):
            error = self.assertRaises(ValueError, read, str(self.path))
            assert str(error) == f"{self.path}: cannot be read: No such file or directory"
        assert "Is a directory" in str(self.assertRaises(ValueError, read_pem, str(self.path.parent)))

    def test_pem(self) -> None:
        """A file of certificates is read as it is."""
        assert read_pem(self.password_file(b"contents\n", 0o644)) == b"contents\n"


@pytest.mark.parametrize("name", [b"", b"two words", b"a:b", b"a\n", b"x" * 129])
def test_username(name: bytes) -> None:
    """A name that memcached's file of users could not hold is refused."""
    check_username(b"postfix")
    with pytest.raises(ValueError, match="are not possible"):
        check_username(name)


def test_secrets_are_not_shown() -> None:
    """Neither the password nor the key is in what a value is shown as."""
    shown = repr(Security(b"ca", b"certificate", b"hidden key", "name", b"user", b"hidden password"))
    assert "user" in shown
    assert "hidden" not in shown


def test_contents_count() -> None:
    """Two values are the same if the contents of all files are."""
    assert Security(key=b"k", password=b"p") == Security(key=b"k", password=b"p")
    assert Security(password=b"p") != Security(password=b"q")
    assert Security(key=b"p") != Security(key=b"q")
