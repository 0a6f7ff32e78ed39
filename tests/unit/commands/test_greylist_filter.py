from __future__ import annotations

from socketmap_memcache.commands.greylist_filter import RowFilter
from socketmap_memcache.commands.greylist_rows import Row
from socketmap_memcache.policies.greylist.settings import Settings


def row(recipient: bytes) -> Row:
    return Row(b"t/", (b"192.0.2.0", b"alice@example.com", recipient), "waiting", None)


def test_address_literal() -> None:
    """Brackets in a pattern, as in the address of a host, are just that."""
    wanted = RowFilter.read(None, None, b"*@[192.0.2.?]", Settings())
    assert wanted.matches(row(b"bob@[192.0.2.1]"))
    assert not wanted.matches(row(b"bob@1"))
