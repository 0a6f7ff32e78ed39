"""Values with a signature, as they are kept in memcached.

A signed value is ``sig1:KEYID:MAC:EXPIRY:VALUE``: the format's name, the id of the signing key, the MAC in base64, the
UNIX time when the value is over in ten digits (0: never), and the value as it is. All but the value has a fixed length.

The MAC is HMAC-SHA256 (RFC 2104) over the format's name, the table's name with its length (four bytes) before it, the
key with its length (two bytes) before it, and ``:EXPIRY:VALUE``: no two different entries give the same bytes to sign.
It is cut to 144 bits: RFC 2104 allows as few as half of the hash's 256, and 18 bytes are just 24 letters in base64.
"""

from __future__ import annotations

import math
from binascii import b2a_base64
from collections.abc import Callable, Sequence
from hashlib import sha256
from hmac import compare_digest
from typing import Any

from socketmap_memcache.memcache.memory import MONTH
from socketmap_memcache.memcache.signing_keys import SigningKey

#: The inner and the outer hash of an HMAC that has read its key and what always comes first.
_Mac = tuple[Any, Any]

_BLOCK_SIZE = 64
_INNER = bytes(byte ^ 0x36 for byte in range(256))
_OUTER = bytes(byte ^ 0x5C for byte in range(256))

_FORMAT = b"sig1:"
_MAC_SIZE = 18

_MAC = len(_FORMAT) + 9  # where the MAC begins,
_SIGNED = _MAC + _MAC_SIZE * 4 // 3  # what is signed of the value, from the colon before the expiry,
_VALUE = _SIGNED + 12  # and the value itself

#: Bytes by which a signed value is longer than the value.
HEADER_SIZE = _VALUE

_NEVER = 0
_LONG_AGO = 1
_LAST = 9_999_999_999

#: Signed values that are known to be good, at most, and bytes of each. One that comes again as it was needs no second
#: look at its MAC, which takes most of the time.
_KNOWN, _KNOWN_SIZE = 10_000, 1000

#: Seconds by which a value may be over without a word: memcached counts whole seconds, and may serve it a bit longer.
_TOLERANCE = 5


class BadSignatureError(Exception):
    """What was in the cache was not put there, for this key and for now, by anybody who has one of the keys.

    :ivar suspicious: false if it was, and its time is only just over: that happens without anybody's fault.
    """

    def __init__(self, text: str, suspicious: bool = True) -> None:
        super().__init__(text)
        self.suspicious = suspicious


class Signature:
    """Signs and verifies the values of one table."""

    def __init__(self, keys: Sequence[SigningKey], table: bytes, clock: Callable[[], float]) -> None:
        """:param keys: the first one signs, all verify; not empty.

        :param table: its name; only tables of the same name verify what others have signed.
        :param clock: gives UNIX time.
        """
        context = _FORMAT + len(table).to_bytes(4, "big") + table
        self._macs = {_FORMAT + key.id + b":": _hmac(key.secret, context) for key in keys}
        self._prefix, self._mac = next(iter(self._macs.items()))
        self._clock = clock
        self._known: dict[bytes, bytes] = {}  # by key, with its signature

    def sign(self, key: bytes, value: bytes, ttl: int) -> bytes:
        """Give what to store for a key.

        :param ttl: as memcached takes it, see :meth:`ICache.set`.
        """
        signed = b":%010d:%b" % (self._expiry(ttl), value)
        return self._prefix + _text(self._mac, key, signed) + signed

    def verify(self, key: bytes, stored: bytes) -> bytes:
        """Give the value that was signed.

        :raises BadSignatureError: what was stored is not signed, or for something else, or its time is over.
        """
        if self._known.get(key) != stored:
            self._verify_mac(key, stored)
        expiry = int(stored[_SIGNED + 1 : _VALUE - 1])
        if expiry != _NEVER and expiry <= (now := self._clock()):
            over = now - expiry
            raise BadSignatureError(f"has been over for {over:.0f} s (are the hosts' clocks right?)", over > _TOLERANCE)
        return stored[_VALUE:]

    def _verify_mac(self, key: bytes, stored: bytes) -> None:
        mac = self._macs.get(stored[:_MAC])
        if mac is None:
            foreign = stored.startswith(_FORMAT)
            raise BadSignatureError("is signed with an unknown key" if foreign else "has no signature")
        if not compare_digest(_text(mac, key, stored[_SIGNED:]), stored[_MAC:_SIGNED]):
            raise BadSignatureError("has a wrong signature (it was forged or damaged, or is another key's or table's)")
        if len(stored) <= _KNOWN_SIZE:
            if len(self._known) >= _KNOWN:
                self._known.clear()
            self._known[key] = stored

    def _expiry(self, ttl: int) -> int:
        if ttl == 0:
            return _NEVER
        end = ttl if ttl < 0 or ttl > MONTH else math.ceil(self._clock() + ttl)
        return min(max(end, _LONG_AGO), _LAST)


def _hmac(secret: bytes, context: bytes) -> _Mac:
    """Begin an HMAC-SHA256 (RFC 2104). Copies of the two hashes take two thirds of what hmac.new(...).copy() takes."""
    key = (secret if len(secret) <= _BLOCK_SIZE else sha256(secret).digest()).ljust(_BLOCK_SIZE, b"\0")
    return sha256(key.translate(_INNER) + context), sha256(key.translate(_OUTER))


def _text(mac: _Mac, key: bytes, signed: bytes) -> bytes:
    inner, outer = mac
    inner = inner.copy()
    inner.update(len(key).to_bytes(2, "big") + key + signed)
    outer = outer.copy()
    outer.update(inner.digest())
    return b2a_base64(outer.digest()[:_MAC_SIZE], newline=False)
