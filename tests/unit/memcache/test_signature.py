from __future__ import annotations

import hmac
from base64 import b64encode
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from socketmap_memcache.memcache import signature as module
from socketmap_memcache.memcache.memory import MONTH
from socketmap_memcache.memcache.signature import HEADER_SIZE, BadSignatureError, Signature
from socketmap_memcache.memcache.signing_keys import SigningKey

NOW = 1_790_000_000.5
KEY = SigningKey.of(b"k" * 32)
OLD_KEY = SigningKey.of(b"o" * 32)

KEYS = st.binary(min_size=1, max_size=40)


def signature(*keys: SigningKey, table: bytes = b"t", now: float = NOW) -> Signature:
    clock = Clock()
    clock.advance(now)
    return Signature(keys or (KEY,), table, clock.seconds)


def reason(stored: bytes, *keys: SigningKey, key: bytes = b"k", table: bytes = b"t", now: float = NOW) -> str:
    with pytest.raises(BadSignatureError) as caught:
        signature(*keys, table=table, now=now).verify(key, stored)
    return str(caught.value)


WRONG = "has a wrong signature (it was forged or damaged, or is another key's or table's)"


@pytest.mark.parametrize("secret", [b"s" * 16, b"s" * 64, b"long" * 50])
def test_format(secret: bytes) -> None:
    """A signed value is text, with an HMAC-SHA256 of the table, the key, the expiry and the value."""
    key = SigningKey.of(secret)
    expected = hmac.digest(secret, b"sig1:" + b"\0\0\0\5table" + b"\0\3key" + b":1790000061:value", "sha256")[:18]
    stored = signature(key, table=b"table").sign(b"key", b"value", 60)
    assert stored == b"sig1:" + key.id + b":" + b64encode(expected) + b":1790000061:value"
    assert len(stored) == HEADER_SIZE + len(b"value")


@given(key=KEYS, value=st.binary(max_size=200), ttl=st.integers(0, MONTH), table=KEYS)
def test_accepted(key: bytes, value: bytes, ttl: int, table: bytes) -> None:
    """What was signed is given back, byte by byte, by everybody who has the key."""
    stored = signature(table=table).sign(key, value, ttl)
    assert signature(OLD_KEY, KEY, table=table).verify(key, stored) == value


@given(data=st.data(), value=st.binary(max_size=50))
def test_one_byte(data: st.DataObject, value: bytes) -> None:
    """A change of any byte is found."""
    stored = signature().sign(b"k", value, 60)
    place = data.draw(st.integers(0, len(stored) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda byte: byte != stored[place]))
    assert reason(stored[:place] + bytes([byte]) + stored[place + 1 :])


def test_length() -> None:
    """A value of which some is missing, or that has been added to, is not accepted."""
    stored = signature().sign(b"k", b"value", 60)
    for size in range(len(stored)):
        assert reason(stored[:size])
    assert reason(stored + b"x") == WRONG


@given(stored=st.binary(max_size=100))
def test_garbage(stored: bytes) -> None:
    """Whatever else is in the cache is refused, and nothing but refused."""
    for text in (stored, b"sig1:" + KEY.id + b":" + stored):
        assert reason(text)


@given(first=st.tuples(KEYS, KEYS), second=st.tuples(KEYS, KEYS))
def test_moved(first: tuple[bytes, bytes], second: tuple[bytes, bytes]) -> None:
    """A value is good for its table and its key only, however these are divided."""
    (table, key), (other_table, other_key) = first, second
    stored = signature(table=table).sign(key, b"v", 0)
    if first != second:
        assert reason(stored, key=other_key, table=other_table) == WRONG
    assert reason(stored, key=key + b"1", table=table) == WRONG
    assert reason(stored, key=key, table=table + b"1") == WRONG


def test_moved_part() -> None:
    """What is a key's end cannot become a value's beginning."""
    stored = signature().sign(b"k:0000000000:x", b"v", 0)
    assert reason(stored[:38] + b":0000000000:x" + stored[38:]) == WRONG


def test_others() -> None:
    """What has no signature, or that of an unknown key, is told apart from what is forged."""
    stored = signature().sign(b"k", b"v", 0)
    assert reason(b"value") == "has no signature"
    assert reason(stored, OLD_KEY) == "is signed with an unknown key"
    assert reason(stored[:20] + b"x" + stored[21:]) == WRONG
    # The name of the key does not make it the key.
    assert reason(stored.replace(KEY.id, OLD_KEY.id), OLD_KEY) == WRONG


def test_rotation() -> None:
    """The first key signs; all verify."""
    old = signature(OLD_KEY).sign(b"k", b"v", 0)
    both = signature(KEY, OLD_KEY)
    assert both.verify(b"k", old) == b"v"
    assert both.sign(b"k", b"v", 0) == signature(KEY).sign(b"k", b"v", 0)


@pytest.mark.parametrize(
    "ttl,last",
    [
        (60, NOW + 60),
        (MONTH, NOW + MONTH),
        (MONTH + 1, 0),  # a UNIX time, long ago
        (1_790_000_100, 1_790_000_099),
        (-1, 0),
    ],
)
def test_expiry(ttl: int, last: float) -> None:
    """A value is good until its time is over, however memcached writes that time."""
    stored = signature().sign(b"k", b"v", ttl)
    if last:
        assert signature(now=last).verify(b"k", stored) == b"v"
    for later in (1 if last else NOW, MONTH + 1):
        assert reason(stored, now=last + later).startswith("has been over for ")


def test_for_ever() -> None:
    """A value without a ttl is never over."""
    stored = signature().sign(b"k", b"v", 0)
    assert signature(now=1e11).verify(b"k", stored) == b"v"


@pytest.mark.parametrize("over,suspicious", [(0.5, False), (5, False), (7, True), (9000, True)])
def test_suspicious(over: float, suspicious: bool) -> None:
    """That memcached serves a value a few seconds longer than its ttl is nobody's fault."""
    stored = signature(now=1_790_000_000).sign(b"k", b"v", 10)
    with pytest.raises(BadSignatureError) as caught:
        signature(now=1_790_000_010 + over).verify(b"k", stored)
    assert caught.value.suspicious is suspicious


def test_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that comes again as it was is known to be good, until its time is over; any other is looked at."""
    clock = Clock()
    clock.advance(NOW)
    ours = Signature([KEY], b"t", clock.seconds)
    stored, other = ours.sign(b"k", b"value", 60), ours.sign(b"k", b"other", 60)
    assert ours.verify(b"k", stored) == b"value"
    monkeypatch.setattr(module, "_text", Mock(side_effect=ZeroDivisionError))
    assert ours.verify(b"k", stored) == b"value"
    for each in (other, stored[:-1], stored + b"x"):
        with pytest.raises(ZeroDivisionError):
            ours.verify(b"k", each)
    with pytest.raises(ZeroDivisionError):
        ours.verify(b"another", stored)
    clock.advance(61)
    with pytest.raises(BadSignatureError, match="has been over"):
        ours.verify(b"k", stored)


def test_known_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many values are known, and no large ones."""
    monkeypatch.setattr(module, "_KNOWN", 3)
    ours = signature()
    for number in range(5):
        key = b"%d" % number
        assert ours.verify(key, ours.sign(key, b"v", 60)) == b"v"
        assert len(ours._known) <= 3
    large = b"v" * 1000
    assert ours.verify(b"large", ours.sign(b"large", large, 60)) == large
    assert b"large" not in ours._known
