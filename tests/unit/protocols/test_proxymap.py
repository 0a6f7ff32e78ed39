from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketmap_memcache.errors import ProtocolError
from socketmap_memcache.protocols.proxymap import (
    FLAGS,
    GREETING,
    AttributeReader,
    Attributes,
    Dialect,
    Function,
    ProxymapError,
    Reply,
    Request,
    Status,
    encode,
    encode_request,
    parse_reply,
)
from tests.unit.protocols.chunks import chunked

OLD, NEW = Dialect.FLAGS, Dialect.INSTANCE_FLAGS


def read(chunks: Iterable[bytes], limit: int = 1000) -> tuple[list[Attributes], str]:
    """Give the lists in the chunks, and the text of the error that ended them, if one did."""
    reader = AttributeReader(limit)
    lists = []
    try:
        for chunk in chunks:
            reader.feed(chunk)
            while (attributes := reader.next_list()) is not None:
                lists.append(attributes)
    except ProxymapError as error:
        return lists, str(error)
    return lists, ""


def attributes_of(text: str) -> Attributes:
    """Read ``name=value name=value``."""
    pairs = (word.partition("=") for word in text.split())
    return [(name.encode(), value.encode()) for name, _, value in pairs]


def text(wire: bytes) -> str:
    return wire.decode().replace("\0", "|")


@pytest.mark.parametrize(
    "request_, dialect, expected",
    [
        (Request(Function.OPEN), OLD, "request|open|table|memcache:/x|flags|5||"),
        (Request(Function.LOOKUP, b"key"), OLD, "request|lookup|table|memcache:/x|flags|5|key|key||"),
        (Request(Function.UPDATE, b"k", b"v"), OLD, "request|update|table|memcache:/x|flags|5|key|k|value|v||"),
        (Request(Function.DELETE, b"key"), OLD, "request|delete|table|memcache:/x|flags|5|key|key||"),
        (Request(Function.SEQUENCE, first=True), OLD, "request|sequence|table|memcache:/x|flags|5|function|0||"),
        (Request(Function.SEQUENCE), OLD, "request|sequence|table|memcache:/x|flags|5|function|1||"),
        (Request(Function.OPEN), NEW, "request|open|table|memcache:/x|instance_flags|FLAGS||"),
        (Request(Function.LOOKUP, b"k"), NEW, "request|lookup|table|memcache:/x|instance_flags|FLAGS|flags|5|key|k||"),
        (
            Request(Function.UPDATE, b"k", b""),
            NEW,
            "request|update|table|memcache:/x|instance_flags|FLAGS|flags|5|key|k|value|||",
        ),
        (Request(Function.DELETE, b"k"), NEW, "request|delete|table|memcache:/x|instance_flags|FLAGS|flags|5|key|k||"),
        (
            Request(Function.SEQUENCE),
            NEW,
            "request|sequence|table|memcache:/x|instance_flags|FLAGS|flags|5|function|1||",
        ),
    ],
)
def test_requests(request_: Request, dialect: Dialect, expected: str) -> None:
    """Each request has the attributes that Postfix's own client sends, in its order."""
    wire = encode_request(request_, b"memcache:/x", 5, dialect)
    assert text(wire) == expected.replace("FLAGS", str(FLAGS))


@pytest.mark.parametrize("request_", [Request(Function.LOOKUP, b"a\0b"), Request(Function.UPDATE, b"a", b"\0\0")])
def test_no_smuggling(request_: Request) -> None:
    """A key or value with NUL is refused: what follows it would be taken for attributes."""
    with pytest.raises(ValueError, match="NUL"):
        encode_request(request_, b"btree:/x", 0, OLD)


@pytest.mark.parametrize(
    "attributes, function, dialect, expected",
    [
        ("status=0 flags=262160", Function.OPEN, OLD, Reply(Status.OK, 262160)),
        ("status=4 flags=0", Function.OPEN, NEW, Reply(Status.DENY)),
        ("status=0 value=v", Function.LOOKUP, OLD, Reply(Status.OK, 0, b"", b"v")),
        ("status=1 value=", Function.LOOKUP, OLD, Reply(Status.NOKEY)),
        ("status=0 flags=7 value=v", Function.LOOKUP, NEW, Reply(Status.OK, 7, b"", b"v")),
        ("status=2", Function.UPDATE, OLD, Reply(Status.RETRY)),
        ("status=5 flags=0", Function.DELETE, NEW, Reply(Status.CONFIG)),
        ("status=0 key=k value=v", Function.SEQUENCE, OLD, Reply(Status.OK, 0, b"k", b"v")),
        ("status=0 flags=4294967295 key=k value=v", Function.SEQUENCE, NEW, Reply(Status.OK, 2**32 - 1, b"k", b"v")),
        ("status=0 value=v more=x value=w", Function.LOOKUP, OLD, Reply(Status.OK, 0, b"", b"v")),
        ("status=3", Function.SEQUENCE, NEW, Reply(Status.BAD)),
    ],
)
def test_replies(attributes: str, function: Function, dialect: Dialect, expected: Reply) -> None:
    """A reply of either dialect is read; more attributes than are known may follow."""
    assert parse_reply(attributes_of(attributes), function, dialect) == expected


@pytest.mark.parametrize(
    "attributes, reason",
    [
        ("", "nothing instead of status,value"),
        ("status=0", "status instead of"),
        ("value=v status=0", "value,status instead of"),
        ("status=0 flags=0 value=v", "status,flags instead of"),
        ("protocol=proxymap_protocol", "protocol instead of"),
        ("status=6 value=v", "status 6"),
        ("status=-1 value=v", "not a number"),
        ("status= value=v", "not a number"),
        ("status=00000000000 value=v", "not a number"),
    ],
)
def test_malformed(attributes: str, reason: str) -> None:
    """A reply with an attribute missing or out of order, or with an unknown status, is refused with the reason."""
    with pytest.raises(ProxymapError, match=reason):
        parse_reply(attributes_of(attributes), Function.LOOKUP, OLD)


def test_lists() -> None:
    """Lists are given back in order; values may be empty, and one that has not come to its end is waited for."""
    stream = b"protocol\0proxymap_protocol\0\0" + b"status\x001\0value\0\0\0" + b"\0" + b"status\0"
    assert read([stream]) == ([GREETING, [(b"status", b"1"), (b"value", b"")], []], "")


@pytest.mark.parametrize("size", [9, 10, 11])
def test_limit(size: int) -> None:
    """A list of more bytes than the limit is refused, before its end is there."""
    stream = b"n\0" + b"v" * (size - 4) + b"\0\0"
    assert len(stream) == size
    for chunks in ([stream], [stream[:-1], stream[-1:]], [stream[:5], stream[5:]]):
        lists, error = read(chunks, 10)
        assert (len(lists), bool(error)) == ((1, False) if size <= 10 else (0, True))


def test_stays_broken() -> None:
    """After an error nothing is given back any more, whatever comes."""
    reader = AttributeReader(10)
    reader.feed(b"n\0" + b"v" * 20)
    for _ in range(3):
        with pytest.raises(ProxymapError, match="more than 10 bytes"):
            reader.next_list()
        reader.feed(b"\0\0")


#: Without NUL.
items = st.binary(max_size=30).map(lambda item: item.replace(b"\0", b""))
lists_of_attributes = st.lists(st.tuples(items.filter(bool), items), max_size=5)


@given(st.lists(lists_of_attributes, max_size=5), st.data())
def test_any_chunks(lists: list[Attributes], data: st.DataObject) -> None:
    """However the same bytes are cut, what was encoded comes out."""
    stream = b"".join(map(encode, lists))
    assert read(data.draw(chunked(stream))) == (lists, "")


@given(st.binary(max_size=60).map(lambda raw: raw.replace(b"\1", b"\0")), st.integers(1, 20), st.data())
def test_garbage(garbage: bytes, limit: int, data: st.DataObject) -> None:
    """Any bytes give lists or a ProxymapError, nothing else, and however they are cut the same ones."""
    assert issubclass(ProxymapError, ProtocolError)
    assert read(data.draw(chunked(garbage)), limit) == read([garbage], limit)


@given(
    st.lists(st.tuples(st.sampled_from([b"status", b"flags", b"key", b"value", b"x"]), items), max_size=5),
    st.sampled_from(Function),
    st.sampled_from(Dialect),
)
def test_any_reply(attributes: Attributes, function: Function, dialect: Dialect) -> None:
    """Any attributes are a reply or a ProxymapError."""
    with suppress(ProxymapError):
        assert parse_reply(attributes, function, dialect).status in Status


def test_no_rescans() -> None:
    """A long value that comes byte by byte is searched once."""
    reader = AttributeReader(200_000)
    reader.feed(b"value\0")
    for _ in range(100_000):
        reader.feed(b"x")
        assert reader.next_list() is None
        assert reader._scanned == len(reader._buffer)
    reader.feed(b"\0\0")
    assert reader.next_list() == [(b"value", b"x" * 100_000)]
    assert reader._buffer == b""
