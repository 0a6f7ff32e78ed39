"""What it takes for "not found" to be believed where no backup is asked."""

from __future__ import annotations

from functools import partial

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from socketmap_memcache.errors import LookupTimeout, TemporaryError
from socketmap_memcache.memcache.client import MemcacheClient
from socketmap_memcache.memcache.interface import Limits
from socketmap_memcache.prompt_writer import WRITES_TOGETHER

from .client_tests import ONE_TRY, ClientTests
from .scripted import PROBE, PROBE_REPLY, ScriptedConnection, ScriptedServer, gets, value

CERTAIN = Limits(max_try=1, fenced=True)
TWICE = Limits(max_try=2, fenced=True)


class TestFence(ClientTests):
    def ask(self, *keys: bytes, limits: Limits = CERTAIN) -> list[Deferred[bytes | None]]:
        """Ask for keys, in one write, on a connection that has had a miss."""
        if not self.server.connections:
            missed = self.get(b"none", CERTAIN)
            self.connection = self.server.accept()
            self.connection.send(b"END\r\n")
            self.connection.send(PROBE_REPLY)
            self.assertMissed(missed)
            assert self.connection.received() == gets([b"none"]) + PROBE
        with WRITES_TOGETHER:
            asked = [self.get(key, limits) for key in keys]
        self.connection = self.server.connections[-1]
        return asked

    def assertMissed(self, *asked: Deferred[bytes | None]) -> None:
        assert [self.successResultOf(each) for each in asked] == [None] * len(asked)

    def test_one_write(self) -> None:
        """The look-ups of one write are followed by one delete of nobody's key, and believed with its reply."""
        asked = self.ask(b"a", b"b", b"c")
        assert self.connection.writes() == [gets([b"a", b"b", b"c"]) + PROBE]
        self.connection.send(b"END\r\n" * 3)
        for each in asked:
            self.assertNoResult(each)
        self.connection.send_slowly(PROBE_REPLY)
        self.assertMissed(*asked)

    def test_after_a_miss(self) -> None:
        """While all look-ups find something none has a fence; the first miss is followed by one, for all behind it."""
        asked = [self.get(key, CERTAIN) for key in (b"a", b"b", b"c", b"d")]
        connection = self.server.accept()
        assert connection.received() == gets([b"a", b"b", b"c", b"d"])
        connection.send(value(b"a", b"1") + b"END\r\n" + value(b"c", b"3"))
        assert connection.writes() == [PROBE]
        connection.send(b"END\r\n")
        assert [self.successResultOf(asked[number]) for number in (0, 2)] == [b"1", b"3"]
        for number in (1, 3):
            self.assertNoResult(asked[number])
        connection.send(PROBE_REPLY)
        self.assertMissed(asked[1], asked[3])
        assert connection.writes() == []

    def test_as_long_as_there_are_misses(self) -> None:
        """A fence goes with each write until one was in vain, as all its look-ups have found something."""
        for _ in range(2):
            (a,) = self.ask(b"a")
            assert self.connection.received() == gets([b"a"]) + PROBE
            self.connection.send(b"END\r\n" + PROBE_REPLY)
            self.assertMissed(a)
        for fence in (PROBE, b""):
            (b,) = self.ask(b"b")
            assert self.connection.received() == gets([b"b"]) + fence
            self.connection.send(value(b"b", b"2") + (PROBE_REPLY if fence else b""))
            assert self.successResultOf(b) == b"2"

    def test_hit(self) -> None:
        """A value names its key, and waits for nothing."""
        a, b = self.ask(b"a", b"b")
        self.connection.send(b"END\r\n" + value(b"b", b"2"))
        assert self.successResultOf(b) == b"2"
        self.assertNoResult(a)
        self.connection.send(PROBE_REPLY)
        self.assertMissed(a)

    def test_behind_at_a_miss(self) -> None:
        """A server that falls one reply behind, at any look-up, has not said that those from there on do not exist."""
        for behind in range(3):
            self.setUp()
            asked = self.ask(b"a", b"b", b"c")
            self.connection.send(b"END\r\n" * (behind + 1) + b"END\r\n" * (3 - behind) + PROBE_REPLY)
            for each in asked:
                self.assertFailed(each, "out of step: the reply to a look-up where that to another command should be")
            assert self.connection.is_aborted()

    def test_behind_from_before(self) -> None:
        """One that was behind already shows the reply to the fence before in place of that to a look-up."""
        self.ask(b"a")
        self.connection.send(b"END\r\n" + PROBE_REPLY)
        (b,) = self.ask(b"b")
        self.connection.send(PROBE_REPLY + b"END\r\n")
        self.assertFailed(b, "unexpected reply b'NOT_FOUND'")

    def test_second_try(self) -> None:
        """A miss that was not believed costs a try: after the pause it goes out again, on a new connection."""
        (a,) = self.ask(b"a", limits=TWICE)
        self.connection.send(b"END\r\nEND\r\n")
        self.assertNoResult(a)
        self.clock.advance(TWICE.retry_pause)
        connection = self.server.accept()
        assert connection.received() == gets([b"a"]) + PROBE
        connection.send(value(b"a", b"1") + PROBE_REPLY)
        assert self.successResultOf(a) == b"1"
        assert not connection.is_aborted()

    def test_nobody_in_doubt(self) -> None:
        """Where the reply to a fence is wrong, but all before it were hits, it costs nobody a try."""
        (a,) = self.ask(b"a")
        b = self.get(b"b", CERTAIN)
        self.flush()
        self.connection.send(value(b"a", b"1") + b"END\r\n")
        assert self.successResultOf(a) == b"1"
        assert self.connection.is_aborted()
        connection = self.server.accept()
        assert connection.received() == gets([b"b"]) + PROBE
        connection.send(b"END\r\n" + PROBE_REPLY)
        self.assertMissed(b)

    def test_deleted(self) -> None:
        """The key may have existed."""
        (a,) = self.ask(b"a")
        self.connection.send_slowly(b"END\r\nDELETED\r\n")
        self.assertMissed(a)

    def test_refused(self) -> None:
        """Where the next fence, too, has an error, it is a fence's: the misses are believed, and nothing is logged."""
        for reply in (b"SERVER_ERROR no\r\n", b"ERROR\r\n", b"CLIENT_ERROR no\r\n"):
            self.setUp()
            (a,) = self.ask(b"a")
            with capturedLogs() as logs:
                self.connection.send_slowly(b"END\r\n" + reply)
                self.assertNoResult(a)
                assert self.connection.received() == gets([b"a"]) + PROBE * 2
                self.connection.send_slowly(reply)
                self.assertMissed(a)
                (b,) = self.ask(b"b")
                self.connection.send(b"END\r\n" + reply)
                self.assertNoResult(b)
                self.connection.send(reply)
                self.assertMissed(b)
            assert logs == []

    def test_error_of_a_look_up(self) -> None:
        """An error may be the reply to the look-up before, whose miss is that of another: none is certain."""
        a, b = self.ask(b"a", b"b")
        self.connection.send(b"END\r\nEND\r\nSERVER_ERROR b's server is down\r\n")
        self.connection.send(PROBE_REPLY)
        for each in (a, b):
            self.assertFailed(each, "out of step: an error where the reply to another command should be")
        assert self.connection.is_aborted()

    def test_refused_for_a_while(self) -> None:
        """An error that left nobody in doubt counts for nothing when the server of the key is back."""
        (a,) = self.ask(b"a")
        self.connection.send(value(b"a", b"1") + b"SERVER_ERROR no\r\n")
        assert self.successResultOf(a) == b"1"
        assert self.connection.received() == gets([b"a"]) + PROBE
        (b,) = self.ask(b"b")
        self.connection.send(b"END\r\n")
        self.connection.send(PROBE_REPLY)
        self.assertMissed(b)
        assert self.connection.received() == gets([b"b"]) + PROBE

    def test_value_in_its_place(self) -> None:
        """A value, be it of the key that is deleted, is the reply to a look-up: nothing is believed."""
        for key in (b"b", b"socketmap-memcache-probe"):
            self.setUp()
            a, b = self.ask(b"a", b"b")
            self.connection.send(b"END\r\nEND\r\n" + value(key, b"2"))
            for each in (a, b):
                self.assertFailed(each, "out of step")

    def test_none_needed(self) -> None:
        """A look-up whose misses a backup answers, and a change, have nothing behind them."""
        self.ask(b"a", limits=ONE_TRY)
        done = self.client.set(b"b", b"2", 0, 0, CERTAIN)
        self.flush()
        assert self.connection.received() == gets([b"a"]) + b"set b 0 0 1\r\n2\r\n"
        self.connection.send(b"END\r\nSTORED\r\n")
        assert self.successResultOf(done) is True

    def test_many(self) -> None:
        """Of many keys asked for at once, too, none is missing until the reply to the fence has come."""
        asked = self.client.get_many([b"a", b"b"], CERTAIN)
        connection = self.server.accept()
        assert connection.received() == b"get a b\r\n"
        connection.send(value(b"b", b"2"))
        self.assertNoResult(asked)
        assert connection.received() == PROBE
        connection.send(PROBE_REPLY)
        assert self.successResultOf(asked) == {b"b": b"2"}
        asked = self.client.get_many([b"a", b"b"], CERTAIN)
        assert connection.received() == b"get a b\r\n" + PROBE
        connection.send(value(b"a", b"1", b"") + value(b"b", b"2"))
        assert self.successResultOf(asked) == {b"a": b"1", b"b": b"2"}
        connection.send(PROBE_REPLY)

    def test_many_of_another(self) -> None:
        """Values of these keys, too, may be another command's: where they come twice none is missing."""
        self.ask()
        asked = self.client.get_many([b"b", b"c"], CERTAIN)
        self.connection.send(value(b"b", b"2") * 2)
        self.failureResultOf(asked, TemporaryError)

    def test_unasked(self) -> None:
        """What comes before the fence is sent ends the connection; the look-up goes out again, with a fence."""
        a = self.get(b"a", CERTAIN)
        self.server.accept().send(b"END\r\nEND\r\n")
        connection = self.server.accept()
        assert connection.received() == gets([b"a"]) + PROBE
        connection.send(value(b"a", b"1") + PROBE_REPLY)
        assert self.successResultOf(a) == b"1"

    def test_never_answered(self) -> None:
        """A miss whose fence is not answered in time has failed, in the time that the look-up had."""
        (a,) = self.ask(b"a")
        self.clock.advance(1.5)
        self.connection.send(b"END\r\n")
        self.clock.advance(0.4)
        self.assertNoResult(a)
        self.clock.advance(0.1)
        self.assertFailed(a, "no answer within 2 s", LookupTimeout)
        assert self.connection.is_aborted()

    def test_lost(self) -> None:
        """A server that hangs up in place of that reply has cost a try, or it would be asked for ever."""
        (a,) = self.ask(b"a", limits=TWICE)
        self.connection.send(b"END\r\n")
        self.connection.lose()
        assert self.server.attempts == []
        self.clock.advance(TWICE.retry_pause)
        connection = self.server.accept()
        connection.send(b"END\r\nNOT_")
        connection.lose()
        self.assertFailed(a, "connection lost")

    def test_lost_between(self) -> None:
        """A connection that ends before that reply is due costs nobody a try: all go out again, each with a fence."""
        a, b = self.ask(b"a", b"b")
        self.connection.send(b"END\r\n")
        self.connection.lose()
        connection = self.server.accept()
        assert connection.received() == gets([b"a"]) + PROBE + gets([b"b"]) + PROBE
        connection.send(b"END\r\n" + PROBE_REPLY)
        self.assertMissed(a)
        connection.send(b"END\r\n" + PROBE_REPLY)
        self.assertMissed(b)

    def test_always_lost(self) -> None:
        """A look-up at which the server always hangs up fails, and no miss before it: it is not asked for ever."""
        a, b = self.ask(b"a", b"b")
        for connections in range(20):
            if self.server.attempts:
                self.connection = self.server.accept()
            if self.connection.received().startswith(b"get a\r\n"):
                self.connection.send(b"END\r\n" + (PROBE_REPLY if connections else b""))
            self.connection.lose()
            if not self.server.attempts:
                break
        assert connections == 3  # the last one is for a probe
        self.assertMissed(a)
        self.assertFailed(b, "connection lost")

    def test_nobody_waits(self) -> None:
        """Once all are answered, nothing waits for the reply to the fence, and a connection that ends is no failure."""
        (a,) = self.ask(b"a")
        self.connection.send(value(b"a", b"1"))
        assert self.successResultOf(a) == b"1"
        with capturedLogs() as logs:
            self.clock.advance(10)
            assert not self.connection.is_aborted()
            self.connection.lose()
        assert logs == []

    def test_shared(self) -> None:
        """Who asks for a key between its reply and that to the fence shares the answer."""
        (a,) = self.ask(b"a")
        self.connection.send(b"END\r\n")
        again = self.get(b"a", CERTAIN)
        self.connection.send(PROBE_REPLY)
        self.assertMissed(a, again)

    def test_closed_by_the_first(self) -> None:
        """A miss that closes the client does not shut it before those behind it, which may ask on, have theirs."""
        self.ask(b"x")
        self.connection.send(b"END\r\n" + PROBE_REPLY)
        (hit,) = self.ask(b"hit")
        first = self.get(b"first", CERTAIN)
        self.client.close()
        later = self.get(b"later", CERTAIN).addCallback(lambda _: self.get(b"on", CERTAIN))
        self.flush()
        self.connection.send(value(b"hit", b"1") + PROBE_REPLY + b"END\r\nEND\r\n" + PROBE_REPLY)
        assert self.successResultOf(hit) == b"1"
        self.assertMissed(first)
        self.flush()
        self.connection.send(b"END\r\n" + PROBE_REPLY)
        self.assertMissed(later)
        assert self.connection.is_closed()

    def test_closed(self) -> None:
        """A client that is closed waits for the reply, and the miss is handed over."""
        (a,) = self.ask(b"a")
        self.connection.send(b"END\r\n")
        self.client.close()
        assert not self.connection.is_closed()
        self.connection.send(PROBE_REPLY)
        self.assertMissed(a)
        assert self.connection.is_closed()
        assert self.timers() == []

    def test_unsent(self) -> None:
        """Look-ups that were not sent when the connection ended are sent on the next one, with one fence."""
        (a,) = self.ask(b"a")
        b = self.get(b"b", CERTAIN)
        self.connection.send(value(b"a", b"1"))
        self.connection.lose()
        assert self.successResultOf(a) == b"1"
        connection = self.server.accept()
        self.flush()
        assert connection.received() == gets([b"b"]) + PROBE
        connection.send(b"END\r\n" + PROBE_REPLY)
        self.assertMissed(b)


_EXISTING = (b"a", b"b")
_REFUSED = b"e"


class Laggard:
    """A connection of a server that, from one of its replies on, answers each command as the one before.

    :ivar sound: how many replies come before that.
    """

    def __init__(self, connection: ScriptedConnection, sound: int) -> None:
        self._connection = connection
        self._sound = sound
        self._last = b""

    def answer(self, slowly: bool) -> None:
        """Answer what has been asked."""
        replies = b"".join(map(self._reply, self._connection.received().splitlines()))
        if slowly:
            self._connection.send_slowly(replies)
        elif replies:
            self._connection.send(replies)

    def _reply(self, command: bytes) -> bytes:
        if command == PROBE.rstrip():
            reply = PROBE_REPLY
        elif command == b"get %b" % _REFUSED:
            reply = b"SERVER_ERROR no\r\n"
        else:
            found = [key for key in command.split()[1:] if key in _EXISTING]
            reply = b"".join(value(key, key, b"") for key in found) + b"END\r\n"
        self._sound -= 1
        answer = reply if self._sound >= 0 or not self._last else self._last
        self._last = reply
        return answer


@given(
    turns=st.lists(
        st.lists(st.sampled_from([b"a", b"b", b"c", b"d", _REFUSED, b"b d", b"c d"]), max_size=5), max_size=6
    ),
    sound=st.lists(st.integers(0, 20), min_size=1, max_size=4),
    slowly=st.booleans(),
)
def test_never_false(turns: list[list[bytes]], sound: list[int], slowly: bool) -> None:
    """Wherever a server falls one reply behind, no key that exists is missing from an answer."""
    clock, server = Clock(), ScriptedServer()
    client = MemcacheClient("inet:mc:11211", server.connect, clock)
    laggards: list[Laggard] = []
    asked: list[tuple[list[bytes], Deferred[dict[bytes, bytes | None]]]] = []

    def turn() -> None:
        if server.attempts:
            laggards.append(Laggard(server.accept(), sound[len(laggards) % len(sound)]))
        clock.advance(0)
        for laggard in laggards:
            laggard.answer(slowly)

    def found(key: bytes, data: bytes | None) -> dict[bytes, bytes | None]:
        return {} if data is None else {key: data}

    for asking in turns:
        for keys in map(bytes.split, asking):
            if len(keys) > 1:
                asked.append((keys, client.get_many(keys, TWICE)))
            else:
                asked.append((keys, client.get(keys[0], TWICE).addCallback(partial(found, keys[0]))))
        turn()
    for _ in range(10):
        turn()
        clock.advance(1)
    for keys, answer in asked:
        outcome = answer.result
        if isinstance(outcome, dict):
            assert outcome == {key: key for key in keys if key in _EXISTING}
        else:
            answer.addErrback(lambda failure: failure.trap(TemporaryError))
