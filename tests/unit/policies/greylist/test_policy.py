from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import Mock, patch

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogEvent, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from socketmap_memcache.config.parameters import Parameters
from socketmap_memcache.config.syntax import Entry, ParsedFile
from socketmap_memcache.errors import ConfigurationError, TemporaryError
from socketmap_memcache.memcache.pool import ClientPool
from socketmap_memcache.policies.greylist.decision_log import PAUSE
from socketmap_memcache.policies.greylist.lists import Lists
from socketmap_memcache.policies.greylist.policy import GreylistPolicy, greylist_type
from socketmap_memcache.policies.greylist.recipient_access import RecipientAccess
from socketmap_memcache.policies.greylist.settings import PARAMETERS, Settings
from socketmap_memcache.policies.interface import IPolicy, IPolicyType, PolicyContext
from socketmap_memcache.policies.registry import find_policy_type
from socketmap_memcache.tables.registry import TableContext

from .tables import AskedTable, HeldTable

NOW = 1_700_000_000
KEY, CLIENT = b"t/192.0.2.0/alice@example.com/bob@example.org", b"c/192.0.2.1"
REQUEST = {
    b"client_address": b"192.0.2.1",
    b"client_name": b"mail.example.com",
    b"sender": b"alice@example.com",
    b"recipient": b"bob@example.org",
    b"instance": b"1",
}
REST = "client_name=mail.example.com, client_address=192.0.2.1, sender=alice@example.com, recipient=bob@example.org"
TEXT = b"Greylisted, see http://postgrey.schweikert.ch/help/example.org.html"
DEFERRED = b"DEFER_IF_PERMIT " + TEXT


class FakeClients:
    """A list of clients that has the one of the requests, or has it not."""

    def __init__(self, has: bool) -> None:
        self.has = has
        self.closed = False

    def matches(self, client_name: bytes, client_address: bytes) -> bool:
        return self.has

    def close(self) -> None:
        self.closed = True


class PolicyTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(NOW)
        self.table = HeldTable()
        self.open()

    def open(self, lists: Any = None, **settings: Any) -> None:
        self.lists = Lists() if lists is None else lists
        self.policy = GreylistPolicy(
            Settings(hostname=b"mx", header=b"X-Greylist: %t by %h", **settings), self.lists, self.table, self.clock
        )

    def begin(self, **attributes: bytes | None) -> Deferred[bytes]:
        request = {**REQUEST, **{name.encode(): value for name, value in attributes.items()}}
        return self.policy.decide({name: value for name, value in request.items() if value is not None})

    def ask(self, **attributes: bytes | None) -> bytes:
        return self.successResultOf(self.begin(**attributes))

    def lines(self, **attributes: bytes | None) -> list[str]:
        """Ask, and return what is logged."""
        self.clock.advance(PAUSE)
        with capturedLogs() as events:
            self.ask(**attributes)
            self.clock.advance(PAUSE)
        return texts(events)


def texts(events: Sequence[LogEvent]) -> list[str]:
    return [line for event in events for line in (formatEvent(event) or "").split("\n")]


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


class TestBeforeTheTable(PolicyTests):
    def test_missing_attributes(self) -> None:
        """Without one of the attributes that are needed there is no opinion, and a line in the log."""
        for name in ("client_address", "client_name", "recipient", "sender"):
            assert self.ask(**{name: None}) == b"DUNNO"
            assert self.lines(**{name: None}) == [f"attribute missing: {name}"]
        assert self.table.asked == []

    def test_no_address(self) -> None:
        """A client without an address that can be read gets no opinion, which is logged now and then."""
        for address, lines in (
            (b"unknown", ["can't parse client_address unknown"]),
            (b"fe80::1%eth0", []),
        ):
            assert self.lines(client_address=address) == lines
            assert self.ask(client_address=address) == b"DUNNO"
        self.clock.advance(60)
        assert self.lines(client_address=b"\n") == [
            "can't parse client_address ? (3 times more since this was last logged)"
        ]
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
        assert texts(events)[-1] == f"action=pass, reason=no store, {REST}"
        assert self.table.asked == []


class TestFailures(PolicyTests):
    def test_cancelled(self) -> None:
        """When the time is over, the fail action was the answer; what the table says later is not logged."""
        for held, asked in (("lookup", 2), ("update", 3)):
            self.table.holds, self.table.asked = [held], []
            with capturedLogs() as events:
                answer = self.begin()
                assert isinstance(answer, Deferred)
                answer.cancel()
                self.failureResultOf(answer, CancelledError)
                self.table.release()
                self.clock.advance(PAUSE)
            assert texts(events)[-1] == f"action=pass, reason=no store, {REST}"
            assert len([text for text in texts(events) if "action=" in text]) == 1
            assert len(self.table.asked) == asked
        self.policy.close()
        assert self.table.closed

    def test_lookup(self) -> None:
        """When the table cannot be asked, mail flows, and that is logged, the cause now and then."""
        self.table.error = TemporaryError("memcached is down")
        assert self.lines() == [
            "memcached is down; answered DUNNO",
            f"action=pass, reason=no store, {REST}",
        ]
        assert self.ask() == b"DUNNO"
        assert self.lines()[-1] == f"action=pass, reason=no store, {REST}"
        self.clock.advance(60)
        assert self.lines()[0] == "memcached is down; answered DUNNO (2 times more since this was last logged)"

    def test_update(self) -> None:
        """What the table does not remember is not deferred."""
        self.table.error, self.table.fails = TemporaryError("disk full"), ["update"]
        assert self.lines() == ["disk full; answered DUNNO", f"action=pass, reason=no store, {REST}"]

    def test_refused(self) -> None:
        """Nor what the table does not take."""
        self.table.takes = False
        assert self.ask() == b"DUNNO"

    def test_fail_action(self) -> None:
        """The fail action may be another; the log tells whether mail flows."""
        self.open(fail_action=b"defer 4.3.0 Not now")
        self.table.error = TemporaryError("down")
        assert self.ask() == b"defer 4.3.0 Not now"
        assert self.lines() == [f"action=greylist, reason=no store, {REST}"]

    def test_update_of_what_passes(self) -> None:
        """A mail that passes does not wait for the updates, and passes when they fail, which is logged."""
        self.table.entries = {KEY: b"%d,%d" % (NOW - 300, NOW - 300)}
        self.table.holds, self.table.fails = ["update"], ["update"]
        self.table.error = TemporaryError("disk full")
        assert self.ask().startswith(b"PREPEND")
        with capturedLogs() as events:
            self.table.release()
        assert texts(events) == ["disk full; what passed is not remembered"]

    def test_deferral_waits(self) -> None:
        """A mail is deferred, and that is logged, when the table has acknowledged it."""
        self.table.holds = ["update"]
        with capturedLogs() as events:
            answer = self.begin()
            assert isinstance(answer, Deferred)
            self.clock.advance(1)
            self.assertNoResult(answer)
            assert texts(events) == []
            self.table.release()
            self.clock.advance(PAUSE)
        assert self.successResultOf(answer) == DEFERRED
        assert len(events) == 1

    def test_both_lookups(self) -> None:
        """When both look-ups fail, that is one failure; when the first does, the other is not waited for."""
        self.table.holds = ["lookup"]
        self.table.error = TemporaryError("down")
        answer = self.begin()
        assert isinstance(answer, Deferred)
        with capturedLogs() as events:
            self.table.release()
            self.clock.advance(PAUSE)
        assert self.successResultOf(answer) == b"DUNNO"
        assert texts(events)[1:] == [f"action=pass, reason=no store, {REST}"]
        for failing in (0, 1):
            answer = self.begin()
            assert isinstance(answer, Deferred)
            held, self.table.held = self.table.held[-2:], []
            held[failing][0].errback(TemporaryError("down"))
            assert self.successResultOf(answer) == b"DUNNO"
            held[1 - failing][0].callback(None)
        assert self.table.entries == {}

    def test_unforeseen(self) -> None:
        """What nobody has foreseen is an error of the policy."""
        self.table.error = RuntimeError("bug")
        answer = self.begin()
        assert isinstance(answer, Deferred)
        self.failureResultOf(answer, RuntimeError)

    def test_unforeseen_error_in_the_decision(self) -> None:
        """That is so for the decision too, at once or later, and the policy can be closed after it."""
        self.policy.deferrals.add = Mock(side_effect=RuntimeError("bug"))  # type: ignore[method-assign]
        for holds in ([], ["lookup"]):
            self.table.holds = holds
            answer = self.begin()
            assert isinstance(answer, Deferred)
            self.table.release()
            self.failureResultOf(answer, RuntimeError)
        self.policy.close()
        assert self.table.closed


class TestForgetfulTable(PolicyTests):
    def test_passes(self) -> None:
        """A mail that the table forgets each time is deferred twice more when its delay is over, and then passes."""
        for seconds in (0, 300, 300):
            self.clock.advance(seconds)
            self.table.entries.clear()
            answer = self.ask()
        assert answer == b"PREPEND X-Greylist: 600 by mx"
        assert self.table.entries[KEY] == b"%d,%d" % (NOW, NOW + 600)
        self.table.entries.clear()
        assert self.ask() == DEFERRED  # it has passed, and begins anew

    def test_logged(self) -> None:
        """The log has the reason, and what may be the cause."""
        for _ in range(2):
            self.table.entries.clear()
            self.ask()
            self.clock.advance(300)
        self.table.entries.clear()
        assert self.lines() == [
            "held:table forgets what was deferred, which passes now; is it emptied, or too small?",
            f"action=pass, reason=forgotten by the store, delay=600, {REST}",
        ]

    def test_not_forgotten(self) -> None:
        """A mail that has passed long ago is new, and nothing was forgotten."""
        self.ask()
        self.clock.advance(300)
        self.ask()
        self.clock.advance(36 * 24 * 3600)
        self.table.entries.clear()
        for _ in range(3):
            assert self.ask() == DEFERRED


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


class TestType(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.context = PolicyContext(TableContext(ClientPool(self.reactor)))

    def parameters(self, **values: str) -> Parameters:
        named = {f"greylist_{name}": value for name, value in values.items()}
        return Parameters(ParsedFile("main.cf", {name: Entry(name, value, 7) for name, value in named.items()}))

    def test_registered(self) -> None:
        """The type is found by its name, and knows its parameters."""
        verifyObject(IPolicyType, greylist_type)
        found: object = find_policy_type("greylist")
        assert found is greylist_type
        assert greylist_type.parameters == PARAMETERS

    def test_open(self) -> None:
        """A policy is opened with what the parameters say, and does nothing before it is asked."""
        parameters = self.parameters(table="memory:x", fail_action="DEFER")
        policy = greylist_type.open(parameters, self.context)
        parameters.finish([])
        assert policy.fail_action == b"DEFER"
        assert not self.reactor.getDelayedCalls()
        answer = policy.decide(REQUEST)
        assert isinstance(answer, Deferred)
        assert self.successResultOf(answer) == DEFERRED
        policy.close()

    def test_reload(self) -> None:
        """What a process has deferred, and which messages have a header, is known to the policy after a reload, too."""
        policies: list[Any] = []
        for window in ("2d", "3d"):
            parameters = self.parameters(table="memory:x", retry_window=window)
            policies.append(greylist_type.open(parameters, self.context))
        before, after = policies
        before.deferrals.add(b"k", 0, 300)
        assert len(after.deferrals) == 1
        assert after.deferrals.window == 3 * 24 * 3600
        assert before.is_new_message(b"i")
        assert not after.is_new_message(b"i")

    def test_table_is_made(self) -> None:
        """The file of the table is made if there is none."""
        with TemporaryDirectory() as directory:
            for table in (f"lmdb:{directory}/a", f"{{ lmdb:{directory}/b, timeout=1s }}"):
                parameters = self.parameters(table=table)
                greylist_type.open(parameters, self.context).close()
                parameters.finish([])
            assert sorted(path.name for path in Path(directory).iterdir()) == ["a.lmdb", "b.lmdb"]

    def test_read_only_table(self) -> None:
        """A table that cannot be changed is of no use: that is said at the start."""
        for table in ("static:x", "fail:x"):
            parameters = self.parameters(table=table)
            greylist_type.open(parameters, self.context).close()
            caught = self.assertRaises(ConfigurationError, parameters.finish, [])
            assert list(map(str, caught.problems)) == [
                f"greylist_table = {table}: table {table}: update operation is not supported"
            ]

    def test_errors(self) -> None:
        """All that is wrong is noted; the policy is there to be closed."""
        parameters = self.parameters(table="bogus:x", delay="soon", recipient_access="bogus:y")
        greylist_type.open(parameters, self.context).close()
        caught = self.assertRaises(ConfigurationError, parameters.finish, [])
        assert len(caught.problems) == 3
