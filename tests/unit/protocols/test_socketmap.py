from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketmap_memcache.errors import ProtocolError
from socketmap_memcache.protocols import socketmap
from socketmap_memcache.protocols.netstring import NetstringReader
from socketmap_memcache.protocols.socketmap import REPLY_LIMIT, SocketmapError, parse_request


def payload(reply: bytes) -> bytes:
    """Give the payload of a reply that is one whole netstring."""
    reader = NetstringReader(REPLY_LIMIT)
    reader.feed(reply)
    result = reader.next_payload()
    assert result is not None
    assert not reader.partial
    return result


@pytest.mark.parametrize(
    "request_, expected",
    [
        (b"aliases alice@example.com", (b"aliases", b"alice@example.com")),
        (b"m ", (b"m", b"")),
        (b"m  key", (b"m", b" key")),
        (b"m a b  c", (b"m", b"a b  c")),
        (b"m \xff\x00\r\n", (b"m", b"\xff\x00\r\n")),
        (b"\xff k", (b"\xff", b"k")),
    ],
)
def test_parse_request(request_: bytes, expected: tuple[bytes, bytes]) -> None:
    """The first blank ends the map name; all that follows, if anything, is the key."""
    assert parse_request(request_) == expected


@pytest.mark.parametrize(
    "request_, reason",
    [
        (b"", "no blank"),
        (b"map", "no blank"),
        (b"map\tkey", "no blank"),
        (b" key", "no map name"),
        (b" ", "no map name"),
    ],
)
def test_bad_request(request_: bytes, reason: str) -> None:
    """A request without a blank or without a map name is refused, with the reason."""
    with pytest.raises(SocketmapError, match=reason):
        parse_request(request_)


@given(st.binary())
def test_any_request(request_: bytes) -> None:
    """Any payload gives a map name and a key, or a SocketmapError."""
    assert issubclass(SocketmapError, ProtocolError)
    try:
        name, key = parse_request(request_)
    except SocketmapError:
        assert b" " not in request_ or request_.startswith(b" ")
    else:
        assert name + b" " + key == request_


def test_notfound() -> None:
    """The answer for a missing key has a blank after its word, as Sendmail's map servers write it."""
    assert socketmap.NOTFOUND == b"9:NOTFOUND ,"


@given(st.binary(max_size=300))
def test_found(value: bytes) -> None:
    """A value is sent as it is, after the word OK and one blank."""
    assert payload(socketmap.found(value)) == b"OK " + value


def test_longest_value() -> None:
    """The longest reply that Postfix reads is sent; a value that would make a longer one is a permanent error."""
    longest = b"x" * (REPLY_LIMIT - 3)
    assert payload(socketmap.found(longest)) == b"OK " + longest
    assert payload(socketmap.found(longest + b"x")) == (
        b"PERM value of 99998 bytes is above the socketmap reply limit of 99997"
    )


def test_errors() -> None:
    """Each kind of failure has its word, and a reason."""
    assert payload(socketmap.temporary_error("why")) == b"TEMP why"
    assert payload(socketmap.timeout_error("why")) == b"TIMEOUT why"
    assert payload(socketmap.permanent_error("why")) == b"PERM why"


@given(st.text(st.characters()))
def test_any_reason(reason: str) -> None:
    """A reason of any text, surrogates included, becomes at most 200 bytes of printable ASCII."""
    sent = payload(socketmap.temporary_error(reason)).removeprefix(b"TEMP ")
    assert len(sent) <= 200
    assert all(0x20 <= byte < 0x7F for byte in sent)
