from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from socketmap_memcache.errors import TemporaryError
from socketmap_memcache.policies.greylist.explain import Explanation, explain
from socketmap_memcache.policies.greylist.key import ClientAddress
from socketmap_memcache.policies.greylist.lists import Lists
from socketmap_memcache.policies.greylist.recipient_access import RecipientAccess
from socketmap_memcache.policies.greylist.record import Triplet
from socketmap_memcache.policies.greylist.settings import Settings
from socketmap_memcache.tables.static import StaticTable

from .policy_tests import CLIENT, DEFERRED, KEY, NOW, REQUEST, FakeClients
from .tables import HeldTable

ADDRESS = ClientAddress(b"192.0.2.1", b"192.0.2.0")
NOT_EXEMPT = [(b"authenticated client", False)]


class ExplainTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.table = HeldTable()

    def explain(self, request: Any = REQUEST, lists: Any = None, **settings: Any) -> Explanation:
        made = Settings(header=b"X: %t", **settings)
        return self.successResultOf(explain(request, NOW, made, lists or Lists(), self.table))

    def tearDown(self) -> None:
        assert {operation for operation, _ in self.table.asked} <= {"lookup"}

    def test_new(self) -> None:
        """A mail that would be deferred is explained with its keys and what would be stored; nothing is."""
        found = self.explain()
        assert (found.answer, found.reason, found.client) == (DEFERRED, b"new", ADDRESS)
        assert (found.exemptions, found.may_auto_whitelist, found.delay) == (NOT_EXEMPT, True, 300)
        assert (found.plain_key, found.triplet_key, found.client_key) == (KEY[2:], KEY, CLIENT)
        assert (found.triplet_value, found.client_value) == (None, None)
        assert found.decision is not None
        assert found.decision.triplet == Triplet(NOW, NOW)

    def test_passes(self) -> None:
        """A mail that would pass is explained with what is stored."""
        self.table.entries = {KEY: b"%d,%d" % (NOW - 300, NOW - 300), CLIENT: b"bogus"}
        found = self.explain()
        assert (found.answer, found.reason) == (b"PREPEND X: 300", b"triplet found")
        assert (found.triplet_value, found.client_value) == (b"%d,%d" % (NOW - 300, NOW - 300), b"bogus")
        self.table.entries[CLIENT] = b"5,%d" % NOW
        assert (self.explain().answer, self.explain().reason) == (b"DUNNO", b"client AWL")

    def test_privacy(self) -> None:
        """With privacy the key is hashed, but what it is made of is told."""
        found = self.explain(privacy=True)
        assert found.plain_key == KEY[2:]
        assert found.triplet_key not in {None, KEY}

    def test_training(self) -> None:
        """In training mode nothing is deferred."""
        assert (self.explain(training_mode=True).answer, self.explain(training_mode=True).reason) == (b"DUNNO", b"new")

    def test_never_auto_whitelist(self) -> None:
        """A client that is never auto-whitelisted is told."""
        self.table.entries = {CLIENT: b"5,%d" % NOW}
        found = self.explain(lists=Lists(never_auto_whitelist=FakeClients(True)))  # type: ignore[arg-type]
        assert (found.may_auto_whitelist, found.reason) == (False, b"new")

    def test_exempt(self) -> None:
        """The lists that were asked are told, up to the one that counts."""
        found = self.explain({**REQUEST, b"sasl_username": b"alice"})
        assert found == Explanation(b"DUNNO", b"authenticated client", [(b"authenticated client", True)], ADDRESS)
        found = self.explain(lists=Lists(clients=FakeClients(True)))  # type: ignore[arg-type]
        assert found.exemptions == [*NOT_EXEMPT, (b"client whitelist", True)]

    def test_recipient_access(self) -> None:
        """What the recipient wants is told."""
        for value, reason, delay in ((b"skip", b"recipient access", None), (b"delay=60", b"new", 60)):
            access = RecipientAccess([StaticTable("static:x", value)], Settings(), Clock())
            found = self.explain(lists=Lists(recipient_access=access))
            assert (found.reason, found.delay) == (reason, delay)

    def test_bad_requests(self) -> None:
        """What is wrong with a request is the reason."""
        for name in (b"client_address", b"client_name", b"recipient", b"sender"):
            request = {other: value for other, value in REQUEST.items() if other != name}
            assert self.explain(request) == Explanation(b"DUNNO", b"attribute missing: " + name)
        found = self.explain({**REQUEST, b"client_address": b"unknown"})
        assert found == Explanation(b"DUNNO", b"can't parse client_address")

    def test_failure(self) -> None:
        """A table that fails is an error."""
        self.table.error = TemporaryError("down")
        self.failureResultOf(explain(REQUEST, NOW, Settings(), Lists(), self.table), TemporaryError)
