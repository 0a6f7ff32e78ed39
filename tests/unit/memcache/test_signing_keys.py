from __future__ import annotations

from pathlib import Path

import pytest

from socketmap_memcache.errors import ConfigurationError
from socketmap_memcache.memcache.signing_keys import SigningKey, read_signing_keys

FIRST = "00112233445566778899aabbccddeeff"
SECOND = "F" * 64


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "keys"
    made.touch(0o640)
    return made


def errors(path: Path) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        read_signing_keys(str(path))
    assert FIRST not in str(caught.value)
    return [str(problem).removeprefix(f"{path}:").strip() for problem in caught.value.problems]


def test_keys(path: Path) -> None:
    """Each line is a key, in the order of the file; comments, blanks and empty lines do not matter."""
    path.write_text(f"# since 2026\n\n{FIRST}\n  {SECOND}\t# the old one\r\n")
    keys = read_signing_keys(str(path))
    assert [key.secret for key in keys] == [bytes.fromhex(FIRST), bytes.fromhex(SECOND)]


def test_id() -> None:
    """A key's name follows from the key, so that hosts agree on it."""
    first, second = SigningKey.of(bytes.fromhex(FIRST)), SigningKey.of(bytes.fromhex(SECOND))
    assert first.id == SigningKey.of(bytes.fromhex(FIRST)).id == b"08cd1e9b"
    assert first.id != second.id


def test_secrecy() -> None:
    """A key does not show itself."""
    key = SigningKey.of(b"not to be seen!!")
    assert repr(key) == f"SigningKey(id={key.id!r})"
    assert b"not to be seen" not in key.id


@pytest.mark.parametrize("mode", [0o644, 0o602, 0o641, 0o604])
def test_mode(path: Path, mode: int) -> None:
    """Keys that every user may use are an error that says what to run."""
    path.write_text(FIRST)
    path.chmod(mode)
    assert errors(path) == [f"every user may use these signing keys; run: chmod o= {path}"]


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640])
def test_group(path: Path, mode: int) -> None:
    """Keys are for the owner, and for the group that the service runs with."""
    path.write_text(FIRST)
    path.chmod(mode)
    assert len(read_signing_keys(str(path))) == 1


def test_unreadable(path: Path) -> None:
    """A file that cannot be read is an error, as any other file is."""
    path.unlink()
    assert errors(path) == ["cannot be read: No such file or directory"]
    path.mkdir()
    assert errors(path) == ["cannot be read: Is a directory"]


def test_bad_lines(path: Path) -> None:
    """All bad lines are told, with their numbers, and nothing of a key with them."""
    path.write_text(f"{FIRST}\n{FIRST}x\n{FIRST[:30]}\n{FIRST}\nk\u00e9y\n123\n")
    not_a_key = "not a key: write what `openssl rand -hex 32` prints"
    assert errors(path) == [
        f"2: {not_a_key}",
        "3: a key of 15 bytes; at least 16 are needed (run: openssl rand -hex 32)",
        "4: this key is there twice",
        f"5: {not_a_key}",
        f"6: {not_a_key}",
    ]


@pytest.mark.parametrize(
    "text,error",
    [
        ("", "there is no key in this file: add what `openssl rand -hex 32` prints"),
        ("# none\n", "there is no key in this file: add what `openssl rand -hex 32` prints"),
        ("#" * 70_000, "too large for a file of signing keys"),
    ],
)
def test_bad_files(path: Path, text: str, error: str) -> None:
    """A file without a key is an error, and so is one that is something else."""
    path.write_text(text)
    assert errors(path) == [error]
