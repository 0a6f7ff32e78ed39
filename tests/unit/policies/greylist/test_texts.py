from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from socketmap_memcache import __version__
from socketmap_memcache.policies.greylist.settings import Settings
from socketmap_memcache.policies.greylist.texts import greylist_reply, greylist_text, header_reply, header_text

SETTINGS = Settings(hostname=b"mx.example.com")


def text(template: bytes, recipient: bytes = b"bob@example.org", missing: int = 42, enhanced: bool = False) -> bytes:
    return greylist_text(Settings(text=template), recipient, missing, enhanced)


class TestGreylistText:
    def test_default(self) -> None:
        """The usual text is postgrey's, with the domain of the recipient."""
        assert greylist_reply(SETTINGS, {b"recipient": b"b@x@example.org"}, 300) == (
            b"DEFER_IF_PERMIT Greylisted, see http://postgrey.schweikert.ch/help/example.org.html"
        )

    def test_status(self) -> None:
        """Where Postfix understands it a status code comes first, unless the text has one."""
        assert text(b"x", enhanced=True) == b"4.2.0 x"
        assert text(b"4.7.0 x", enhanced=True) == b"4.7.0 x"
        assert text(b"", enhanced=True) == b"4.2.0 "
        assert greylist_reply(SETTINGS, {b"recipient": b"", b"etrn_domain": b""}, 1).startswith(
            b"DEFER_IF_PERMIT 4.2.0 Greylisted"
        )

    def test_once(self) -> None:
        """Each item is replaced where it comes first, and what is none stays."""
        assert text(b"%s %s %r %r %x %%") == b"42 %s example.org %r %x %%"

    def test_recipient_is_text(self) -> None:
        """What a recipient contains is not replaced again."""
        assert text(b"%r %s", b"b@%s.example") == b"%s.example 42"

    def test_no_domain(self) -> None:
        """A recipient without a domain stands for itself."""
        assert text(b"%r", b"postmaster") == b"postmaster"
        assert text(b"%r", b"") == b""

    @pytest.mark.parametrize(
        "domain, shown",
        [
            (b"a\rb\x7f", b"a?b?"),
            (b"\xff.example", b"?.example"),
            ("\u00fc.example\t".encode(), "\u00fc.example?".encode()),
            (b"x" * 600, b"x" * 510),
        ],
    )
    def test_unprintable(self, domain: bytes, shown: bytes) -> None:
        """What no reply may contain is shown as question marks, and what is too long is cut."""
        assert text(b"%r", b"b@" + domain) == shown

    def test_empty(self) -> None:
        """Without a text the action stands alone."""
        assert greylist_reply(Settings(text=b""), {b"recipient": b"b"}, 1) == b"DEFER_IF_PERMIT"


class TestHeader:
    @pytest.fixture(autouse=True)
    def zone(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
        time.tzset()
        yield
        monkeypatch.undo()
        assert "CEST" not in os.environ.get("TZ", "")
        time.tzset()

    def test_default(self) -> None:
        """The usual header says how long the message was delayed, by whom, and when, in local time."""
        assert (
            header_reply(SETTINGS, 301, 1_700_000_000)
            == (
                b"PREPEND X-Greylist: delayed 301 seconds by socketmap-memcache-%b at mx.example.com; "
                b"Tue, 14 Nov 2023 23:13:20 CET"
            )
            % __version__.encode()
        )

    def test_summer(self) -> None:
        """The zone is that of the time."""
        assert header_text(Settings(header=b"X: %d"), 1, 1_690_000_000) == b"X: Sat, 22 Jul 2023 06:26:40 CEST"

    def test_once(self) -> None:
        """Each item is replaced where it comes first, and what is none stays."""
        settings = Settings(header=b"X: %t %t %h %h %v %v %d %d %s", hostname=b"mx")
        assert header_text(settings, 1, 1_700_000_000) == (
            b"X: 1 %%t mx %%h %b %%v Tue, 14 Nov 2023 23:13:20 CET %%d %%s" % __version__.encode()
        )

    def test_none(self) -> None:
        """Without a header there is nothing to do."""
        assert header_reply(Settings(header=b""), 301, 1_700_000_000) == b"DUNNO"
