from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs
from zope.interface.verify import verifyObject

from socketmap_memcache.policies.greylist.decision_log import PAUSE
from socketmap_memcache.policies.greylist.lists import Lists
from socketmap_memcache.policies.interface import IPolicy

from .policy_tests import CLIENT, DEFERRED, KEY, NOW, REST, TEXT, FakeClients, PolicyTests, texts
from .tables import AskedTable, HeldTable


class TestDecisions(PolicyTests):
    def test_interface(self) -> None:
        """It is a policy of that name."""
        verifyObject(IPolicy, self.policy)
        assert (self.policy.name, self.policy.fail_action) == ("greylist", b"DUNNO")

    def test_life(self) -> None:
        """A mail is deferred until the delay is over; then it gets a header; later mails pass without."""
        assert self.lines() == [f"action=greylist, reason=new, {REST}"]
        self.clock.advance(299)
        assert self.ask() == DEFERRED
        assert self.lines() == [f"action=greylist, reason=early-retry (1s missing), {REST}"]
        self.clock.advance(1)
        assert self.ask() == b"PREPEND X-Greylist: 300 by mx"
        assert self.lines() == [f"action=pass, reason=triplet found, {REST}"]

    def test_stored(self) -> None:
        """Each attempt is stored, with the time that it makes a difference; the client when the triplet passes."""
        self.ask()
        assert self.table.entries == {KEY: b"%d,%d" % (NOW, NOW)}
        assert self.table.ttls == {KEY: 172801}
        self.clock.advance(300)
        self.ask()
        assert self.table.entries == {KEY: b"%d,%d" % (NOW, NOW + 300), CLIENT: b"1,%d" % (NOW + 300)}
        assert self.table.ttls == {KEY: 3024001, CLIENT: 3024001}

    def test_auto_whitelisting(self) -> None:
        """A client whose triplets have passed often enough is told, and passes."""
        self.table.entries = {KEY: b"%d,%d" % (NOW - 300, NOW - 300), CLIENT: b"4,%d" % (NOW - 3600)}
        assert self.lines() == [
            "whitelisted: mail.example.com[192.0.2.1]",
            f"action=pass, reason=triplet found, delay=300, {REST}",
        ]
        self.table.asked.clear()
        assert self.lines(sender=b"other@example.com")[0].startswith("action=pass, reason=client AWL, ")
        assert ("update", CLIENT) not in self.table.asked
        self.clock.advance(3600)
        self.ask()
        assert self.table.entries[CLIENT] == b"6,%d" % (NOW + 3600)

    def test_nameless_client(self) -> None:
        """A client without a name is told by its address."""
        self.table.entries = {KEY: b"%d,%d" % (NOW - 300, NOW - 300), CLIENT: b"4,0"}
        self.open(max_age=10**10)
        assert self.lines(client_name=b"")[0] == "whitelisted: 192.0.2.1"

    def test_no_auto_whitelisting(self) -> None:
        """Without auto-whitelisting, and for clients that are never to be, their records are not even looked up."""
        never: Any = FakeClients(True)
        settings: dict[str, int]
        for settings, lists in (({"auto_whitelist_clients": 0}, Lists()), ({}, Lists(never_auto_whitelist=never))):
            self.table = HeldTable({KEY: b"%d,%d" % (NOW - 300, NOW - 300), CLIENT: b"9,%d" % NOW})
            self.open(lists, **settings)
            assert self.ask().startswith(b"PREPEND")
            assert self.table.asked == [("lookup", KEY), ("update", KEY)]

    def test_future(self) -> None:
        """A triplet that was first seen in the future is corrected, and that is told."""
        self.table.entries = {KEY: b"%d,%d" % (NOW + 9, NOW + 9)}
        assert self.lines() == [
            "correcting date for first seen in the future!",
            f"action=greylist, reason=new, {REST}",
        ]

    def test_text(self) -> None:
        """The status code is for those versions of Postfix that understand it."""
        assert self.ask(etrn_domain=b"") == b"DEFER_IF_PERMIT 4.2.0 " + TEXT

    def test_unreadable_record(self) -> None:
        """A record that cannot be read is logged, and written anew."""
        self.table.entries = {KEY: b"bogus"}
        first, second = self.lines()
        assert first.endswith("taken as unseen")
        assert second.startswith("action=greylist, reason=new, ")
        assert self.table.entries[KEY] == b"%d,%d" % (NOW, NOW)

    def test_training(self) -> None:
        """In training mode all is as usual, but nothing is deferred; the log tells."""
        self.open(training_mode=True, fail_action=b"DEFER")
        assert self.policy.fail_action == b"DUNNO"
        with capturedLogs() as events:
            assert self.ask() == b"DUNNO"
            self.clock.advance(PAUSE)
        assert texts(events) == [f"action=greylist, reason=new, {REST}, training=yes"]
        assert KEY in self.table.entries
        self.clock.advance(300)
        with capturedLogs() as events:
            assert self.ask() == b"DUNNO"  # a header would say that the message was delayed
            self.clock.advance(PAUSE)
        assert texts(events) == [f"action=pass, reason=triplet found, delay=300, {REST}, training=yes"]


class TestTableWithoutDeferreds(PolicyTests):
    def setUp(self) -> None:
        super().setUp()
        self.table = AskedTable()
        self.open()

    def test_life(self) -> None:
        """A table that can be asked without a Deferred is; what needs no waiting is answered at once."""
        assert self.ask() == DEFERRED
        self.clock.advance(300)
        assert self.ask() == b"PREPEND X-Greylist: 300 by mx"
        self.clock.advance(1)
        assert self.ask() == b"DUNNO"
        assert ("lookup", KEY) not in self.table.asked

    def test_same_second(self) -> None:
        """A triplet that passes twice in a second is stored once."""
        self.table.entries = {KEY: b"%d,%d" % (NOW - 400, NOW - 1)}
        for _ in range(2):
            assert self.ask() == b"DUNNO"
        assert self.table.asked.count(("update", KEY)) == 1


class TestHeader(PolicyTests):
    def setUp(self) -> None:
        super().setUp()
        for name in b"abcdefghijklmnop":
            self.table.entries[b"t/192.0.2.0/%c@x/bob@example.org" % name] = b"%d,%d" % (NOW - 300, NOW - 300)

    def has_header(self, sender: bytes, instance: bytes | None) -> bool:
        answer = self.ask(sender=sender, instance=instance)
        assert answer in {b"PREPEND X-Greylist: 300 by mx", b"DUNNO"}
        return answer != b"DUNNO"

    def test_once(self) -> None:
        """A message to several recipients gets one header, also when others come in between; the log tells."""
        assert self.has_header(b"a@x", b"1")
        assert self.has_header(b"b@x", b"2")
        assert not self.has_header(b"c@x", b"1")
        assert "delay" not in self.lines(sender=b"d@x", instance=b"1")[-1]

    def test_ten(self) -> None:
        """Ten messages are remembered."""
        for name in b"abcdefghij":
            assert self.has_header(b"%c@x" % name, b"%c" % name)
        assert not self.has_header(b"k@x", b"a")
        assert self.has_header(b"l@x", b"new")
        assert self.has_header(b"m@x", b"a")

    def test_unknown_message(self) -> None:
        """Without an instance each is a message of its own."""
        assert self.has_header(b"a@x", None)
        assert self.has_header(b"b@x", None)


class TestClose(PolicyTests):
    def setUp(self) -> None:
        super().setUp()
        self.clients = FakeClients(False)
        self.open(Lists(clients=self.clients))  # type: ignore[arg-type]

    def closed(self) -> bool:
        assert self.table.closed is self.clients.closed
        return self.table.closed

    def test_unused(self) -> None:
        """A policy that was never asked has nothing to stop."""
        assert not self.clock.getDelayedCalls()
        self.policy.close()
        self.policy.close()
        assert self.closed()

    def test_under_way(self) -> None:
        """The lists and the table are closed when the last request has its answer; nothing goes on after that."""
        self.table.holds = ["lookup", "update"]
        answers = [self.begin(), self.begin(sender=b"other@example.com")]
        self.policy.close()
        self.policy.close()
        self.table.release()
        assert not self.closed()
        self.table.release()
        assert self.closed()
        for answer in answers:
            assert isinstance(answer, Deferred)
            assert self.successResultOf(answer) == DEFERRED
        self.clock.advance(PAUSE)
        assert not self.clock.getDelayedCalls()

    def test_answered(self) -> None:
        """Without requests under way everything is closed at once."""
        self.ask()
        self.policy.close()
        assert self.closed()
