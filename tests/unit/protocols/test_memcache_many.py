from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from socketmap_memcache.protocols import memcache
from socketmap_memcache.protocols.memcache import MemcacheError, Reply, ReplyReader
from tests.unit.protocols.chunks import chunked

keys = st.from_regex(rb"[!-~]{1,20}", fullmatch=True)
values = st.binary(max_size=150) | st.sampled_from([b"\r", b"\r\nEND\r\n", b"\r\nVALUE k 0 1\r\nx\r\nEND\r\n"])


def reply_to(found: dict[bytes, bytes], last: bytes = b"END\r\n") -> bytes:
    return b"".join(b"VALUE %b 7 %d\r\n%b\r\n" % (key, len(data), data) for key, data in found.items()) + last


def read(chunks: list[bytes], line_limit: int = 300, data_limit: int = 100) -> tuple[dict[bytes, bytes | None], object]:
    """Give the values and the last line."""
    reader = ReplyReader()
    taken: dict[bytes, bytes | None] = {}
    reply = None
    for chunk in chunks:
        reader.feed(chunk)
        if reply is None:
            reply = reader.next_values(taken, line_limit, data_limit)
    assert reply is None or reader.idle
    return taken, reply


def test_command() -> None:
    """One get asks for several keys."""
    assert memcache.get_many([b"a", b"b"]) == b"get a b\r\n"


@given(st.dictionaries(keys, values, max_size=6), st.integers(1, 40), st.sampled_from([300, 60]))
@example({b"a": b"x" * 101, b"b": b"y"}, 1, 300)
@example({b"a": b"1\r2", b"b": b"y"}, 40, 300)
def test_values(found: dict[bytes, bytes], size: int, line_limit: int) -> None:
    """All values come out, whatever is in them and however they come in; one above the limit is known to exist."""
    expected = {key: data if len(data) <= 100 else None for key, data in found.items()}
    stream = reply_to(found)
    for chunks in ([stream], [stream[begin : begin + size] for begin in range(0, len(stream), size)]):
        assert read(chunks, line_limit) == (expected, Reply(b"END"))


@given(st.data())
def test_replies_in_a_row(data: st.DataObject) -> None:
    """The reply to one get ends at its END; the next one's values are the next one's."""
    first, second = data.draw(st.dictionaries(keys, values)), data.draw(st.dictionaries(keys, values))
    reader = ReplyReader()
    taken: list[dict[bytes, bytes | None]] = [{}]
    for chunk in data.draw(chunked(reply_to(first) + reply_to(second))):
        reader.feed(chunk)
        while len(taken) < 3 and reader.next_values(taken[-1], 300, 1000):
            taken.append({})
    assert taken == [first, second, {}]


def test_error() -> None:
    """A server's refusal is the last line, after no values."""
    assert read([b"SERVER_ERROR busy\r\n"]) == ({}, Reply(b"SERVER_ERROR busy"))


@pytest.mark.parametrize(
    "stream",
    [
        b"VALUE k 0 1\r\nxy\r\nEND\r\n",
        b"VALUE k 0 x\r\n",
        b"VALUE k\r\n",
        b"x" * 301,
        b"VALUE " + b"k" * 300 + b" 0 1\r\n",
    ],
)
def test_malformed(stream: bytes) -> None:
    """What is no reply is told from one."""
    with pytest.raises(MemcacheError):
        read([stream])
