"""Mail servers that send to all MX hosts of a site, and remember what they were told."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from random import Random

import attrs

from .harness.client import Client
from .harness.policy import PolicyClient
from .harness.socketmap import SocketmapClient
from .several_hosts import DELAY, Host, Site

#: Who sends, beside the mail's own number.
CLIENT = {"client_address": "192.0.2.7", "client_name": "mx.example.com", "sender": "alice@example.com"}

#: What is in the map.
ALIASES = {b"user%d@example.org" % number: b"mailbox%d@example.net" % number for number in range(20)}

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
    """One sender's connections to each host; made anew when the host was killed, and only then."""

    def __init__(self, hosts: tuple[Host, Host], connect: Callable[[Host], Client]) -> None:
        self._hosts = hosts
        self._connect = connect
        self._open: list[tuple[int, Client] | None] = [None, None]

    def ask(self, number: int, ask: Callable[[Client], bytes]) -> bytes:
        """Ask a host.

        :raises Lost: it is away, or just was.
        """
        host = self._hosts[number]
        lives = host.lives
        try:
            if self._open[number] is None:
                self._open[number] = lives, self._connect(host)
            used = self._open[number]
            assert used is not None
            lives = used[0]
            return ask(used[1])
        except (OSError, EOFError):
            self.close(number)
            if lives % 2 == 0 and host.lives == lives:  # it was not killed
                raise
            raise Lost from None

    def close(self, number: int) -> None:
        used, self._open[number] = self._open[number], None
        if used is not None:
            used[1].close()

    def close_all(self) -> None:
        for number in range(len(self._open)):
            self.close(number)


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
        self._threads = [threading.Thread(target=self._run, args=(self._send, seed)) for seed in range(SENDERS)]
        self._threads.append(threading.Thread(target=self._run, args=(self._look_up, SENDERS)))

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _run(self, target: Callable[[Random], Iterator[None]], seed: int) -> None:
        try:
            with closing(target(Random(seed))) as steps:  # type: ignore[type-var]
                for _ in steps:
                    if self._ended.wait(PAUSE):
                        break
        except Exception as error:
            self.faults.append(f"{type(error).__name__}: {error}")
            raise

    # Mail.

    def _send(self, random: Random) -> Iterator[None]:
        connections = Connections(self._site.hosts, lambda host: PolicyClient(host.policy_addresses[0]))
        waiting: list[Mail] = []
        known: list[Mail] = []
        try:
            for number in itertools.count():
                if number % 4 == 0:
                    mail = self._try_new(connections, random)
                    if mail is not None:
                        waiting.append(mail)
                yield
                while waiting and time.monotonic() >= waiting[0].deferred + DELAY:
                    mail = waiting.pop(0)
                    self._ask(connections, "retry", mail, 1 - mail.host)
                    known.append(mail)
                    yield
                if known:
                    # Those that came last, which no cache may have had, and old ones, which it may have forgotten.
                    mail = random.choice(known[-10:] if random.random() < 0.5 else known)
                    self._ask(connections, "known", mail, random.randrange(2))
                    yield
        finally:
            connections.close_all()

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

        def ask(client: Client) -> bytes:
            assert isinstance(client, PolicyClient)
            return client.ask(request)

        while True:
            began = time.monotonic()
            try:
                answer = connections.ask(number, ask)
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

    def _look_up(self, random: Random) -> Iterator[None]:
        connections = Connections(self._site.hosts, lambda host: SocketmapClient(host.addresses[0]))
        keys = list(ALIASES)
        try:
            while True:
                self._look_up_key(connections, "found", random.choice(keys), random.randrange(2))
                yield
                missing = b"nobody%d@example.org" % next(self._numbers)
                self._look_up_key(connections, "missing", missing, random.randrange(2))
                yield
        finally:
            connections.close_all()

    def _look_up_key(self, connections: Connections, kind: str, key: bytes, number: int) -> None:
        def ask(client: Client) -> bytes:
            assert isinstance(client, SocketmapClient)
            return client.ask("aliases", key)

        while True:
            began = time.monotonic()
            try:
                answer = connections.ask(number, ask)
            except Lost:
                number = 1 - number
                continue
            self.events.append(Event(kind, key, number, False, began, time.monotonic(), answer))
            return
