from __future__ import annotations

from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketmap_memcache.errors import ProtocolError
from socketmap_memcache.protocols import tcp_table
from socketmap_memcache.protocols.tcp_table import LineReader, TcpTableError, parse_request, quote
from tests.unit.protocols.chunks import chunked


def read(reader: LineReader, chunks: list[bytes], lines: list[bytes]) -> list[bytes]:
    for chunk in chunks:
        if (line := reader.sole(chunk)) is not None:
            lines.append(line)
            continue
        reader.feed(chunk)
        while (line := reader.next_payload()) is not None:
            lines.append(line)
    return lines


@given(st.data(), st.lists(st.binary(max_size=20).map(lambda line: line.replace(b"\n", b""))), st.binary(max_size=9))
def test_lines(data: st.DataObject, lines: list[bytes], rest: bytes) -> None:
    """Any chunks give the same lines, and what follows the last newline is held."""
    rest = rest.replace(b"\n", b"")
    stream = b"".join(line + b"\n" for line in lines) + rest
    reader = LineReader(20)
    assert read(reader, data.draw(chunked(stream)), []) == lines
    assert reader.partial is bool(rest)


@pytest.mark.parametrize("step", [1, 3, 100])
def test_long_line(step: int) -> None:
    """A line of the limit is given; of one above it the beginning is given, and then nothing but an error."""
    reader = LineReader(5)
    stream = b"12345\n123456789\nget a\n"
    lines: list[bytes] = []
    chunks = [stream[start : start + step] for start in range(0, len(stream), step)]
    with pytest.raises(TcpTableError, match="more than 5 bytes"):
        read(reader, chunks, lines)
    assert lines == [b"12345", b"123456"]
    with pytest.raises(TcpTableError):
        reader.next_payload()


@given(st.binary())
def test_request(key: bytes) -> None:
    """A key comes out of a request as it was put in, with digits of either case."""
    assert parse_request(b"get " + quote(key)) == key
    assert parse_request(b"get " + b"".join(b"%%%02x" % byte for byte in key)) == key


@pytest.mark.parametrize(
    "line, reason",
    [
        (b"", "unknown request"),
        (b"get", "unknown request"),
        (b"GET a", "unknown request"),
        (b"delete a", "unknown request"),
        (b"put a b", "read-only"),
        (b"get a b", "encoding"),
        (b"get a\r", "encoding"),
        (b"get \xc3\xa9", "encoding"),
        (b"get %", "encoding"),
        (b"get %4", "encoding"),
        (b"get %4g", "encoding"),
        (b"get " + b"a" * 99_997, "more than 100000"),
    ],
)
def test_bad_request(line: bytes, reason: str) -> None:
    """What is no request is refused, with the reason."""
    with pytest.raises(TcpTableError, match=reason):
        parse_request(line)


@given(st.binary())
def test_any_line(line: bytes) -> None:
    """Any line is a request, or a TcpTableError."""
    assert issubclass(TcpTableError, ProtocolError)
    try:
        key = parse_request(line)
    except TcpTableError:
        return
    assert unquote_to_bytes(line[4:]) == key


@given(st.binary(max_size=1300))
def test_quote(text: bytes) -> None:
    """A value is encoded, and leaves nothing that could end its line."""
    reply = tcp_table.found(text)
    assert reply.startswith(b"200 ")
    assert unquote_to_bytes(reply[4:-1]) == text
    assert all(0x21 <= byte < 0x7F for byte in reply[4:-1])
    assert reply.endswith(b"\n")


def test_as_postfix() -> None:
    """The encoding is that of Postfix."""
    assert quote(b'a b%\x00\r\n\x7f\xc3\xa9"+=&@\\~') == b'a%20b%25%00%0D%0A%7F%C3%A9"+=&@\\~'
    assert tcp_table.NOTFOUND == b"500 not%20found\n"


def test_longest_value() -> None:
    """A reply has at most 4096 bytes with its newline, as they are sent; for a longer value there is a failure."""
    assert tcp_table.found(b"a" * 4091) == b"200 " + b"a" * 4091 + b"\n"
    assert tcp_table.found(b"a" * 4092).startswith(b"400 the%20encoded%20value%20makes%20a%20reply%20of%204097%20bytes")
    assert tcp_table.found(b" " * 1363 + b"aa").startswith(b"200 ")
    assert tcp_table.found(b" " * 1364).startswith(b"400 ")


@given(st.text(st.characters()))
def test_any_reason(reason: str) -> None:
    """A reason of any text, surrogates included, makes a line that Postfix reads."""
    for encode in (tcp_table.temporary_error, tcp_table.timeout_error, tcp_table.permanent_error):
        reply = encode(reason)
        assert reply.startswith(b"400 ")
        assert reply.find(b"\n") == len(reply) - 1 < 4096
