"""The keys that sign what is kept in memcached, out of a file that only administrators can read."""

from __future__ import annotations

import hmac
import os
import re
import stat

import attrs

from socketmap_memcache.errors import ConfigurationError, Problem
from socketmap_memcache.regular_file import open_regular

#: Bytes of a key, at least: as many as nobody guesses (RFC 2104 asks for no fewer than the MAC has).
SHORTEST = 16

_LARGEST_FILE = 64 * 1024
_HEX = re.compile(r"(?:[0-9a-fA-F]{2})+")


@attrs.frozen
class SigningKey:
    """A key.

    :ivar id: eight hexadecimal digits, made from the key, that say in each signed value which key to verify it with.
    :ivar secret: the key itself; it is in no ``repr``.
    """

    id: bytes
    secret: bytes = attrs.field(repr=False)

    @classmethod
    def of(cls, secret: bytes) -> SigningKey:
        """Give the key that these bytes are."""
        return cls(hmac.digest(secret, b"socketmap-memcache signing key", "sha256")[:4].hex().encode(), secret)


def read_signing_keys(path: str) -> list[SigningKey]:
    """Read a file that has a key in hexadecimal digits on each line, and maybe comments and empty lines.

    :return: the keys; the first is to sign, all are to verify.
    :raises ConfigurationError: the file cannot be read, or by everybody; a line is no key; there is none. Only a
        problem with a line has that for its place. No text has anything of a key in it.
    """
    try:
        with open_regular(path) as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise ConfigurationError([Problem(f"{path}: cannot be read: {error.strerror}")]) from None
    if mode & stat.S_IRWXO:
        open_to_all = f"{path}: every user may use these signing keys; run: chmod o= {path}"
        raise ConfigurationError([Problem(open_to_all)])
    if len(text) > _LARGEST_FILE:
        raise ConfigurationError([Problem(f"{path}: too large for a file of signing keys")])
    return _parse(text.decode("latin-1"), path)


def _parse(text: str, path: str) -> list[SigningKey]:
    keys: dict[bytes, SigningKey] = {}
    problems: list[Problem] = []
    for number, line in enumerate(text.splitlines(), 1):
        digits = line.partition("#")[0].strip()
        if not digits:
            continue
        if _HEX.fullmatch(digits) is None:
            problems.append(Problem("not a key: write what `openssl rand -hex 32` prints", path, number))
            continue
        key = SigningKey.of(bytes.fromhex(digits))
        if len(key.secret) < SHORTEST:
            short = f"a key of {len(key.secret)} bytes; at least {SHORTEST} are needed (run: openssl rand -hex 32)"
            problems.append(Problem(short, path, number))
        elif key.id in keys:
            problems.append(Problem("this key is there twice", path, number))
        keys[key.id] = key
    if not keys and not problems:
        problems.append(Problem(f"{path}: there is no key in this file: add what `openssl rand -hex 32` prints"))
    if problems:
        raise ConfigurationError(problems)
    return list(keys.values())
