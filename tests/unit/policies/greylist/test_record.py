from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketmap_memcache.policies.greylist.record import (
    Client,
    RecordError,
    Triplet,
    format_record,
    parse_client,
    parse_triplet,
)

NUMBERS = st.integers(0, 10**12 - 1)


@given(NUMBERS, NUMBERS)
def test_round_trip(one: int, other: int) -> None:
    """What is written is read again, as postgrey writes it."""
    assert format_record(Triplet(one, other)) == b"%d,%d" % (one, other)
    assert parse_triplet(format_record(Triplet(one, other))) == Triplet(one, other)
    assert parse_client(format_record(Client(one, other))) == Client(one, other)


@pytest.mark.parametrize(
    "value",
    [
        *(b"", b",", b"1", b"1,", b",1", b"1,2,3", b"1,2,mx", b"-1,2", b"+1,2", b" 1,2", b"1, 2", b"1_0,2", b"a,b"),
        *("\u0661,2".encode(), b"\xff,1", b"1" * 13 + b",1", b"1," + b"1" * 13),
    ],
)
def test_not_a_record(value: bytes) -> None:
    """Anything else is an error that shows it."""
    for parse in (parse_triplet, parse_client):
        with pytest.raises(RecordError, match="not a record: "):
            parse(value)
