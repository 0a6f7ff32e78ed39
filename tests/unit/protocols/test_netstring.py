from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketmap_memcache.errors import ProtocolError
from socketmap_memcache.protocols.netstring import NetstringError, NetstringReader, encode
from tests.unit.protocols.chunks import chunked


def read(chunks: Iterable[bytes], limit: int = 100) -> tuple[list[bytes], str]:
    """Give the payloads in the chunks, and the text of the error that ended them, if one did."""
    reader = NetstringReader(limit)
    payloads = []
    try:
        for chunk in chunks:
            if (payload := reader.sole(chunk)) is not None:
                payloads.append(payload)
                continue
            reader.feed(chunk)
            while (payload := reader.next_payload()) is not None:
                payloads.append(payload)
    except NetstringError as error:
        return payloads, str(error)
    return payloads, ""


def test_encode() -> None:
    """A netstring is the length in decimal, a colon, the payload as it is, a comma."""
    assert encode(b"") == b"0:,"
    assert encode(b"a,b:\r\n\xff") == b"7:a,b:\r\n\xff,"
    assert encode(b"x" * 12) == b"12:xxxxxxxxxxxx,"


@pytest.mark.parametrize(
    "data, expected",
    [
        pytest.param(b"", [], id="nothing"),
        pytest.param(b"0:,", [b""], id="empty payload"),
        pytest.param(b"3:a:b,", [b"a:b"], id="colon in the payload"),
        pytest.param(b"3:,,,,1:x,", [b",,,", b"x"], id="two"),
        pytest.param(b"3:ab", [], id="not all yet"),
        pytest.param(b"3", [], id="only a digit yet"),
        pytest.param(b"100:" + b"y" * 100 + b",", [b"y" * 100], id="as long as the limit"),
    ],
)
def test_payloads(data: bytes, expected: list[bytes]) -> None:
    """Whole netstrings are given back in order; one that has not come to its end is waited for."""
    assert read([data]) == (expected, "")


@pytest.mark.parametrize(
    "data, reason",
    [
        (b":,", "does not begin with its length"),
        (b"x", "does not begin with its length"),
        (b" 1:a,", "does not begin with its length"),
        (b"+1:a,", "does not begin with its length"),
        (b"-1:a,", "does not begin with its length"),
        (b"1 :a,", "does not begin with its length"),
        (b"1\r\n:a,", "does not begin with its length"),
        (b"1_0:a,", "does not begin with its length"),
        ("\u0661:a,".encode(), "does not begin with its length"),
        (b"01:a,", "leading zero"),
        (b"00:,", "leading zero"),
        (b"00", "leading zero"),
        (b"101:", "netstring of 101 bytes is above the limit of 100"),
        (b"999:", "above the limit"),
        (b"1000:", "more than 3 digits"),
        (b"1000", "more than 3 digits"),
        (b"1" * 10_000, "more than 3 digits"),
        (b"1:ab", "does not end in a comma"),
        (b"1:a;", "does not end in a comma"),
        (b"0:x", "does not end in a comma"),
        (b"GET / HTTP/1.1\r\n", "does not begin with its length"),
    ],
)
def test_malformed(data: bytes, reason: str) -> None:
    """Whatever is not a netstring, or is too long, is refused at the first byte that shows it, with the reason."""
    payloads, error = read([b"2:ok," + data])
    assert payloads == [b"ok"]
    assert reason in error


def test_stays_broken() -> None:
    """After an error nothing is given back any more, whatever comes."""
    reader = NetstringReader(100)
    reader.feed(b"1:ab")
    for _ in range(3):
        with pytest.raises(NetstringError):
            reader.next_payload()
        reader.feed(b"1:a,")


def test_partial() -> None:
    """The reader knows whether bytes are left that have not been given back."""
    reader = NetstringReader(100)
    for data, payload, rest in ((b"", None, False), (b"1:a,2", b"a", True), (b"", None, True), (b":bc,", b"bc", False)):
        reader.feed(data)
        assert reader.next_payload() == payload
        assert reader.partial is rest


@given(st.lists(st.binary(max_size=120), max_size=8), st.data())
def test_any_chunks(payloads: list[bytes], data: st.DataObject) -> None:
    """However the same bytes are cut, the same payloads and the same error come out."""
    stream = b"".join(map(encode, payloads))
    chunks = data.draw(chunked(stream))
    expected, error = read([stream])
    assert read(chunks) == (expected, error)
    assert expected == payloads[: len(expected)]
    assert bool(error) == any(len(payload) > 100 for payload in payloads)


@given(
    st.lists(st.one_of(st.binary(max_size=5), st.sampled_from([b"1:a,", b"0:,", b"3:", b"12", b":", b",", b"0"]))).map(
        b"".join
    ),
    st.data(),
)
def test_garbage(garbage: bytes, data: st.DataObject) -> None:
    """Any bytes give payloads or a NetstringError, nothing else, and however they are cut the same ones.

    Only the error's text may depend on how much of the garbage there was to see.
    """
    assert issubclass(NetstringError, ProtocolError)
    payloads, error = read(data.draw(chunked(garbage)), 12)
    expected, expected_error = read([garbage], 12)
    assert payloads == expected
    assert bool(error) == bool(expected_error)


class CountingReader(NetstringReader):
    """Counts how often a netstring's beginning is looked at."""

    looks = 0

    def _check_length(self, head: bytes) -> None:
        self.looks += 1
        super()._check_length(head)


def test_no_rescans() -> None:
    """A long payload that comes byte by byte is not looked at again before its last byte is there."""
    reader = CountingReader(100_000)
    for byte in encode(b"x" * 100_000):
        assert reader.next_payload() is None
        reader.feed(bytes([byte]))
    assert reader.next_payload() == b"x" * 100_000
    assert reader.looks <= 6 + 2  # once for each byte of the length and the colon, and at the end


def test_memory() -> None:
    """What was given back is not kept: the reader holds no more than the netstring that is not whole yet."""
    reader = NetstringReader(100_000)
    one = encode(b"x" * 1000)
    stream = one * 1000
    for position in range(0, len(stream), 700):
        reader.feed(stream[position : position + 700])
        while reader.next_payload() is not None:
            pass
        assert len(reader._buffer) - reader._start <= len(one)
        assert len(reader._buffer) <= 2 * len(one) + 700
