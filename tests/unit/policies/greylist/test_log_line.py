from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from socketmap_memcache.policies.greylist.log_line import GREYLIST, PASS, decision_line, printable

REQUEST = {
    b"queue_id": b"",
    b"client_name": b"mail.example.com",
    b"client_address": b"192.0.2.1",
    b"sender": b"alice@example.com",
    b"recipient": b"bob@example.org",
    b"instance": b"1.2.3",
}
REST = "client_name=mail.example.com, client_address=192.0.2.1, sender=alice@example.com, recipient=bob@example.org"


def test_deferred() -> None:
    """A line is what postgrey would log."""
    assert decision_line(REQUEST, GREYLIST, b"new") == f"action=greylist, reason=new, {REST}"


def test_passed() -> None:
    """The delay is in the line when it is given, and the queue id before it when there is one."""
    request = {**REQUEST, b"queue_id": b"ABC123"}
    expected = f"ABC123: action=pass, reason=triplet found, delay=0, {REST}"
    assert decision_line(request, PASS, b"triplet found", 0) == expected


def test_empty() -> None:
    """What is empty, as the null sender, or missing is left out."""
    request = {b"client_address": b"192.0.2.1", b"sender": b"", b"recipient": b"bob@example.org"}
    expected = "action=pass, reason=client AWL, client_address=192.0.2.1, recipient=bob@example.org"
    assert decision_line(request, PASS, b"client AWL") == expected


def test_training() -> None:
    """What was not done is marked at the end."""
    assert decision_line(REQUEST, GREYLIST, b"new", training=True).endswith(", recipient=bob@example.org, training=yes")


def test_unprintable() -> None:
    """Control characters and what is not UTF-8 are shown as escapes; a percent sign and letters stay."""
    assert printable("50%\x1b[31m\r\n\u00fc\u2028".encode() + b"\xff") == "50%\\x1b[31m\\r\\n\u00fc\\u2028\\xff"


@given(st.binary(max_size=700))
def test_any_bytes(value: bytes) -> None:
    """Whatever comes, a line is one printable line of bounded length."""
    line = decision_line(dict.fromkeys(REQUEST, value), PASS, b"new")
    assert line.isprintable()
    assert len(line) < 5 * 512 * 10 + 200
