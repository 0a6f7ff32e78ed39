from __future__ import annotations

from unittest.mock import patch

from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs

from socketmap_memcache.errors import TemporaryError
from socketmap_memcache.policies.greylist.decision_log import PAUSE
from socketmap_memcache.policies.greylist.lists import Lists
from socketmap_memcache.policies.greylist.recipient_access import RecipientAccess
from socketmap_memcache.policies.greylist.settings import Settings

from .policy_tests import DEFERRED, REST, FakeClients, PolicyTests, texts
from .tables import HeldTable


class TestBeforeTheTable(PolicyTests):
    def test_missing_attributes(self) -> None:
        """Without one of the attributes that are needed there is no opinion, and a line in the log."""
        for name in ("client_address", "client_name", "recipient", "sender"):
            assert self.ask(**{name: None}) == b"DUNNO"
            assert self.lines(**{name: None}) == [f"attribute missing: {name}"]
        assert self.table.asked == []

    def test_no_address(self) -> None:
        """A client without an address that can be read passes, and the log says so each time."""
        for address, shown in ((b"unknown", "unknown"), (b"fe80::1%eth0", "fe80::1%eth0"), (b"\n", "\\n")):
            line = f"action=pass, reason=can't parse client_address, {REST}".replace("192.0.2.1", shown)
            assert self.lines(client_address=address) == [line]
            assert self.ask(client_address=address) == b"DUNNO"
        assert self.table.asked == []

    def test_long_address(self) -> None:
        """Of what is no address at all no more is read, and kept, than postgrey would read."""
        assert self.ask(client_address=b"x" * 60_000) == b"DUNNO"
        with patch("socketmap_memcache.policies.greylist.policy.parse_client", return_value=None) as parse:
            assert self.ask(client_address=b"y" * 60_000) == b"DUNNO"
        assert [len(call.args[0]) for call in parse.call_args_list] == [512]

    def test_exempt(self) -> None:
        """Who is exempt passes, and the log says why."""
        assert self.lines(sasl_username=b"alice") == [f"action=pass, reason=authenticated client, {REST}"]
        self.open(Lists(clients=FakeClients(True)))  # type: ignore[arg-type]
        assert self.lines() == [f"action=pass, reason=client whitelist, {REST}"]
        assert self.ask() == b"DUNNO"
        assert self.table.asked == []

    def test_not_exempt(self) -> None:
        """Who is in no list is greylisted."""
        self.open(Lists(clients=FakeClients(False)))  # type: ignore[arg-type]
        assert self.ask() == DEFERRED


class TestRecipientAccess(PolicyTests):
    def setUp(self) -> None:
        super().setUp()
        self.access = HeldTable()
        self.open(Lists(recipient_access=RecipientAccess([self.access], Settings(), self.clock)))

    def test_skip(self) -> None:
        """A recipient who wants no greylisting gets mail at once."""
        self.access.entries[b"bob@example.org"] = b"skip"
        assert self.lines() == [f"action=pass, reason=recipient access, {REST}"]
        assert self.table.asked == []

    def test_delay(self) -> None:
        """A recipient may have a delay of its own."""
        self.access.entries[b"bob@example.org"] = b"delay=60"
        assert self.ask() == DEFERRED
        self.clock.advance(60)
        assert self.ask() == b"PREPEND X-Greylist: 60 by mx"
        self.clock.advance(3 * 24 * 3600)
        assert self.ask() == b"DUNNO"

    def test_failure(self) -> None:
        """When the table fails, nobody knows what the recipient wants: the fail action holds."""
        self.access.error = TemporaryError("access is down")
        assert self.lines() == [
            "access is down; answered DUNNO",
            f"action=pass, reason=no store, {REST}",
        ]
        assert self.table.asked == []

    def test_cancelled(self) -> None:
        """When the time is over meanwhile, the fail action was the answer, and is logged as such."""
        self.access.holds = ["lookup"]
        with capturedLogs() as events:
            answer = self.begin()
            assert isinstance(answer, Deferred)
            answer.cancel()
            self.clock.advance(PAUSE)
        assert texts(events) == [
            "greylist_recipient_access: no answer in time; answered DUNNO",
            f"action=pass, reason=no store, {REST}",
        ]
        assert self.table.asked == []

    def test_raises(self) -> None:
        """Where the table raises there is no decision, and the policy can be closed all the same."""
        with patch.object(self.access, "lookup", side_effect=ZeroDivisionError):
            self.assertRaises(ZeroDivisionError, self.begin)
        self.policy.close()
        assert self.access.closed
        assert self.table.closed
