from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketmap_memcache.protocols import redis
from socketmap_memcache.protocols.redis import (
    UNFINISHED,
    ErrorReply,
    RedisProtocolError,
    Reply,
    ReplyReader,
    Status,
    TooLong,
    Unfinished,
    command,
    glob_escape,
)
from tests.unit.protocols.chunks import chunked

VALUE_LIMIT = 20


def read(chunks: Iterable[bytes]) -> tuple[list[Reply], str, bool]:
    """Give the replies in the chunks, the text of the error that ended them if one did, and whether nothing is left."""
    reader = ReplyReader(VALUE_LIMIT)
    replies: list[Reply] = []
    try:
        for chunk in chunks:
            reader.feed(chunk)
            while not isinstance(reply := reader.next_reply(), Unfinished):
                replies.append(reply)
    except RedisProtocolError as error:
        return replies, str(error), False
    return replies, "", reader.idle


def encode(reply: Reply) -> bytes:
    """Write a reply as a server does."""
    if reply is None:
        return b"$-1\r\n"
    if isinstance(reply, TooLong):
        return b"$%d\r\n%b\r\n" % (reply.size, b"\n" * reply.size)
    if isinstance(reply, ErrorReply):
        return b"-%b\r\n" % reply.text
    if isinstance(reply, int):
        return b":%d\r\n" % reply
    if isinstance(reply, list):
        return b"*%d\r\n%b" % (len(reply), b"".join(map(encode, reply)))
    if isinstance(reply, Status):
        return b"+%b\r\n" % reply
    return b"$%d\r\n%b\r\n" % (len(reply), reply)


words = st.from_regex(rb"[A-Za-z ]{0,20}", fullmatch=True)
items = (
    st.binary(max_size=VALUE_LIMIT)
    | words.map(Status)
    | words.map(ErrorReply)
    | st.integers(-(2**63), 2**63)
    | st.none()
    | st.integers(VALUE_LIMIT + 1, 50).map(TooLong)
)
replies = st.recursive(items, lambda inner: st.lists(inner, max_size=4), max_leaves=8)


def depth(reply: Reply) -> int:
    return 1 + max(map(depth, reply), default=0) if isinstance(reply, list) else 0


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[Reply], list[bytes]]:
    """Make replies, and their bytes in chunks."""
    made: list[Reply] = draw(st.lists(replies.filter(lambda reply: depth(reply) <= 4), max_size=5))
    return made, draw(chunked(b"".join(map(encode, made))))


@given(streams())
def test_any_chunks(stream: tuple[list[Reply], list[bytes]]) -> None:
    """Replies are the same however their bytes are cut."""
    expected, chunks = stream
    got, error, idle = read(chunks)
    assert got == expected
    assert list(map(type, got)) == list(map(type, expected))
    assert (error, idle) == ("", True)


@given(st.data())
def test_garbage(data: st.DataObject) -> None:
    """Garbage gives the same replies and the same error, if any, however it is cut; and nothing but that error."""
    grammar = st.sampled_from([b"$", b"*", b":", b"+", b"-", b"\r\n", b"\n", b"1", b"0", b"2\r\n", b"-1", b"x", b"99"])
    stream = data.draw(st.lists(grammar | st.binary(max_size=3)).map(b"".join))
    assert read(data.draw(chunked(stream))) == read([stream] if stream else [])


@pytest.mark.parametrize(
    "stream",
    [
        b"\n",
        b"\r\n",
        b"OK\r\n",
        b"+OK\n",
        b":\r\n",
        b": 1\r\n",
        b":1_0\r\n",
        b"$-2\r\n",
        b"$1\r\nab\r\n",
        b"$1\r\na\r\r",
        b"*-2\r\n",
        b"*1\r\n" * 5,
        b"*100001\r\n",
        b"*2\r\n*99999\r\n",
        b"+" + b"x" * 5000,
        b"+" + b"x" * 4096 + b"\r\n",
        b"HTTP/1.1 400 Bad Request\r\n",
    ],
)
def test_no_reply(stream: bytes) -> None:
    """What is no reply, or above a limit, is an error."""
    assert read([stream])[1]


def test_unfinished() -> None:
    """Of what is not complete nothing is given, and the reader is not idle."""
    for stream in (b"$", b"$3\r\nab", b"$3\r\nabc", b"$3\r\nabc\r", b"*1\r\n", b"*2\r\n:1\r\n", b"$30\r\nab", b"+OK"):
        assert read([stream]) == ([], "", False), stream
    assert ReplyReader(1).next_reply() is UNFINISHED


def test_arrays() -> None:
    """Arrays may be empty, missing, and within others."""
    stream = b"*0\r\n*-1\r\n*3\r\n*0\r\n$-1\r\n*2\r\n:1\r\n-ERR x\r\n"
    expected: list[Reply] = [[], None, [[], None, [1, ErrorReply(b"ERR x")]]]
    assert read([stream]) == (expected, "", True)


def test_too_long() -> None:
    """A value above the limit is passed over, also within an array, and what follows it is not lost."""
    stream = b"*2\r\n$21\r\n" + b"$" * 21 + b"\r\n$1\r\na\r\n:7\r\n"
    for chunks in ([stream], [stream[:15], stream[15:]], [stream[:9], stream[9:]]):
        assert read(chunks) == ([[TooLong(21), b"a"], 7], "", True)


def test_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """The values of an array have a limit together; it begins anew with each reply."""
    monkeypatch.setattr(redis, "REPLY_LIMIT", 4)
    stream = b"*2\r\n$2\r\nab\r\n$2\r\ncd\r\n"
    assert read([stream * 2]) == ([[b"ab", b"cd"]] * 2, "", True)
    assert read([b"*3\r\n$2\r\nab\r\n*1\r\n$2\r\ncd\r\n$1\r\n"])[1] == ""
    assert "values of more than 4 bytes" in read([b"*3\r\n$2\r\nab\r\n*1\r\n$2\r\ncd\r\n$1\r\ne\r\n"])[1]


def test_error_reply() -> None:
    """An error has its code and can be shown."""
    assert ErrorReply(b"WRONGTYPE Op\xff").code == b"WRONGTYPE"
    assert str(ErrorReply(b"WRONGTYPE Op\xff")) == "WRONGTYPE Op\\xff"
    assert str(ErrorReply("ERR \x1b[2K\u202e".encode())) == "ERR ?[2K?"


def test_command() -> None:
    """Words may be empty and have any bytes."""
    assert command(b"SET", b"a b\r\n", b"") == b"*3\r\n$3\r\nSET\r\n$5\r\na b\r\n\r\n$0\r\n\r\n"


def test_glob_escape() -> None:
    """What has a meaning in a pattern loses it."""
    assert glob_escape(b"a*b?[c]\\^-:") == b"a\\*b\\?\\[c\\]\\\\^-:"
