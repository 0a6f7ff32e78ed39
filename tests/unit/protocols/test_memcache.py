from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from socketmap_memcache.errors import ProtocolError
from socketmap_memcache.protocols import memcache
from socketmap_memcache.protocols.memcache import KEY_LIMIT, MemcacheError, Reply, ReplyReader
from tests.unit.protocols.chunks import chunked


def next_reply(reader: ReplyReader, line_limit: int, data_limit: int) -> Reply | None:
    """Give the next reply, as somebody reads it who asked for the key k."""
    value = reader.next_hit(b"k", line_limit, data_limit)
    if value is None and reader.next_is(b"END\r\n", line_limit):
        return Reply(b"END")
    return reader.next_reply(line_limit, data_limit) if value is None else Reply(b"END", b"k", value)


def read(chunks: Iterable[bytes], line_limit: int = 64, data_limit: int = 100) -> tuple[list[Reply], str, Reply | None]:
    """Give the replies in the chunks, the text of the error that ended them, if one did, and what is unfinished."""
    reader = ReplyReader()
    replies = []
    try:
        for chunk in chunks:
            reader.feed(chunk)
            while (reply := next_reply(reader, line_limit, data_limit)) is not None:
                replies.append(reply)
    except MemcacheError as error:
        return replies, str(error), reader.unfinished()
    return replies, "", reader.unfinished()


def test_commands() -> None:
    """Commands are written as memcached's protocol.txt says; numbers and data as they are."""
    assert memcache.get(b"k") == b"get k\r\n"
    assert memcache.set_(b"k", b"a\r\nb", -1, 3600) == b"set k -1 3600 4\r\na\r\nb\r\n"
    assert memcache.delete(b"k") == b"delete k\r\n"


@pytest.mark.parametrize("key", [b"k", b"x" * KEY_LIMIT, b"\xff\x80", "ü@ü".encode(), b"!~"])
def test_is_key(key: bytes) -> None:
    """A key may have up to 250 bytes of anything that is neither white space nor a control character."""
    assert memcache.is_key(key)


@pytest.mark.parametrize("key", [b"", b"x" * (KEY_LIMIT + 1), *(b"a%cb" % byte for byte in (*range(33), 127))])
def test_is_not_key(key: bytes) -> None:
    """A key that is empty, too long, or has white space or control characters is none."""
    assert not memcache.is_key(key)


@pytest.mark.parametrize(
    "data, expected",
    [
        pytest.param(b"END\r\n", [Reply(b"END")], id="miss"),
        pytest.param(b"END\n", [Reply(b"END")], id="bare line feed"),
        pytest.param(b"END \r\n", [Reply(b"END ")], id="trailing blank is kept"),
        pytest.param(b"\r\n\n", [Reply(b""), Reply(b"")], id="empty lines"),
        pytest.param(b"STORED\r\nNOT_FOUND\r\n", [Reply(b"STORED"), Reply(b"NOT_FOUND")], id="two"),
        pytest.param(b"VALUE\r\n", [Reply(b"VALUE")], id="only the word VALUE"),
        pytest.param(b"VALUE k 0 1\r\nv\r\nEND\r\n", [Reply(b"END", b"k", b"v")], id="value"),
        pytest.param(b"VALUE k 0 0\r\n\r\nEND\r\n", [Reply(b"END", b"k", b"")], id="empty value"),
        pytest.param(b"VALUE k 0 3\r\n\r\n\n\r\nEND\r\n", [Reply(b"END", b"k", b"\r\n\n")], id="line ends in a value"),
        pytest.param(b"VALUE k x 1\r\nv\r\nEND\r\n", [Reply(b"END", b"k", b"v")], id="flags are not looked at"),
        pytest.param(b"VALUE k 0 1 77\r\nv\r\nEND\r\n", [Reply(b"END", b"k", b"v")], id="cas number"),
        pytest.param(b"VALUE k 0 1\nv\r\nEND\n", [Reply(b"END", b"k", b"v")], id="bare line feeds after lines"),
        pytest.param(
            b"VALUE k 0 100\r\n" + b"v" * 100 + b"\r\nEND\r\n", [Reply(b"END", b"k", b"v" * 100)], id="longest"
        ),
        pytest.param(
            b"VALUE k 0 101\r\n" + b"v" * 101 + b"\r\nEND\r\nEND\r\n",
            [Reply(b"END", b"k", None, 101), Reply(b"END")],
            id="too long, dropped",
        ),
        pytest.param(b"VALUE k 0 0000000001\r\nv\r\nEND\r\n", [Reply(b"END", b"k", b"v")], id="leading zeros"),
    ],
)
def test_replies(data: bytes, expected: list[Reply]) -> None:
    """A reply is a line, or a value with its END; a value that is too long is told and dropped."""
    assert read([data]) == (expected, "", None)
    assert read(bytes([byte]) for byte in data) == (expected, "", None)


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"VALUE \r\n", "unexpected reply b'VALUE '"),
        (b"VALUE k 0\r\n", "unexpected reply b'VALUE k 0'"),
        (b"VALUE k 0 x\r\n", "unexpected reply"),
        (b"VALUE k 0 -1\r\n", "unexpected reply"),
        (b"VALUE k 0 +1\r\n", "unexpected reply"),
        (b"VALUE k 0 12345678901\r\n", "unexpected reply"),
        (b"VALUE k 0 1\r\nvw\nEND\r\n", "not followed by a line end"),
        (b"VALUE k 0 1\r\nv\nEND\r\n", "not followed by a line end"),
        (b"x" * 65, "line of more than 64 bytes (line_size_limit)"),
        (b"x" * 64 + b"\r\n", "line of more than 64 bytes"),
        (b"VALUE k 0 1" + b" " * 60 + b"\r\n", "line of more than 64 bytes"),
        (b"\x00" * 5000, "line of more than 64 bytes"),
    ],
)
def test_malformed(data: bytes, reason: str) -> None:
    """What is no reply, or has too long a line, is refused with the reason."""
    for chunks in ([data], [bytes([byte]) for byte in data]):
        replies, error, unfinished = read(chunks)
        assert replies == []
        assert reason in error
        assert unfinished is None


@pytest.mark.parametrize("rest", [b"", b"EN", b"ENDE\r\n", b"VALUE j 0 1\r\nw\r\nEND\r\n", b"SERVER_ERROR x\r\n"])
def test_missing_end(rest: bytes) -> None:
    """A complete value is told as unfinished when END has not come or is another line: Postfix takes the value."""
    replies, error, unfinished = read([b"VALUE k 0 1\r\nv\r\n" + rest])
    assert replies == []
    assert unfinished == Reply(b"END", b"k", b"v")
    assert ("where END should be" in error) == rest.endswith(b"\n")


def test_no_unfinished() -> None:
    """A value of which a byte is missing, or that is too long, is not told as unfinished."""
    assert read([b"VALUE k 0 2\r\nv"])[2] is None
    assert read([b"VALUE k 0 2\r\nvv\r"])[2] is None
    assert read([b"VALUE k 0 101\r\n" + b"v" * 101 + b"\r\nERROR\r\n"])[2] is None


def test_line_limit_counts_cr() -> None:
    """The limit of a line counts its CR but not its LF, as Postfix does."""
    assert read([b"END\r\n"], line_limit=4)[0] == [Reply(b"END")]
    assert read([b"END\n"], line_limit=3)[0] == [Reply(b"END")]
    assert "more than 3 bytes" in read([b"END\r\n"], line_limit=3)[1]
    assert read([b"VALUE k 0 1\r\nv\r\nEND\r\n"], line_limit=12)[0] == [Reply(b"END", b"k", b"v")]
    assert "more than 11 bytes" in read([b"VALUE k 0 1\r\nv\r\nEND\r\n"], line_limit=11)[1]


def test_limits_of_each_reply() -> None:
    """The limits may differ from reply to reply."""
    reader = ReplyReader()
    reader.feed(b"VALUE k 0 5\r\nvvvvv\r\nEND\r\n" * 2)
    assert reader.next_reply(64, 4) == Reply(b"END", b"k", None, 5)
    assert reader.next_reply(64, 5) == Reply(b"END", b"k", b"vvvvv")
    assert reader.next_reply(64, 5) is None


def test_idle() -> None:
    """The reader knows whether it is between two replies with nothing left."""
    reader = ReplyReader()
    assert reader.idle
    for byte in b"VALUE k 0 101\r\n" + b"v" * 101 + b"\r\nEND\r":
        reader.feed(bytes([byte]))
        assert reader.next_reply(64, 100) is None
        assert not reader.idle
    reader.feed(b"\n")
    assert reader.next_reply(64, 100) == Reply(b"END", b"k", None, 101)
    assert reader.idle


def reply_bytes() -> st.SearchStrategy[bytes]:
    """Make replies, well-formed and nearly so."""
    value = st.binary(max_size=20)
    key = st.sampled_from([b"k", b"a\tb", b"a\x0bb", b"a\x1cb", b"\xff", b""])
    whole = st.builds(lambda k, v: b"VALUE %b 0 %d\r\n%b\r\nEND\r\n" % (k, len(v), v), key, value)
    pieces = st.sampled_from(
        [
            b"END\r\n",
            b"STORED\r\n",
            b"ERROR\n",
            b"VALUE ",
            b"k ",
            b"0 1\r\n",
            b"\tb 0 1 ",
            b"9\r\n",
            b"\r",
            b"\n",
            b"0 ",
        ]
    )
    return st.one_of(whole, whole, pieces, st.binary(max_size=4))


@given(st.lists(reply_bytes(), max_size=10).map(b"".join), st.data())
def test_any_chunks(stream: bytes, data: st.DataObject) -> None:
    """However the same bytes are cut, garbage too, the same replies and the same error come out, and no other error."""
    assert issubclass(MemcacheError, ProtocolError)
    assert read(data.draw(chunked(stream)), 16, 10) == read([stream], 16, 10)


@given(st.lists(st.tuples(st.binary(max_size=15), st.integers(0, 15)), max_size=10), st.data())
@example([(b"END\r\n", 0)], None)
def test_values_and_limits(values: list[tuple[bytes, int]], data: st.DataObject | None) -> None:
    """Any values come back as they were sent, or are told as too long, whatever limit each has."""
    stream = b"".join(b"VALUE k 0 %d\r\n%b\r\nEND\r\n" % (len(value), value) for value, _ in values)
    expected = [
        Reply(b"END", b"k", value) if len(value) <= limit else Reply(b"END", b"k", None, len(value))
        for value, limit in values
    ]
    limits = iter([limit for _, limit in values])
    limit = next(limits, 0)
    reader = ReplyReader()
    replies = []
    for chunk in [stream] if data is None else data.draw(chunked(stream)):
        reader.feed(chunk)
        while (reply := reader.next_reply(20, limit)) is not None:
            replies.append(reply)
            limit = next(limits, 0)
    assert replies == expected
    assert reader.idle


class SpyBuffer(bytearray):
    """Counts the bytes that are searched for a line end."""

    searched = 0

    def find(self, sub: bytes, start: int = 0) -> int:  # type: ignore[override]
        SpyBuffer.searched += len(self) - start
        return super().find(sub, start)


def test_no_rescans() -> None:
    """A line or a value that comes byte by byte is searched once: each byte of a line, and no byte of a value."""
    stream = b"VALUE k 0 50000\r\n" + b"v" * 50_000 + b"\r\nEND\r\n" + b"x" * 5000 + b"\r\n"
    reader = ReplyReader()
    replies: list[Reply] = []
    SpyBuffer.searched = 0
    for position in range(len(stream)):
        reader.feed(stream[position : position + 1])
        if isinstance(reader._buffer, bytearray) and not isinstance(reader._buffer, SpyBuffer):
            reader._buffer = SpyBuffer(reader._buffer)
        reply = reader.next_reply(10_000, 50_000)
        replies += [reply] if reply is not None else []
    assert replies == [Reply(b"END", b"k", b"v" * 50_000), Reply(b"x" * 5000)]
    assert SpyBuffer.searched < 3 * 5000


def test_no_rescans_of_a_value_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A VALUE line that comes byte by byte is parsed once before its line end has come, and once after."""
    parsed = []

    class Spy:
        def match(self, buffer: bytes, start: int) -> None:
            parsed.append(len(buffer) - start)

    monkeypatch.setattr(memcache, "_HIT", Spy())
    reader = ReplyReader()
    for byte in b"VALUE k 0 5000\r\n" + b"v" * 5000 + b"\r\nEND\r":
        reader.feed(bytes([byte]))
        assert next_reply(reader, 10_000, 5000) is None
    reader.feed(b"\n")
    assert next_reply(reader, 10_000, 5000) == Reply(b"END", b"k", b"v" * 5000)
    assert sum(parsed) < 100


@pytest.mark.parametrize("size", [100, 5_000_000])
def test_memory(size: int) -> None:
    """The reader holds a line, a value within the limit, and the last chunk at most; a longer value is never stored."""
    reader = ReplyReader()
    stream = b"VALUE k 0 %d\r\n" % size + b"v" * size + b"\r\nEND\r\n"
    chunk_size = 1400
    for position in range(0, len(stream), chunk_size):
        reader.feed(stream[position : position + chunk_size])
        reply = reader.next_reply(64, 100)
        assert len(reader._buffer) <= 64 + 100 + chunk_size
    assert reply is not None
    assert reply.too_long == (size if size > 100 else 0)
