"""What all operations of ``socketmap-memcache greylist`` need: the configuration, the table, a reactor, an end."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from typing import TYPE_CHECKING, Any

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from socketmap_memcache.commands.map_console import Console, FatalError, printable
from socketmap_memcache.commands.map_streams import STDOUT, Sink
from socketmap_memcache.commands.operation import Operation
from socketmap_memcache.config.parameters import Parameters
from socketmap_memcache.config.service import read_parameters
from socketmap_memcache.errors import ConfigurationError, Problem, TableError
from socketmap_memcache.memcache.interface import ICache
from socketmap_memcache.memcache.pool import ClientPool
from socketmap_memcache.name_resolver import use_own_resolver
from socketmap_memcache.policies.greylist.settings import PARAMETERS, Settings, read_settings
from socketmap_memcache.tables.interface import ITable
from socketmap_memcache.tables.options import open_with_options
from socketmap_memcache.tables.registry import TableContext

if TYPE_CHECKING:
    from socketmap_memcache.commands.greylist import Operate

NAME = "socketmap-memcache greylist"


@attrs.define
class Session:
    """What an operation works with.

    :ivar parameters: the service's main.cf.
    :ivar settings: what it says about greylisting.
    :ivar table: greylist_table.
    :ivar context: opens other tables.
    :ivar sink: standard output.
    :ivar now: the time of the command, in seconds since the epoch.
    :ivar stopped: whether somebody wants it to end: what makes many changes asks between two of them.
    """

    parameters: Parameters
    settings: Settings
    table: ITable
    context: TableContext
    console: Console
    sink: Sink
    now: int
    stopped: bool = False

    def check(self) -> None:
        """Look for what was wrong with what has been opened; print warnings.

        :raises ConfigurationError: with all errors.
        """
        self.parameters.finish([])
        for warning in self.context.warnings:
            self.console.warn(str(warning))
        self.context.warnings.clear()


class Pool(ClientPool):
    """Remembers whether a cache in the process' own memory has been opened."""

    has_memory = False

    def memory(self, name: str, size_limit: int) -> ICache:
        self.has_memory = True
        return super().memory(name, size_limit)


def run(options: argparse.Namespace, operate: Operate) -> int:
    """Do an operation with a reactor around it, and print what goes wrong.

    :param options: ``config``, ``set``, ``changes`` (whether it changes the table), and what else it takes.
    :return: the exit status.
    """
    from twisted.internet import reactor

    use_own_resolver(reactor)
    return Run(options, operate, Console(NAME, sys.stderr), reactor).run()


class Run(Operation):
    """An operation of the subcommand."""

    def __init__(self, options: argparse.Namespace, operate: Operate, console: Console, reactor: Any) -> None:
        """Prepare; nothing is opened."""
        super().__init__(console, reactor)
        self._options = options
        self._operation = operate
        self._session: Session | None = None

    def run(self) -> int:
        """Run to the end, and return the exit status."""
        return self._run(0, self._options.changes)

    def _operate(self) -> Deferred[int]:
        self._session = open_session(self._options, self._console, self._reactor)
        if self._signal:  # while it was opened
            return succeed(1)
        return self._operation(self._session, self._options)

    def _take_no_more(self) -> None:
        if self._session is not None:
            self._session.stopped = True

    def _explain(self, failure: Failure) -> bool:
        if isinstance(failure.value, ConfigurationError):
            for problem in failure.value.problems:
                self._console.log("error", str(problem))
        elif failure.check(FatalError, TableError, OSError):
            self._console.log("error", printable(failure.getErrorMessage()))
        else:
            return False
        return True

    def _close(self) -> None:
        if self._session is not None:
            self._session.table.close()


def open_session(options: argparse.Namespace, console: Console, reactor: Any) -> Session:
    """Read the configuration and open the table.

    :raises ConfigurationError: with everything that is wrong.
    """
    pool = Pool(reactor)
    context = TableContext(pool)
    parameters = read_parameters(options.config, options.set, context)
    settings = read_settings(parameters)
    spec = parameters.text("greylist_table", PARAMETERS["greylist_table"])
    parameters.finish(context.warnings)
    table = _open_table(spec, context)
    if pool.has_memory:
        text = "the service has a cache of its own (memcache = memory:) and sees changes only when its ttl is over"
        console.warn(f"greylist_table = {table.name}: {text}")
    session = Session(parameters, settings, table, context, console, Sink(STDOUT, reactor), int(reactor.seconds()))
    session.check()
    return session


def _open_table(spec: str, context: TableContext) -> ITable:
    what = f"greylist_table = {spec}"
    if spec.startswith("memory:"):
        text = f"{what}: it is in the memory of the service, where no other program can see it"
        raise ConfigurationError([Problem(text)])
    try:
        return open_with_options(spec, context)
    except ConfigurationError as error:
        text = "; ".join(map(str, error.problems))
        if os.strerror(errno.ENOENT) in text:  # postmap is no help for a table that is not made of a text
            text = f"{text.partition(' (make it with')[0]} (the service makes it when it first starts)"
        raise ConfigurationError([Problem(f"{what}: {text}")]) from error
