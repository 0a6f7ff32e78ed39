"""The two that are compared: a real postgrey, and our policy at a time that the requests set."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.logger import LogEvent, capturedLogs, formatEvent
from zope.interface import implementer

from socketmap_memcache.config.parameters import Parameters
from socketmap_memcache.config.syntax import parse
from socketmap_memcache.policies.greylist.lists import open_lists
from socketmap_memcache.policies.greylist.policy import GreylistPolicy
from socketmap_memcache.policies.greylist.settings import read_settings
from socketmap_memcache.tables.interface import ICursor, ITable
from socketmap_memcache.tables.lmdb import LmdbStore
from socketmap_memcache.tables.memory import open_memory
from socketmap_memcache.tables.store_table import StoreTable
from tests.unit.tables.store_reactor import StoreReactor

from .greylist_cases import BEGIN, Attributes
from .harness.policy import PolicyClient
from .harness.postgrey import Postgrey

if TYPE_CHECKING:
    from typing_extensions import Self

_ESCAPED = re.compile(rb"%(%|[0-9A-F]{2})")


@attrs.frozen
class Answer:
    """What one request got.

    :ivar lines: what was logged: the decision, and perhaps more.
    """

    action: bytes
    lines: list[str]


@implementer(ITable)
class EverlastingTable:
    """Forgets nothing, not even what should live for some time only: postgrey's database, as long as it is not cleaned.

    :ivar entries: what is in it.
    """

    name = "everlasting:"

    def __init__(self) -> None:
        self.entries: dict[bytes, bytes] = {}

    def lookup(self, key: bytes) -> Deferred[bytes | None]:
        return succeed(self.entries.get(key))

    def update(self, key: bytes, value: bytes, ttl: int | None = None) -> Deferred[bool]:
        self.entries[key] = value
        return succeed(True)

    def delete(self, key: bytes) -> Deferred[bool]:
        return succeed(self.entries.pop(key, None) is not None)

    def cursor(self) -> ICursor:
        return open_memory("empty", StoreReactor().context()).cursor()

    def close(self) -> None: ...


class Ours:
    """Our policy; a context manager."""

    def __init__(self, main_cf: str, table: ITable | None = None, lmdb: Path | None = None) -> None:
        """:param main_cf: its parameters, without the table.

        :param table: in place of one in memory.
        :param lmdb: the path of a file for one on the disk.
        """
        self.clock = StoreReactor()
        self.clock.rightNow = BEGIN
        parameters = Parameters(parse(main_cf.encode(), "main.cf"))
        settings = read_settings(parameters)
        lists = open_lists(parameters, settings, self.clock.context())
        parameters.unknown(fatal=True)
        parameters.finish([])
        self.store: StoreTable | None = None
        if lmdb is not None:
            store = LmdbStore("lmdb:", lmdb, create=True, clock=self.clock.seconds)
            table = self.store = StoreTable("lmdb:", store, self.clock)
        self.policy = GreylistPolicy(
            settings, lists, table or open_memory("greylist", self.clock.context()), self.clock
        )
        self.logged: Sequence[LogEvent] = []
        self._stack = ExitStack()

    def ask(self, attributes: Attributes) -> Answer:
        """Let it decide, at the time that ``policy_test_time`` says."""
        self.clock.rightNow = float(attributes["policy_test_time"])
        self.clock.advance(0)
        before = len(self.logged)
        request = {name.encode(): value.encode() for name, value in attributes.items()}
        action = self.clock.result(self.policy.decide(request))
        while self.store is not None and self.store._pending:  # an answer need not wait for them, but the clock has to
            self.clock.run_call()
        self.clock.advance(0.5)  # lines are logged after a moment
        events = [event for event in self.logged[before:] if event["log_namespace"].endswith(".GreylistPolicy")]
        return Answer(action, [line for event in events for line in formatEvent(event).splitlines()])

    def __enter__(self) -> Self:
        self.logged = self._stack.enter_context(capturedLogs())
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self.policy.close()


def ask_postgrey(postgrey: Postgrey, asked: list[Attributes]) -> list[Answer]:
    """Return what postgrey says to requests, in their order."""
    before = len(postgrey.log)
    with PolicyClient(postgrey.address) as client:
        actions = [client.ask(attributes) for attributes in asked]
    logged, lines = [list[str]()], unescaped(postgrey.log[before:]).splitlines()
    for line in lines:
        logged[-1].append(line)
        if "action=" in line:
            logged.append([])  # each request's last line
    assert logged.pop() == []
    return [Answer(*answer) for answer in zip(actions, logged, strict=True)]


def unescaped(log: str) -> str:
    """Return postgrey's log with text as it was: it doubles percent signs, and writes bytes above 126 as %XX."""
    escaped = _ESCAPED.sub(lambda found: b"%" if found[1] == b"%" else bytes.fromhex(found[1].decode()), log.encode())
    return escaped.decode(errors="backslashreplace")
