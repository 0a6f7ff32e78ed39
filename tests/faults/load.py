"""Users of everything at once: they ask and change, and count what they are told."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from random import Random
from threading import Event, Thread
from typing import TYPE_CHECKING, Generic, TypeVar

from tests.integration.harness.client import Client
from tests.integration.harness.policy import PolicyClient
from tests.integration.harness.socketmap import SocketmapClient

from .report import Row
from .truth import Triplet, Verdict

if TYPE_CHECKING:
    from typing_extensions import Self

    from .site import Site

_C = TypeVar("_C", bound=Client)

#: Look-ups that are sent at once.
BURST = 5

#: Seconds that a question may remain without an answer, far above all limits.
PATIENCE = 15.0

#: Seconds between two questions of a user.
PAUSE = 0.02


class Load:
    """Put on a site while this is entered; the sums are in a row.

    :ivar last_failure: when something was last not as usual.
    """

    def __init__(self, site: Site, row: Row, seed: int) -> None:
        self.last_failure = 0.0
        self._site = site
        self._row = row
        self._end = Event()
        users: list[Callable[[Random], None]] = [self._look_up, self._look_up, self._look_up_newly, self._measure_lag]
        users += [partial(self._mail, mine) for mine in site.triplets]
        if site.writer is not None:
            users.append(self._change)
        self._threads = [
            Thread(target=self._run, args=(user, Random(seed * 100 + number)), daemon=True)
            for number, user in enumerate(users)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def _run(self, user: Callable[[Random], None], random: Random) -> None:
        try:
            user(random)
        except Exception as error:  # noqa: BLE001 (it must not go unseen in a thread)
            self._row.not_answered("unanswered", f"the load itself: {error!r}")

    def _turns(self) -> Iterator[None]:
        while not self._end.wait(PAUSE):
            yield

    def _look_up(self, random: Random) -> None:
        """Be a client that sends several look-ups at once, over one connection."""
        connection = Connection(self._row, lambda: SocketmapClient(self._site.socketmap, PATIENCE))
        for _ in self._turns():
            connection.use(partial(self.ask, question=self._site.question(random, BURST)))
        connection.close()

    def _look_up_newly(self, random: Random) -> None:
        """Be many clients: each makes a connection for one look-up."""
        connection = Connection(self._row, lambda: SocketmapClient(self._site.socketmap, PATIENCE))
        for _ in self._turns():
            connection.use(partial(self.ask, question=self._site.question(random, 1)))
            connection.close()

    def ask(self, client: SocketmapClient, question: tuple[str, list[bytes]]) -> None:
        """Look up keys of a map, and judge the answers."""
        name, keys = question
        asked = time.monotonic()
        replies = client.ask_all(name, keys)
        answered = time.monotonic()
        for key, reply in zip(keys, replies, strict=True):
            verdict, age = self._site.judge(name, key, reply, asked, answered)
            if verdict is Verdict.FAILED:
                self.last_failure = answered
            text = f"{name}:{key!r} is {reply!r}, asked {asked:.2f}, answered {answered:.2f}"
            self._row.judged(verdict, answered - asked, age, text=text)

    def _mail(self, mine: list[Triplet], random: Random) -> None:
        """Be a client of the policy: half of its mails are new, the others are tried again."""
        connection = Connection(self._row, lambda: PolicyClient(self._site.policy, PATIENCE))
        for _ in self._turns():
            if mine and random.random() < 0.5:
                triplet = random.choice(mine[-50:])
            else:
                triplet = self._site.new_triplet()
                mine.append(triplet)
            connection.use(partial(self.mail, triplet=triplet))
            if triplet.passes > 2:
                mine.remove(triplet)
        connection.close()

    def mail(self, client: PolicyClient, triplet: Triplet) -> None:
        """Ask for a triplet, and judge the action."""
        site, asked = self._site, time.monotonic()
        clock = site.clock_is_right
        action = client.ask(site.mail(triplet))
        answered = time.monotonic()
        text = f"{triplet} got {action!r}, asked {asked:.2f}, answered {answered:.2f}"
        verdict = triplet.judge(action, site.delay, asked, answered, clock=clock and site.clock_is_right)
        if verdict is Verdict.FAILED:
            self.last_failure = answered
        self._row.judged(verdict, answered - asked, policy=True, text=text)

    def _change(self, random: Random) -> None:
        """Be an administrator."""
        site = self._site
        assert site.writer is not None
        for _ in self._turns():
            key = random.choice(site.changing)
            if site.change(key, delete=random.random() < 0.1):
                self._row.updates += 1

    def _measure_lag(self, random: Random) -> None:
        """See how long the tests have to wait for a processor."""
        begin = time.monotonic()
        for _ in self._turns():
            now = time.monotonic()
            self._row.lag = max(self._row.lag, now - begin - PAUSE)
            begin = time.monotonic()


class Connection(Generic[_C]):
    """One connection at a time, made when it is needed; what goes wrong with it is counted."""

    def __init__(self, row: Row, make: Callable[[], _C]) -> None:
        self._row = row
        self._make = make
        self._client: _C | None = None

    def use(self, action: Callable[[_C], None]) -> None:
        """Do something with the connection, if there can be one."""
        try:
            client = self._client = self._client or self._make()
        except OSError as error:
            self._row.not_answered("refused", repr(error))
            return
        try:
            action(client)
        except TimeoutError:
            self._row.not_answered("unanswered", f"no answer within {PATIENCE:g} s")
            self.close()
        except (OSError, EOFError) as error:
            self._row.not_answered("dropped", repr(error))
            self.close()

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
