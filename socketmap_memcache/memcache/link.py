"""The way to one memcached: makes the connection when it is wanted, and knows whether the server is up."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, ClassVar
from typing import Protocol as Structure

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.error import TimeoutError as ConnectTimeoutError
from twisted.internet.interfaces import IDelayedCall, IProtocolFactory, IReactorTime
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure

from socketmap_memcache.asker import FIRING
from socketmap_memcache.errors import LookupTimeout, TemporaryError
from socketmap_memcache.memcache.command import Command
from socketmap_memcache.memcache.connection import MemcacheConnection
from socketmap_memcache.memcache.probe import Probe

#: Seconds before a server that is down is tried again, at first and at most; it doubles in between.
#: A refused connection costs next to nothing, and mail waits for the first one that is accepted: that is to be within
#: two seconds of the server's return, however long it was away.
FIRST_PROBE = 0.1
LAST_PROBE = 1.0


class Connect(Structure):
    """A way to the server."""

    def __call__(self, factory: IProtocolFactory, timeout: float) -> Deferred[MemcacheConnection]:
        """Connect; fails within about ``timeout`` seconds where it cannot. May be cancelled."""


class State(Enum):
    """What is known of the server."""

    IDLE = "no connection; the next command makes one"
    CONNECTING = "commands wait for the connection"
    UP = "commands are sent"
    SUSPECT = "a command was not answered in time: the others wait until a probe is answered on a new connection"
    DOWN = "no connection, or the probe was not answered: commands fail at once, and probes go out"
    CLOSED = "commands fail at once"


class _Event(Enum):
    WANTED = "there is a command"
    MADE = "the connection is made"
    ANSWERED = "the probe is answered, be it by an error"
    FAILED = "the connection could not be made, or the probe was not answered"
    ENDED = "the connection in use is gone, as when the server was restarted"
    HUNG = "the connection in use was given up: no answer in time, or none at all"
    DUE = "the pause before the next probe is over"


class Link:
    """Makes connections to one server, one at a time, by the table of states at its end.

    :ivar state: what is known of the server.
    :ivar usable: whether it is worth while to send the server something new.
    :ivar up_since: when the server was found to be up again, in reactor seconds: it may have missed changes before,
        and lost what it had. Minus infinity where this process has never lost it.
    :ivar timeout: seconds for making a connection, and again for a probe.
    """

    _log = Logger()

    def __init__(
        self,
        name: str,
        connect: Connect,
        reactor: IReactorTime,
        on_up: Callable[[MemcacheConnection], None],
        on_down: Callable[[TemporaryError], None],
        on_failed: Callable[[Command, TemporaryError], None],
        on_lost: Callable[[list[Command], list[Command], TemporaryError], None],
    ) -> None:
        """Make a link without a connection.

        :param on_up: called with each connection that may be used from now on.
        :param on_down: called when the server has gone down, and why: what waits for it waits in vain.
        :param on_failed: called with a command of such a connection whose try has failed, and why.
        :param on_lost: called at the end of such a connection, with the commands whose try has failed, those that only
            happened to be on it, and why.
        """
        self.name = name
        self.state = State.IDLE
        self.usable = True
        self.up_since = float("-inf")
        self._down = TemporaryError("")  # why, as long as it is
        self._connect = connect
        self._reactor = reactor
        self._on_up = on_up
        self._on_down = on_down
        self._on_failed = on_failed
        self._on_lost = on_lost
        self._used = False  # whether there has been a connection, or an attempt at one
        self.timeout = 0.0
        self._attempt: Deferred[MemcacheConnection] | None = None
        self._probed: MemcacheConnection | None = None
        self._connection: MemcacheConnection | None = None
        self._timer: IDelayedCall | None = None  # of the probe, or of the pause before it
        self._probe_timeout = 0.0
        self._pause = FIRST_PROBE
        self._factory = Factory.forProtocol(self._build_connection)
        self._factory.noisy = False

    def refusal(self) -> TemporaryError:
        """Make the error for a command that fails at once: a time-out where that is why the server is down."""
        return type(self._down)(f"memcached {self.name} is down: {self._down}")

    def want(self, timeout: float) -> None:
        """Make a connection within so many seconds, if none is under way."""
        if self.state is State.IDLE:
            self.timeout = timeout
            self._happen(_Event.WANTED)
        elif self.state is State.SUSPECT and self._attempt is None and self._probed is None:
            self._happen(_Event.WANTED)

    def learn(self, other: Link) -> None:
        """Know what another link knows of the server's past; before the first connection."""
        self.up_since = max(self.up_since, other.up_since)
        self._used = self._used or (other._used and other.state is not State.UP)

    def close(self) -> None:
        """Let go of the connection, on which nobody waits for anything, or give up making one."""
        self.state = State.CLOSED
        self.usable = False
        self._down = TemporaryError("the client is closed")
        self._stop_timer()
        attempt, probed, connection = self._attempt, self._probed, self._connection
        self._attempt = self._probed = self._connection = None
        if attempt is not None:
            attempt.cancel()
        for each in (probed, connection):
            if each is not None:
                each.close()

    # What happens.

    def _happen(self, event: _Event, detail: Any = None) -> None:
        if self.state is State.CLOSED:
            return
        self.state, action = self._TABLE[self.state, event]
        self.usable = self.state in {State.IDLE, State.CONNECTING, State.UP}
        action(self, detail)

    def _build_connection(self) -> MemcacheConnection:
        return MemcacheConnection(self.name, self._reactor, self._command_failed, self._lost)

    def _made(self, connection: MemcacheConnection) -> None:
        self._attempt = None
        self._happen(_Event.MADE, connection)

    def _not_made(self, failure: Failure) -> None:
        self._attempt = None
        self._happen(_Event.FAILED, self._reason(failure))

    def _reason(self, failure: Failure) -> TemporaryError:
        if isinstance(failure.value, (ConnectTimeoutError, ConnectingCancelledError, CancelledError)):
            return LookupTimeout(f"no connection within {self.timeout:g} s")
        if isinstance(failure.value, TemporaryError):  # what the greeting met
            return failure.value
        return TemporaryError(failure.getErrorMessage())

    def _command_failed(self, command: Command, error: TemporaryError) -> None:
        if not isinstance(command, Probe):
            self._on_failed(command, error)
        else:  # an error is an answer: behind a proxy it may be that of one server of many
            self._happen(_Event.ANSWERED)

    def _lost(
        self, connection: MemcacheConnection, blamed: list[Command], others: list[Command], error: TemporaryError
    ) -> None:
        if connection is self._probed:
            self._probed = None
            self._stop_timer()
            self._happen(_Event.FAILED, error)
            return
        self._connection = None
        if blamed and (isinstance(error, LookupTimeout) or not connection.has_answered):
            self.timeout = min(self.timeout, *(command.limits.timeout for command in blamed))
            self._happen(_Event.HUNG)
        else:
            self._happen(_Event.ENDED)
        self._on_lost(blamed, others, error)
        if self.state is State.SUSPECT:
            self.want(self.timeout)

    # The actions.

    def _nothing(self, _: object) -> None:
        pass

    def _open(self, _: object) -> None:
        self._timer = None
        self._attempt = self._connect(self._factory, self.timeout)
        self._attempt.addCallbacks(self._made, self._not_made)

    def _probe(self, connection: MemcacheConnection) -> None:
        self._probed = connection
        # Commands wait for that of a suspect server, which has had its time already. One that is down has all of it.
        self._probe_timeout = self.timeout / 2 if self.state is State.SUSPECT else self.timeout
        self._timer = self._reactor.callLater(self._probe_timeout, self._probe_unanswered)
        answer: Deferred[Any] = Deferred()
        answer.addCallback(lambda _: self._happen(_Event.ANSWERED))
        connection.send(Probe(self._probe_timeout, FIRING, answer))

    def _probe_unanswered(self) -> None:
        self._timer = None
        assert self._probed is not None
        self._probed.drop(LookupTimeout(f"memcached {self.name}: no answer within {self._probe_timeout:g} s"), ())

    def _use_probed(self, _: object) -> None:
        self._stop_timer()
        connection, self._probed = self._probed, None
        assert connection is not None
        self._use(connection)

    def _come_back(self, _: object) -> None:
        self._log.info("memcached {name}: is back", name=self.name)
        self._use_probed(None)

    def _use(self, connection: MemcacheConnection) -> None:
        if self._used:
            self.up_since = self._reactor.seconds()
        self._used = True
        self._pause = FIRST_PROBE
        self._connection = connection
        self._on_up(connection)

    def _go_down(self, error: TemporaryError) -> None:
        self._used = True
        # Before anybody hears of it, and may close the client.
        self._stay_down(error)
        self._log.warn(
            "memcached {name} is down: {reason}. Look-ups go to the backup, or fail, until it is back; "
            "trying every {seconds} s or sooner.",
            name=self.name,
            reason=str(self._down).rstrip("."),
            seconds=f"{LAST_PROBE:g}",
        )
        self._on_down(self.refusal())

    def _stay_down(self, error: TemporaryError) -> None:
        self._down = type(error)(str(error).removeprefix(f"memcached {self.name}: "))
        self._timer = self._reactor.callLater(self._pause, self._happen, _Event.DUE)
        self._pause = min(self._pause * 2, LAST_PROBE)

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    #: What comes of what happens: the next state, and what is done.
    _TABLE: ClassVar[dict[tuple[State, _Event], tuple[State, Callable[[Link, Any], None]]]] = {
        (State.IDLE, _Event.WANTED): (State.CONNECTING, _open),
        (State.CONNECTING, _Event.MADE): (State.UP, _use),
        (State.CONNECTING, _Event.FAILED): (State.DOWN, _go_down),
        (State.UP, _Event.ENDED): (State.IDLE, _nothing),
        (State.UP, _Event.HUNG): (State.SUSPECT, _nothing),
        (State.SUSPECT, _Event.WANTED): (State.SUSPECT, _open),
        (State.SUSPECT, _Event.MADE): (State.SUSPECT, _probe),
        (State.SUSPECT, _Event.ANSWERED): (State.UP, _use_probed),
        (State.SUSPECT, _Event.FAILED): (State.DOWN, _go_down),
        (State.DOWN, _Event.DUE): (State.DOWN, _open),
        (State.DOWN, _Event.MADE): (State.DOWN, _probe),
        (State.DOWN, _Event.ANSWERED): (State.UP, _come_back),
        (State.DOWN, _Event.FAILED): (State.DOWN, _stay_down),
    }
