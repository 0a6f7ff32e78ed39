"""Mail addresses as Postfix takes them apart: quotes, extensions, and lists of addresses.

The *local part* is what is before the last ``@``. In an address as it is written, one with blanks or other special
characters is in quotes; Postfix calls that the external form, and the one without quotes the internal form.
"""

from __future__ import annotations

import re

_DOT_ATOM = re.compile(rb"[^\x00-\x20\"(),:;<>@\[\\\].\x7f]+(?:\.[^\x00-\x20\"(),:;<>@\[\\\].\x7f]+)*")
_QUOTED = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_QUOTING = re.compile(rb'\\(.?)|"', re.DOTALL)
_TO_QUOTE = re.compile(rb'(["\\\r])')
_IN_A_LIST = re.compile(rb'(?:"(?:[^"\\]|\\.)*(?:"|\\?\Z)|[^",])+', re.DOTALL)  # a quote may lack its partner
_PARTS = re.compile(rb'(.*?)(@[^@"]*)?', re.DOTALL)
_IN_ANGLE_BRACKETS = re.compile(rb"[^<]*<([^<>]*)>", re.DOTALL)

# Names that are no user with an extension, whatever the delimiter.
_WHOLE_NAMES = {b"postmaster", b"mailer-daemon", b"double-bounce"}


def quote(local: bytes) -> bytes:
    """Give the external form of a local part: in quotes, if it needs them."""
    if _DOT_ATOM.fullmatch(local):
        return local
    return b'"' + _TO_QUOTE.sub(rb"\\\1", local) + b'"'


def unquote(local: bytes) -> bytes:
    """Give the internal form of a local part, which is in quotes as a whole or not at all."""
    return _QUOTING.sub(rb"\1", local) if _QUOTED.fullmatch(local) else local


def split_extension(local: bytes, delimiters: bytes) -> tuple[bytes, bytes]:
    """Split the internal form of a local part into user and extension.

    :param delimiters: any of these characters begins the extension, but not in place of a user.
    :return: the extension has its delimiter, or is empty. Some names have none: postmaster and the like, and with the
        delimiter ``-`` those of mailing lists' owners (``owner_request_special`` of Postfix, which is on by default).
    """
    name = local.lower()
    if name in _WHOLE_NAMES:
        return local, b""
    if b"-" in delimiters and (name.startswith(b"owner-") or (name.endswith(b"-request") and len(name) > 8)):
        return local, b""
    end = min([place for character in delimiters if (place := local.find(character)) >= 0], default=0)
    return (local[:end], local[end:]) if end else (local, b"")


def add_extension(addresses: bytes, extension: bytes) -> bytes:
    """Add an extension to each address in a list that is separated by commas.

    :param addresses: in external form, with or without domains, also as ``Name <address>``.
    """
    found = (address.strip() for address in _IN_A_LIST.findall(addresses))
    return b", ".join(_with_extension(address, extension) for address in found if address)


def _with_extension(address: bytes, extension: bytes) -> bytes:
    bracketed = _IN_ANGLE_BRACKETS.fullmatch(address)
    parts = _PARTS.fullmatch(bracketed[1] if bracketed else address)
    assert parts is not None  # it matches anything
    return quote(_QUOTING.sub(rb"\1", parts[1]) + extension) + (parts[2] or b"")
