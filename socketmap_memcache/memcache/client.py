"""A client of one memcached: the tries of each command, and their deadlines."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from socketmap_memcache.asker import FIRING, Asker
from socketmap_memcache.errors import LookupTimeout, TemporaryError
from socketmap_memcache.log_limit import LogLimit
from socketmap_memcache.memcache.command import Command, Delete, Get, GetMany, Set
from socketmap_memcache.memcache.connection import MemcacheConnection
from socketmap_memcache.memcache.interface import IMember, Leased, Limits
from socketmap_memcache.memcache.lease_commands import GetLeased, GiveUp, Refill
from socketmap_memcache.memcache.link import Connect, Link, State
from socketmap_memcache.memcache.owed import OwedDeletes
from socketmap_memcache.prompt_writer import WRITES_TOGETHER

#: Seconds after which a command has failed, whatever its limits say. Postfix gives up on a socketmap after 100.
PATIENCE = 90.0


@implementer(IMember)
class MemcacheClient:
    """All of a process' commands to one memcached.

    - A failed try is tried again after ``retry_pause``, up to ``max_try`` times; all other commands go on meanwhile.
    - A connection that cannot be made is not tried again (memcache_table(5)). The server is *down* then, as it is when
      it leaves a probe unanswered after a command: commands fail at once, which sends look-ups to their backup, and
      probes with back-off find out when it is up.
    - Those who ask for the same key at the same time, with the same limits, share one command.
    - When one command spoils the connection (a timeout, a malformed reply), those behind it go out again on a new one
      within the time they have left: one bad key does not fail another.
    - A server that may have missed a change, or may make it too late, has to delete the key before anything else is
      sent to it: see :meth:`owe`.
    """

    _log = Logger()

    def __init__(self, name: str, connect: Connect, reactor: IReactorTime) -> None:
        """Make a client that does not connect before its first command.

        :param name: the server as Postfix writes it; for errors and the log.
        """
        self.name = name
        self._reactor = reactor
        self._link = Link(name, connect, reactor, self._up, self._down, self._failed, self._lost)
        self._connection: MemcacheConnection | None = None
        self._owed = OwedDeletes(name, reactor, self._send_owed)
        self._gets: dict[bytes, Get] = {}  # those under way that may be shared
        self._waiting: list[Command] = []  # for the connection
        self._pausing: dict[Command, IDelayedCall] = {}  # before their next try
        self._watch: IDelayedCall | None = None
        self._watch_time = 0.0
        self._log_limit = LogLimit(reactor)

    @property
    def usable(self) -> bool:
        """Whether it is worth while to send something new; see :class:`IMember`."""
        return self._link.usable

    @property
    def up_since(self) -> float:
        """When the server was found to be up again; see :class:`IMember` and :class:`Link`."""
        return self._link.up_since

    # What tables call.

    def get(self, key: bytes, limits: Limits) -> Deferred[bytes | None]:
        """Ask for a value; see :class:`ICache`."""
        answer: Deferred[bytes | None] = Deferred()
        self.get_for(key, limits, FIRING, answer)
        return answer

    def get_for(self, key: bytes, limits: Limits, asker: Asker, token: Any) -> None:
        """Ask for a value; see :class:`ICache`."""
        under_way = self._gets.get(key)
        if under_way is not None and under_way.limits is limits:
            under_way.share(asker, token)
            return
        command = Get(key, limits, self._gets, asker, token)
        connection = self._connection
        if connection is None:
            self._begin(command)
            return
        # As in _begin and _try, but not by them: this is done for each look-up.
        command.started = now = self._reactor.seconds()
        command.deadline = deadline = now + min(limits.timeout, PATIENCE)
        connection.send(command)
        if self._watch is None or deadline < self._watch_time:
            self._watch_until(deadline, now)

    def get_many(self, keys: Collection[bytes], limits: Limits) -> Deferred[dict[bytes, bytes | None]]:
        """Ask for several values; see :class:`IBatchCache`."""
        answer: Deferred[dict[bytes, bytes | None]] = Deferred()
        self._begin(GetMany(keys, limits, FIRING, answer))
        return answer

    def set(self, key: bytes, value: bytes, flags: int, ttl: int, limits: Limits) -> Deferred[bool]:
        """Store a value; see :class:`ICache`."""
        answer: Deferred[bool] = Deferred()
        self.set_for(key, value, flags, ttl, limits, FIRING, answer)
        return answer

    def set_for(self, key: bytes, value: bytes, flags: int, ttl: int, limits: Limits, asker: Asker, token: Any) -> None:
        """Store a value; see :class:`ICache`."""
        self._gets.pop(key, None)  # what it is about to say is out of date
        self._begin(Set(key, value, flags, ttl, limits, asker, token))

    def delete(self, key: bytes, limits: Limits) -> Deferred[bool]:
        """Delete a key; see :class:`ICache`."""
        self._gets.pop(key, None)
        answer: Deferred[bool] = Deferred()
        self._begin(Delete(key, limits, FIRING, answer))
        return answer

    def get_leased(self, key: bytes, limits: Limits, lease_ttl: int, stale_ttl: int) -> Deferred[Leased]:
        """Ask for a value or a lease; see :class:`ILeaseCache`."""
        answer: Deferred[Leased] = Deferred()
        self._begin(GetLeased(self.name, key, limits, lease_ttl, stale_ttl, FIRING, answer))
        return answer

    def refill(self, key: bytes, value: bytes, flags: int, ttl: int, cas: bytes, limits: Limits) -> Deferred[bool]:
        """Use a lease; see :class:`ILeaseCache`."""
        self._gets.pop(key, None)
        answer: Deferred[bool] = Deferred()
        self._begin(Refill(key, value, flags, ttl, cas, limits, FIRING, answer))
        return answer

    def give_up(self, key: bytes, cas: bytes, limits: Limits) -> Deferred[bool]:
        """Do not use a lease; see :class:`ILeaseCache`."""
        self._gets.pop(key, None)
        answer: Deferred[bool] = Deferred()
        self._begin(GiveUp(key, cas, limits, FIRING, answer))
        return answer

    def owe(self, key: bytes) -> None:
        """See to it that the server does not serve what it has of a key; see :class:`IMember`.

        The key is deleted at once, or, where there is no connection, before anything else is sent on the next one.
        """
        self._owed.add(key)
        if self._connection is not None:
            self._send_owed([key])

    def _send_owed(self, keys: Collection[bytes] | None = None) -> None:
        if self._connection is not None and len(self._owed):
            self._gets.clear()  # what they are about to say may be out of date
            limits = Limits(timeout=self._link.timeout, max_try=1)
            for command in self._owed.commands(limits, keys):
                self._begin(command)

    def learn(self, other: MemcacheClient) -> None:
        """Know, and owe, what another client of the same server does; before the first command."""
        self._link.learn(other._link)
        other._owed.bequeath(self._owed)

    def inherit(self, owed: OwedDeletes) -> None:
        """Owe what another client of the same server owes."""
        owed.bequeath(self._owed)
        self._send_owed()

    def close(self, heir: MemcacheClient | None = None) -> None:
        """Let go of the server as soon as nothing is under way; see :class:`ICache`.

        :param heir: another client of the same server, which owes from then on what this one still owes.
        """
        under_way = [*self._waiting, *self._pausing]
        if self._connection is not None:
            under_way += self._connection.unanswered()
        if under_way:
            # Their users may begin others, as a look-up that ends in a refill does.
            DeferredList([command.settled() for command in under_way]).addCallback(lambda _: self.close(heir))
            return
        if heir is not None:
            heir.inherit(self._owed)
        self._shut()

    # A command's tries.

    def _begin(self, command: Command) -> None:
        command.started = self._reactor.seconds()
        self._try(command, command.started)

    def _try(self, command: Command, now: float) -> None:
        deadline = command.deadline = min(now + command.limits.timeout, command.started + PATIENCE)
        if self._connection is not None:
            self._connection.send(command)
        elif self._link.state is State.SUSPECT and command.limits.backed:
            self._give_up(command, TemporaryError(f"memcached {self.name} did not answer another command in time"))
            return
        elif not self._wait(command):
            return
        if self._watch is None or deadline < self._watch_time:
            self._watch_until(deadline, now)

    def _wait(self, command: Command) -> bool:
        """Let a command wait for the connection; where none is to come it fails at once, and the result is false."""
        link = self._link
        if link.state is State.DOWN or link.state is State.CLOSED:
            self._give_up(command, link.refusal())
            return False
        self._waiting.append(command)
        link.want(min(command.limits.timeout, PATIENCE))
        return True

    def _give_up(self, command: Command, error: TemporaryError) -> None:
        """No try is left."""
        limits = command.limits
        if command.changes and limits.backed and (command.uncertain or not limits.refills):
            self.owe(command.key)
        command.fail(error)

    def _failed(self, command: Command, error: TemporaryError) -> None:
        """One try has failed."""
        self._complain(error)
        limits, now = command.limits, self._reactor.seconds()
        command.tries += 1
        if command.tries >= limits.max_try or now + limits.retry_pause - command.started >= PATIENCE:
            self._give_up(command, error)
        else:
            self._pausing[command] = self._reactor.callLater(limits.retry_pause, self._again, command)

    def _again(self, command: Command) -> None:
        del self._pausing[command]
        self._try(command, self._reactor.seconds())

    def _complain(self, error: TemporaryError) -> None:
        if self._log_limit.due():
            self._log.warn("{error}{more}", error=error, more=self._log_limit.more())

    # Deadlines: one timer, set for the earliest of them or before.

    def _watch_until(self, deadline: float, now: float) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self._watch_time = deadline
        self._watch = self._reactor.callLater(max(deadline - now, 0), self._expire)

    def _expire(self) -> None:
        self._watch = None
        now = self._reactor.seconds()
        for command in [command for command in self._waiting if command.deadline <= now]:
            self._waiting.remove(command)
            self._give_up(command, self._timed_out(command))
        if self._connection is not None:
            late = [command for command in self._connection.unanswered() if command.deadline <= now]
            if late:
                self._connection.drop(self._timed_out(late[0]), late)
        left = self._unanswered()
        if left:
            self._watch_until(min(command.deadline for command in left), now)

    def _unanswered(self) -> list[Command]:
        return self._waiting if self._connection is None else [*self._waiting, *self._connection.unanswered()]

    def _timed_out(self, command: Command) -> LookupTimeout:
        return LookupTimeout(f"memcached {self.name}: no answer within {command.limits.timeout:g} s")

    # What the link tells.

    def _up(self, connection: MemcacheConnection) -> None:
        self._connection = connection
        waiting, self._waiting = self._waiting, []
        with WRITES_TOGETHER:
            self._send_owed()
            for command in waiting:
                connection.send(command)

    def _lost(self, blamed: list[Command], others: list[Command], error: TemporaryError) -> None:
        self._connection = None
        for command in [*blamed, *others]:
            command.uncertain = True
        for command in blamed:
            self._failed(command, error)
        for command in others:
            if command.repeated:
                self._wait(command)
            else:
                command.fail(error)

    def _down(self, error: TemporaryError) -> None:
        waiting, self._waiting = self._waiting, []
        for command in waiting:
            self._give_up(command, error)

    def _shut(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        self._owed.stop()
        self._link.close()
        self._connection = None
