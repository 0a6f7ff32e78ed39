from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketmap_memcache.errors import ProtocolError
from socketmap_memcache.protocols.policy import (
    ATTRIBUTE_LIMIT,
    REQUEST_LIMIT,
    PolicyProtocolError,
    RequestReader,
    parse_request,
    reply,
)
from tests.unit.protocols.chunks import chunked

FIRST = b"request=smtpd_access_policy"

#: A line of a request, not empty, without its end.
lines = st.binary(min_size=1, max_size=12).map(lambda line: line.translate(None, b"\r\n")).filter(bool)
ends = st.sampled_from([b"\n", b"\r\n"])


def read(chunks: list[bytes]) -> tuple[list[bytes], bool]:
    """Give all payloads, and whether bytes are left."""
    reader = RequestReader()
    payloads = []
    for chunk in chunks:
        reader.feed(chunk)
        while (payload := reader.next_payload()) is not None:
            payloads.append(payload)
    return payloads, reader.partial


def read_at_once(stream: bytes) -> list[bytes]:
    """Give all payloads of one chunk, as a listener takes it."""
    reader = RequestReader()
    payload = reader.sole(stream)
    if payload is not None:
        return [payload]
    reader.feed(stream)
    return list(iter(reader.next_payload, None))


def read_to_error(chunks: list[bytes]) -> tuple[list[dict[bytes, bytes]], bool]:
    """Give all requests, and whether an error came after them."""
    reader = RequestReader()
    requests = []
    try:
        for chunk in chunks:
            reader.feed(chunk)
            while (payload := reader.next_payload()) is not None:
                requests.append(parse_request(payload))
    except ProtocolError:
        return requests, True
    return requests, False


@given(st.data(), st.lists(st.lists(st.tuples(lines, ends))), st.booleans(), ends)
def test_requests(data: st.DataObject, requests: list[list[tuple[bytes, bytes]]], cut: bool, end: bytes) -> None:
    """Any chunks give the same requests, whatever ends their lines; what follows the last empty line is held."""
    stream = b"".join(b"".join(line + end for line, end in request) + end for request in requests)
    payloads, partial = read(data.draw(chunked(stream + b"x=" * cut)))
    assert [payload.split() for payload in payloads] == [b"\n".join(line for line, _ in r).split() for r in requests]
    assert partial is cut


@given(st.data(), st.lists(st.sampled_from([b"\n", b"\n\n", b"\r\n", b"=", b"\0", b"a", FIRST])).map(b"".join))
def test_garbage(data: st.DataObject, stream: bytes) -> None:
    """Any bytes in any chunks give the same requests, and at most a ProtocolError after them."""
    assert read_to_error(data.draw(chunked(stream))) == read_to_error([stream])


@given(st.lists(st.sampled_from([b"\n", b"\n\n", b"\r\n", b"a=b", b"\r", FIRST + b"\n\n"])).map(b"".join))
def test_sole(stream: bytes) -> None:
    """What is given as the only request of a chunk is what reading it gives."""
    assert read_at_once(stream) == read([stream])[0]


def test_not_sole() -> None:
    """The usual chunk is one request; one with more, or with less, or after something that is held, is not."""
    reader = RequestReader()
    assert reader.sole(b"a=b\n\n") == b"a=b"
    for data in (b"a=b\n", b"a=b\n\n\n", b"\n\n", b"a=b\n\nx", b"a=b\r\n\n", b"a=b\n\na=b\n\n"):
        assert reader.sole(data) is None
    assert reader.sole(b"a" * REQUEST_LIMIT + b"\n\n") is not None
    assert reader.sole(b"a" * (REQUEST_LIMIT + 1) + b"\n\n") is None
    reader.feed(b"x")
    assert reader.sole(b"a=b\n\n") is None
    reader.feed(b"=y\n\n")
    assert reader.next_payload() == b"x=y"
    assert reader.sole(b"a=b\n\n") == b"a=b"


@given(st.binary())
def test_any_payload(payload: bytes) -> None:
    """Any payload is a request, or a ProtocolError."""
    for lines in (payload, FIRST + b"\n" + payload):
        try:
            request = parse_request(lines)
        except PolicyProtocolError:
            continue
        assert request[b"request"] == b"smtpd_access_policy"


def test_attributes() -> None:
    """All attributes are kept as they came, unknown and empty ones too; the last of the same name counts."""
    payload = FIRST + b"\nsender=\nx=a=b \nrecipient=\xc3\xa9\xff\nsender=r\rs\nccert_subject="
    assert parse_request(payload) == {
        b"request": b"smtpd_access_policy",
        b"sender": b"r\rs",
        b"x": b"a=b ",
        b"recipient": b"\xc3\xa9\xff",
        b"ccert_subject": b"",
    }


@given(st.lists(st.sampled_from([b"\n", b"=", b"a", b"bc", b"\nx=y"])).map(b"".join))
def test_marks_in_values(rest: bytes) -> None:
    """Each line is divided at its first equals sign, wherever others are."""
    lines = (FIRST + rest).split(b"\n")
    try:
        request = parse_request(b"\n".join(lines))
    except PolicyProtocolError:
        assert rest.split(b"\n")[0] or not all(b"=" in line for line in lines)
    else:
        assert request == dict(line.split(b"=", 1) for line in lines)


def test_carriage_returns() -> None:
    """Lines that end as in SMTP are the same request."""
    (payload,), partial = read([b"sender=a\r\n" + FIRST + b"\r\n\r\n"])
    assert parse_request(payload) == {b"request": b"smtpd_access_policy", b"sender": b"a"}
    assert not partial


@pytest.mark.parametrize(
    "payload, reason",
    [
        (b"", "not name=value"),
        (b"sender=a", "is missing"),
        (b"request=smtpd_access_policy2", "is missing"),
        (b"Request=smtpd_access_policy", "is missing"),
        (FIRST + b"\nrequest=", "is missing"),
        (FIRST + b"\nsender", "not name=value"),
        (FIRST + b"\nsender=\0", "NUL"),
        (b"GET / HTTP/1.0\r", "not name=value"),
    ],
)
def test_no_request(payload: bytes, reason: str) -> None:
    """What is no request is refused, with the reason."""
    with pytest.raises(PolicyProtocolError, match=reason):
        parse_request(payload)


def test_most_attributes() -> None:
    """There may be so many attributes, and no more, also when they have the same name."""
    assert parse_request(FIRST + b"\na=" * (ATTRIBUTE_LIMIT - 1))[b"a"] == b""
    with pytest.raises(PolicyProtocolError, match="more than 1000 attributes"):
        parse_request(FIRST + b"\na=" * ATTRIBUTE_LIMIT)


@pytest.mark.parametrize("end", [b"\n\n", b"\n\r\n"])
@pytest.mark.parametrize("step", [999, 65538, 200_000])
def test_largest(end: bytes, step: int) -> None:
    """A request of the limit is read, and one above it is refused, as soon as that is plain."""
    largest = b"a" * REQUEST_LIMIT
    stream = b"a=b\n\n" + largest + end
    chunks = [stream[start : start + step] for start in range(0, len(stream), step)]
    assert read(chunks) == ([b"a=b", largest], False)
    for too_large in (largest + b"a" + end, largest + b"aaa"):
        reader = RequestReader()
        reader.feed(b"a=b\n\n" + too_large)
        assert reader.next_payload() == b"a=b"
        for _ in range(2):
            with pytest.raises(PolicyProtocolError, match="more than 65536 bytes"):
                reader.next_payload()


def test_reply() -> None:
    """A reply is one attribute and an empty line."""
    assert reply(b"DUNNO") == b"action=DUNNO\n\n"
