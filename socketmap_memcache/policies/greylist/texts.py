"""The text of a deferral and the header of a delayed message, with postgrey's expansions.

Each ``%`` item is replaced once, where it comes first; what is no item stays as it is.
"""

from __future__ import annotations

import re
import time
from functools import lru_cache

from socketmap_memcache import __version__
from socketmap_memcache.policies.greylist.key import ATTRIBUTE_LIMIT
from socketmap_memcache.policies.greylist.settings import Settings
from socketmap_memcache.policies.interface import DUNNO, Request

_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
_VERSION = __version__.encode()

# Domains of recipients for which the text is remembered.
_DOMAINS = 1000


def greylist_reply(settings: Settings, request: Request, missing: int) -> bytes:
    """Give the action that defers a mail."""
    domain, missing = _expanded(settings, request[b"recipient"], missing)
    return _reply(settings.action, settings.text, domain, missing, b"etrn_domain" in request)


def header_reply(settings: Settings, delayed: int, now: int) -> bytes:
    """Give the action that adds the header to a message, or none if there is no header.

    In training mode there is none: nothing was delayed.
    """
    if settings.training_mode:
        return DUNNO
    header = header_text(settings, delayed, now)
    return b"PREPEND " + header if header else DUNNO


def greylist_text(settings: Settings, recipient: bytes, missing: int, enhanced: bool) -> bytes:
    """Give the text of a deferral.

    :param recipient: any bytes; its domain is ``%r``. What no reply may contain is replaced by ``?``.
    :param missing: the seconds to wait yet, ``%s``.
    :param enhanced: whether Postfix sent ``etrn_domain``, as it does from 2.3 on: then it understands a status code
        before the text. 4.2.0 is taken because Exchange once did not retry after Postfix's own 4.7.1.
    """
    return _expand(settings.text, *_expanded(settings, recipient, missing), enhanced)


def _expanded(settings: Settings, recipient: bytes, missing: int) -> tuple[bytes, int]:
    """Give what is to be expanded, the domain and the seconds, which are 0 where the text has none."""
    return recipient[:ATTRIBUTE_LIMIT].rpartition(b"@")[2], missing if b"%s" in settings.text else 0


@lru_cache(_DOMAINS)
def _reply(action: bytes, text: bytes, domain: bytes, missing: int, enhanced: bool) -> bytes:
    return (b"%b %b" % (action, _expand(text, domain, missing, enhanced))).rstrip()


def _expand(text: bytes, domain: bytes, missing: int, enhanced: bool) -> bytes:
    if enhanced and not text[:1].isdigit():
        text = b"4.2.0 " + text
    return text.replace(b"%s", b"%d" % missing, 1).replace(b"%r", _printable(domain), 1)


def header_text(settings: Settings, delayed: int, now: int) -> bytes:
    """Give the header of a message that was delayed; empty where none is wanted.

    :param delayed: seconds since it was first seen, ``%t``.
    :param now: seconds since the epoch; the local time is ``%d``.
    """
    header = settings.header.replace(b"%t", b"%d" % delayed, 1).replace(b"%v", _VERSION, 1)
    if b"%d" in header:
        date = time.strftime("%a, %d %b %Y %H:%M:%S %Z", time.localtime(now))
        header = header.replace(b"%d", date.encode(), 1)
    return header.replace(b"%h", settings.hostname, 1)


def _printable(text: bytes) -> bytes:
    if not text.isascii():
        text = text.decode(errors="replace").replace("\ufffd", "?").encode()
    return _CONTROL.sub(b"?", text)
