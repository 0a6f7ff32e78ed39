from __future__ import annotations

import tempfile
from pathlib import Path

from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from socketmap_memcache.config.parameters import Parameters
from socketmap_memcache.config.syntax import Entry, ParsedFile
from socketmap_memcache.errors import ConfigurationError
from socketmap_memcache.memcache.pool import ClientPool
from socketmap_memcache.policies.greylist.lists import Lists, is_authenticated, open_lists
from socketmap_memcache.policies.greylist.settings import Settings
from socketmap_memcache.tables.registry import TableContext

REQUEST = {
    b"client_address": b"192.0.2.1",
    b"client_name": b"mail.example.com",
    b"sender": b"alice@example.com",
    b"recipient": b"bob@example.org",
}


class ListsTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)
        self.reactor = MemoryReactorClock()

    def open(self, **lists: str) -> Lists:
        entries = {}
        for name, text in lists.items():
            path = self.directory / name
            path.write_text(text)
            value = text if name == "recipient_access" else str(path)
            entries[f"greylist_{name}"] = Entry(f"greylist_{name}", value, 7, "main.cf")
        self.parameters = Parameters(ParsedFile("main.cf", entries))
        context = TableContext(ClientPool(self.reactor))
        opened = open_lists(self.parameters, Settings(), context)
        self.addCleanup(opened.close)
        return opened

    def reasons(self, lists: Lists, **attributes: bytes) -> list[bytes]:
        request = {**REQUEST, **{name.encode(): value for name, value in attributes.items()}}
        return [reason for reason, holds in lists.exemptions() if holds(request)]

    def test_nothing(self) -> None:
        """Without lists only clients that have authenticated themselves are exempt, and all may be auto-whitelisted."""
        lists = self.open()
        assert self.reasons(lists) == []
        assert [reason for reason, _ in lists.exemptions()] == [b"authenticated client"]
        assert lists.may_auto_whitelist(REQUEST)
        assert lists.recipient_access is None
        lists.close()

    def test_order(self) -> None:
        """Lists are asked in the order of postgrey, and senders last; each for what it is about."""
        lists = self.open(
            client_whitelist="192.0.2.0/24\nname.example\n",
            recipient_whitelist="bob@\n",
            sender_whitelist="example.com\n",
            recipient_access="static:skip",
        )
        everything = [
            *(b"authenticated client", b"client whitelist", b"recipient whitelist", b"sender whitelist"),
        ]
        assert self.reasons(lists, sasl_username=b"x") == everything
        assert self.reasons(lists, client_address=b"10.0.0.1") == everything[2:]
        assert self.reasons(lists, client_address=b"10.0.0.1", client_name=b"x.name.example") == everything[1:]
        assert self.reasons(lists, client_address=b"::1", recipient=b"c@x", sender=b"") == []
        assert lists.recipient_access is not None

    def test_never_auto_whitelist(self) -> None:
        """Clients may be kept from being auto-whitelisted."""
        lists = self.open(never_auto_whitelist="example.com\n")
        assert not lists.may_auto_whitelist(REQUEST)
        assert lists.may_auto_whitelist({**REQUEST, b"client_name": b"unknown"})
        assert self.reasons(lists) == []

    def test_errors(self) -> None:
        """What is wrong in any list is an error."""
        self.open(client_whitelist="a@b\n", sender_whitelist="/(/\n", recipient_access="bogus:x")
        caught = self.assertRaises(ConfigurationError, self.parameters.finish, [])
        assert len(caught.problems) == 3

    def test_close(self) -> None:
        """Nothing goes on after the lists are closed."""
        self.open(client_whitelist="a\n", never_auto_whitelist="b\n", recipient_access="static:skip").close()
        assert not self.reactor.getDelayedCalls()


def test_authenticated() -> None:
    """A client is authenticated by its login, or by a certificate that was verified."""
    assert not is_authenticated({})
    assert not is_authenticated({b"sasl_username": b"", b"ccert_subject": b""})
    assert is_authenticated({b"sasl_username": b"alice"})
    assert is_authenticated({b"ccert_subject": b"mail.example.com"})
