"""Mail servers that send to all MX hosts of a site, and remember what they were told."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from random import Random
from typing import Any, TypeVar

import attrs

from .harness.client import Client
from .harness.policy import PolicyClient
from .harness.socketmap import SocketmapClient
from .several_hosts import DELAY, Host, Site

C = TypeVar("C", bound=Client)

#: Who sends, beside the mail's own number.
CLIENT = {"client_address": "192.0.2.7", "client_name": "mx.example.com", "sender": "alice@example.com"}

#: What is in the map: enough that each memcached has some of it.
ALIASES = {b"user%d@example.org" % number: b"mailbox%d@example.net" % number for number in range(60)}

#: Senders of each site, and the seconds between two mails of one of them.
SENDERS, PAUSE = 3, 0.02


@attrs.define(eq=False)
class Mail:
    """A mail, and what its sender knows.

    :ivar first: when it was first tried.
    :ivar deferred: when, and by which host, it was told to wait; nobody has forgotten it from then on.
    :ivar certain: whether nobody but its sender's last host can have let it pass before.
    """

    recipient: str
    first: float = 0.0
    deferred: float = 0.0
    host: int = -1
    certain: bool = True


@attrs.frozen
class Event:
    """A question and its answer.

    :ivar kind: ``new``, ``early``, ``retry``, ``known``: of a mail; ``found``, ``missing``: of a map's key.
    :ivar elsewhere: whether it was another host that was asked before.
    """

    kind: str
    what: object
    host: int
    elsewhere: bool
    began: float
    ended: float
    answer: bytes
    certain: bool = True

    @property
    def seconds(self) -> float:
        return self.ended - self.began


class Lost(Exception):
    """The host was killed while it was asked."""


class Connections:
    """One client's connections to each host; made anew when the host was killed, and only then."""

    def __init__(self, hosts: tuple[Host, Host]) -> None:
        self._hosts = hosts
        self._open: dict[tuple[int, object], tuple[int, Any]] = {}

    def request(self, number: int, attributes: dict[str, str]) -> bytes:
        """Ask a host's greylist.

        :raises Lost: the host is away, or just was.
        """
        with self._client(number, PolicyClient, self._hosts[number].policy_addresses[0]) as client:
            return client.ask(attributes)

    def look_up(self, number: int, key: bytes) -> bytes:
        """Ask a host's map.

        :raises Lost: the host is away, or just was.
        """
        with self._client(number, SocketmapClient, self._hosts[number].addresses[0]) as client:
            return client.ask("aliases", key)

    @contextmanager
    def _client(self, number: int, kind: Callable[[str], C], address: str) -> Iterator[C]:
        host = self._hosts[number]
        lives, client = self._open.pop((number, kind), (host.lives, None))
        try:
            if client is None:
                client = kind(address)
            yield client
        except (OSError, EOFError):
            if client is not None:
                client.close()
            if lives % 2 == 0 and host.lives == lives:  # it was not killed
                raise
            raise Lost from None
        self._open[number, kind] = lives, client

    def close(self) -> None:
        for _, client in self._open.values():
            client.close()


class Load:
    """Senders, and Postfix daemons that look addresses up.

    :ivar events: what was asked and answered.
    :ivar faults: what must not happen to a client.
    :ivar mails: all that the hosts have promised to remember.
    """

    def __init__(self, site: Site) -> None:
        self.events: list[Event] = []
        self.faults: list[str] = []
        self.mails: list[Mail] = []
        self._site = site
        self._ended = threading.Event()
        self._numbers = itertools.count()
        self._passed: list[Mail] = []
        targets = [*[self._send] * SENDERS, self._send_again, self._find, self._miss]
        self._threads = [threading.Thread(target=self._run, args=seeded) for seeded in enumerate(targets)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _run(self, seed: int, target: Callable[[Random, Connections], Iterator[None]]) -> None:
        try:
            with closing(Connections(self._site.hosts)) as connections:
                for _ in target(Random(seed), connections):
                    if self._ended.wait(PAUSE):
                        break
        except Exception as error:
            self.faults.append(f"{type(error).__name__}: {error}")
            raise

    # Mail.

    def _send(self, random: Random, connections: Connections) -> Iterator[None]:
        """Send new mails, and try each again when the delay is over."""
        waiting: list[Mail] = []
        while True:
            mail = self._try_new(connections, random)
            if mail is not None:
                waiting.append(mail)
            for _ in range(4):
                yield
            while waiting and time.monotonic() >= waiting[0].deferred + DELAY:
                mail = waiting.pop(0)
                self._ask(connections, "retry", mail, 1 - mail.host)
                self._passed.append(mail)
                yield

    def _send_again(self, random: Random, connections: Connections) -> Iterator[None]:
        """Send what has passed: what came last, which no cache may have had, and what it may have forgotten."""
        while True:
            yield
            if self._passed:
                mail = random.choice(self._passed[-10:] if random.random() < 0.5 else self._passed)
                self._ask(connections, "known", mail, random.randrange(2))

    def _try_new(self, connections: Connections, random: Random) -> Mail | None:
        mail = Mail(f"{next(self._numbers)}@example.org", time.monotonic())
        new = self._ask(connections, "new", mail, random.randrange(2))
        if not new.answer.startswith(b"DEFER"):
            return None
        mail.deferred, mail.host = new.ended, new.host
        self.mails.append(mail)
        if random.random() < 0.3:
            self._ask(connections, "early", mail, 1 - mail.host)
        return mail

    def _ask(self, connections: Connections, kind: str, mail: Mail, number: int) -> Event:
        request = {**CLIENT, "recipient": mail.recipient}

        while True:
            began = time.monotonic()
            try:
                answer = connections.request(number, request)
            except Lost:
                # It may have been heard before, which makes a retry a later mail, and a new one an early retry.
                mail.certain = False
                number = 1 - number
                continue
            ended = time.monotonic()
            elsewhere = number != mail.host
            event = Event(kind, mail, number, elsewhere, began, ended, answer, mail.certain)
            if kind == "early" and ended - mail.first >= DELAY - 1:  # records have whole seconds
                mail.certain = False
            else:
                self.events.append(event)
            return event

    # Maps.

    def _find(self, random: Random, connections: Connections) -> Iterator[None]:
        for key in itertools.cycle(ALIASES):
            self._look_up(connections, "found", key, random.randrange(2))
            yield

    def _miss(self, random: Random, connections: Connections) -> Iterator[None]:
        for number in itertools.count():
            self._look_up(connections, "missing", b"nobody%d@example.org" % number, random.randrange(2))
            yield

    def _look_up(self, connections: Connections, kind: str, key: bytes, number: int) -> None:
        while True:
            began = time.monotonic()
            try:
                answer = connections.look_up(number, key)
            except Lost:
                number = 1 - number
                continue
            self.events.append(Event(kind, key, number, False, began, time.monotonic(), answer))
            return
