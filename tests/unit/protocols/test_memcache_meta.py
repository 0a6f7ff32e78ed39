from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketmap_memcache.protocols.memcache import MemcacheError, Reply, ReplyReader
from socketmap_memcache.protocols.memcache_meta import meta_delete, meta_get, meta_set, reply_flags
from tests.unit.protocols.chunks import chunked

LINES = [b"HD", b"EN", b"NF", b"EX", b"NS", b"MN", b"ERROR", b"CLIENT_ERROR bad command line format"]
REPLIES = st.sampled_from([Reply(line) for line in LINES]) | st.builds(
    lambda value, flags: Reply(b"VA %d%b" % (len(value), flags), None, value),
    st.binary(max_size=100) | st.sampled_from([b"", b"\r\n", b"\r\nEND\r\n"]),
    st.sampled_from([b"", b" t-1 c1 W", b" kfoo c18446744073709551615 Z X"]),
)


def written(reply: Reply) -> bytes:
    return reply.status + b"\r\n" + (b"" if reply.value is None else reply.value + b"\r\n")


def read(chunks: list[bytes], data_limit: int = 100) -> list[Reply]:
    reader, found = ReplyReader(), []
    for chunk in chunks:
        reader.feed(chunk)
        while (reply := reader.next_meta_reply(200, data_limit)) is not None:
            found.append(reply)
    return found


def test_commands() -> None:
    """Commands are as memcached's documentation has them."""
    assert meta_get(b"k", 3, 60) == b"mg k v k c N3 R60\r\n"
    assert meta_get(b"k", 3, 0) == b"mg k v k c N3\r\n"
    assert meta_set(b"k", b"a\r\nb", 7, 60, b"12") == b"ms k 4 C12 F7 T60\r\na\r\nb\r\n"
    assert meta_delete(b"k", b"12") == b"md k C12\r\n"


def test_negative_flags() -> None:
    """Flags below 0 are the same 32 bits as with ``set``."""
    assert meta_set(b"k", b"", -1, 0, b"1") == b"ms k 0 C1 F4294967295 T0\r\n\r\n"


def test_flags() -> None:
    """Flags are found by their letters."""
    assert reply_flags(b"VA 3 kfoo c12 W") == {b"k": b"foo", b"c": b"12", b"W": b""}
    assert reply_flags(b"VA 3") == {}


@given(st.lists(REPLIES, max_size=8), st.data())
def test_replies(replies: list[Reply], data: st.DataObject) -> None:
    """Any replies are read in any chunks."""
    assert read(data.draw(chunked(b"".join(map(written, replies))))) == replies


@given(st.data())
def test_too_long(data: st.DataObject) -> None:
    """A value above the limit is dropped, and the next reply found."""
    stream = b"VA 101 c1\r\n" + b"x" * 101 + b"\r\nHD\r\n"
    assert read(data.draw(chunked(stream))) == [Reply(b"VA 101 c1", None, None, 101), Reply(b"HD")]


@pytest.mark.parametrize(
    "reply", [b"VA \r\n", b"VA x c1\r\n", b"VA 99999999999\r\n", b"VA 1 c1\r\nxyz\r\n", b"x" * 300]
)
def test_garbage(reply: bytes) -> None:
    """What is no reply is an error."""
    with pytest.raises(MemcacheError):
        read([reply])


@given(st.binary(max_size=60))
def test_any_bytes(stream: bytes) -> None:
    """Any bytes are replies, the beginning of one, or an error."""
    with suppress(MemcacheError):
        read([b"VA ", stream])
