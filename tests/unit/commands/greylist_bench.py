"""All that an operation of ``socketmap-memcache greylist`` needs, with a table in memory and a time that is set."""

from __future__ import annotations

import argparse
import io
from importlib import import_module
from types import SimpleNamespace
from typing import Any, cast

from twisted.internet.defer import Deferred, fail, succeed

from socketmap_memcache.commands import greylist
from socketmap_memcache.commands.greylist_session import Session
from socketmap_memcache.commands.map_console import Console
from socketmap_memcache.commands.map_streams import Sink
from socketmap_memcache.config.parameters import Parameters
from socketmap_memcache.config.syntax import parse as parse_config
from socketmap_memcache.memcache.pool import ClientPool
from socketmap_memcache.policies.greylist.settings import read_settings
from socketmap_memcache.tables.interface import ITable
from socketmap_memcache.tables.memory import MemoryTable
from socketmap_memcache.tables.read_only import RefusingCursor
from socketmap_memcache.tables.registry import TableContext
from tests.unit.deferreds import result_of

from .reactor import Reactor

NOW = 1_800_000_000
HASH = "0123456789abcdef0123456789abcdef01234567"


def reactor() -> Reactor:
    """Give a reactor at a time that is known."""
    made = Reactor()
    made.advance(NOW)
    return made


class Output:
    """Keeps what is written.

    :ivar writes: how often.
    """

    def __init__(self) -> None:
        self.text = ""
        self.writes = 0

    def write(self, data: bytes) -> Deferred[None]:
        assert data
        self.text += data.decode()
        self.writes += 1
        return succeed(None)


def options_of(*arguments: str) -> argparse.Namespace:
    """Parse a command line: what follows ``greylist``."""
    parser = argparse.ArgumentParser()
    greylist.add_to(parser.add_subparsers())
    return parser.parse_args(["greylist", *arguments])


class Bench:
    """A session.

    :ivar output: what an operation printed.
    :ivar stderr: its messages.
    """

    def __init__(self, config: str = "", table: ITable | None = None) -> None:
        """:param config: what main.cf says."""
        self.reactor = reactor()
        context = TableContext(ClientPool(self.reactor))
        parameters = Parameters(parse_config(config.encode(), "main.cf"))
        settings = read_settings(parameters)
        parameters.finish([])
        self.table: ITable = MemoryTable("memory:g", 1 << 20, context) if table is None else table
        self.output = Output()
        self.messages = io.StringIO()
        console = Console("greylist", self.messages)
        sink = cast("Sink", self.output)
        self.session = Session(parameters, settings, self.table, context, console, sink, NOW)

    @property
    def stderr(self) -> str:
        return self.messages.getvalue()

    def put(self, entries: dict[str, str]) -> None:
        """Fill the table."""
        for key, value in entries.items():
            assert result_of(self.table.update(key.encode(), value.encode()))

    def get(self, key: str) -> str | None:
        value = result_of(self.table.lookup(key.encode()))
        return None if value is None else value.decode()

    def run(self, *arguments: str) -> str:
        """Do an operation that must succeed, and return what it printed."""
        before = len(self.output.text)
        assert self.status(*arguments) == 0
        return self.output.text[before:]

    def status(self, *arguments: str) -> int:
        """Do an operation, and return its exit status."""
        options = options_of(*arguments)
        module, _, function = options.operate.partition(":")
        operate: greylist.Operate = getattr(import_module(f"socketmap_memcache.commands.{module}"), function)
        status: int = result_of(operate(self.session, options))
        return status


def refusing_table(error: Exception, name: str = "broken") -> Any:
    """Make a table that fails whatever it is asked."""
    return SimpleNamespace(
        name=name,
        lookup=lambda _key: fail(error),
        update=lambda _key, _value, _ttl=None: fail(error),
        delete=lambda _key: fail(error),
        cursor=lambda: RefusingCursor(error),
        close=lambda: None,
    )


def picky_table() -> Any:
    """Make a table that is empty, and takes no key."""
    return SimpleNamespace(
        name="picky",
        lookup=lambda _key: succeed(None),
        update=lambda _key, _value, _ttl=None: succeed(False),
        close=lambda: None,
    )
