"""How a client and a memcached are to be sure of each other: certificates, and a username with its password."""

from __future__ import annotations

import os
import re
import stat

import attrs

from socketmap_memcache.regular_file import open_regular

_USERNAME = re.compile(rb"[^\x00-\x20\x7f:]{1,128}")
_PASSWORD = re.compile(rb"[^\x00-\x20\x7f:]{1,256}")


@attrs.frozen
class Security:
    """The contents of the files that the parameters name, so that a file that has changed makes a value that differs.

    All but the names is kept out of ``repr``.

    :ivar ca: certificates, in PEM, of those who may vouch for a server; empty for the system's.
    :ivar certificate: the client's own, in PEM, with those between it and its CA; empty for none.
    :ivar key: the private key that belongs to it, in PEM.
    :ivar server_name: the name or address that has to be in the server's certificate; empty for the server's host.
    :ivar username: for memcached's own authentication (``memcached -Y``); empty for none.
    """

    ca: bytes = attrs.field(default=b"", repr=False)
    certificate: bytes = attrs.field(default=b"", repr=False)
    key: bytes = attrs.field(default=b"", repr=False)
    server_name: str = ""
    username: bytes = b""
    password: bytes = attrs.field(default=b"", repr=False)

    def without_tls(self) -> Security:
        """Give what counts for a server that is not spoken to in TLS."""
        return Security(username=self.username, password=self.password)


#: Neither certificates of one's own nor a login.
PLAIN = Security()


def read_pem(path: str) -> bytes:
    """Read a file of certificates or a key.

    :raises ValueError: it cannot be read, and why.
    """
    try:
        with open_regular(path) as file:
            return file.read()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None


def read_key(path: str) -> bytes:
    """Read a private key, as :func:`read_pem` does.

    :raises ValueError: also where every user can read or write it.
    """
    try:
        with open_regular(path) as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            key = file.read()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    if mode & stat.S_IRWXO:
        raise ValueError(f"{path}: every user may read or write this key (mode {mode:04o}): chmod o= {path}")
    return key


def read_secret(path: str) -> bytes:
    """Read the first line of a file that nobody but its owner may read.

    :raises ValueError: it cannot be read, or others can read it.
    """
    try:
        with open_regular(path) as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            secret = file.readline(1024).rstrip(b"\r\n")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ValueError(f"{path}: others than its owner may read or write it (mode {mode:04o}): chmod 600 {path}")
    return secret


def read_password(path: str) -> bytes:
    """Read a password of memcached's, as :func:`read_secret` does.

    :raises ValueError: also where the line cannot be one.
    """
    password = read_secret(path)
    if not _PASSWORD.fullmatch(password):
        raise ValueError(f"{path}: the first line is no password: 1 to 256 bytes without blanks and colons are needed")
    return password


def check_username(username: bytes) -> None:
    """See whether memcached could know a user of this name.

    :raises ValueError: its file has ``user:password`` lines, and a login has a blank between the two.
    """
    if not _USERNAME.fullmatch(username):
        raise ValueError(
            f"username {username.decode(errors='replace')!r}: blanks, colons and control characters are not possible"
        )
