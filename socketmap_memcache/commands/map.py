"""``socketmap-memcache map``: postmap(1) for the tables of this service.

Options, output, exit status and messages are postmap's. What is different: look-ups are sent hundreds at a time, what
was found before a failure is printed, and a table cannot be made anew from a source file.
"""

from __future__ import annotations

import getopt
import os
import sys
from collections.abc import Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from socketmap_memcache.commands.map_changes import Delete, Duplicates, Update
from socketmap_memcache.commands.map_console import Console, FatalError, printable
from socketmap_memcache.commands.map_query import Query, Walk
from socketmap_memcache.commands.map_streams import STDIN, STDOUT, Sink, Source
from socketmap_memcache.commands.map_tables import DEFAULT_SOCKETS, Tables, proxy_sockets
from socketmap_memcache.commands.operation import Operation
from socketmap_memcache.memcache.pool import ClientPool
from socketmap_memcache.name_resolver import use_own_resolver
from socketmap_memcache.tables.registry import TableContext

NAME = "socketmap-memcache map"

USAGE = f"""\
usage: {NAME} [-fv] -q key type:table ...    print the value of a key; with -q - of each key on standard input
       {NAME} [-fv] -d key type:table ...    delete a key; with -d - each key on standard input
       {NAME} [-fv] -s type:table            print all entries
       {NAME} [-frvw] -i type:table          store the "key value" lines of standard input
"""

_HELP = f"""\
{USAGE}
postmap(1) for the tables of this service. The exit status is 0 where a key was found, deleted, or all was stored.

  -c DIR  the configuration of a Postfix whose proxymap is to be asked for proxy: tables
  -f  keys are not folded to lower case
  -r  replace existing entries, without a warning
  -v  verbose: log to standard error; twice for more
  -w  keep existing entries, without a warning

Without -r it is asked first which keys exist, and the others are stored then: an entry that another process stores in
between is replaced.
"""


@attrs.frozen
class Options:
    """A command line.

    :ivar operation: the letter of the option: q, d, s or i.
    :ivar key: of -q or -d.
    :ivar config_directory: of the Postfix whose proxymap is used; empty for the usual sockets.
    """

    operation: str
    key: bytes
    tables: list[str]
    fold_keys: bool
    duplicates: Duplicates
    verbose: int
    config_directory: str = ""


def parse(arguments: Sequence[str]) -> Options:
    """Read a command line as postmap does.

    :raises FatalError: it is wrong.
    """
    operations: list[tuple[str, bytes]] = []
    fold_keys, duplicates, verbose, config_directory = True, Duplicates.WARN, 0, ""
    try:
        found, tables = getopt.getopt(list(arguments), "bc:d:fFhijmnNopq:rsuUvw")
    except getopt.GetoptError as error:
        raise FatalError(f"{error}\n{USAGE}") from None
    for option, value in found:
        letter = option[1]
        if letter in "dqsi":
            operations.append((letter, os.fsencode(value)))
        elif letter == "c":
            config_directory = value
        elif letter == "f":
            fold_keys = False
        elif letter == "r":
            duplicates = Duplicates.REPLACE
        elif letter == "w":
            duplicates = Duplicates.KEEP
        elif letter == "v":
            verbose += 1
        else:
            raise FatalError(f"option -{letter} of postmap is not supported\n{USAGE}")
    if len(operations) > 1:
        raise FatalError("specify only one of -d -i -q or -s")
    if not tables:
        raise FatalError(USAGE)
    if not operations:
        raise FatalError("making a table from its source file is left to postmap; -i adds to one that exists")
    operation, key = operations[0]
    if operation in "si" and len(tables) > 1:
        raise FatalError(f"specify only one table with -{operation}")
    return Options(operation, key, tables, fold_keys, duplicates, verbose, config_directory)


def main(arguments: Sequence[str]) -> int:
    """Run the subcommand.

    :param arguments: what follows ``map``.
    :return: the exit status.
    """
    if "--help" in arguments:
        print(_HELP, end="")
        return 0
    console = Console(NAME, sys.stderr)
    try:
        options = parse(arguments)
        sockets = proxy_sockets(options.config_directory)
    except FatalError as error:
        console.fatal(str(error))
        return 1
    from twisted.internet import reactor

    use_own_resolver(reactor)
    return Run(options, console, reactor, sockets).run()


class Run(Operation):
    """An operation of the subcommand."""

    def __init__(
        self, options: Options, console: Console, reactor: Any, sockets: tuple[str, str] = DEFAULT_SOCKETS
    ) -> None:
        """Prepare; nothing is opened.

        :param sockets: of proxymap and proxywrite.
        """
        super().__init__(console, reactor)
        self._options = options
        self._source = Source(STDIN, reactor)
        context = TableContext(ClientPool(reactor), [], *sockets, fold_keys=options.fold_keys)
        self._tables = Tables(options.tables, context, console, create=options.operation == "i")

    def run(self) -> int:
        """Run to the end, and return the exit status."""
        return self._run(self._options.verbose, changes=self._options.operation in "di")

    def _operate(self) -> Deferred[int]:
        options, tables, console = self._options, self._tables, self._console
        sink = Sink(STDOUT, self._reactor)
        source = self._source if options.key == b"-" else None
        if options.operation == "q":
            query = Query(tables, console, sink)
            return query.all(source) if source else query.one(options.key)
        if options.operation == "d":
            delete = Delete(tables, console)
            return delete.all(source) if source else delete.one(options.key)
        if options.operation == "s":
            return Walk(tables, console, sink).run()
        return Update(tables, console, options.duplicates).run(self._source)

    def _take_no_more(self) -> None:
        self._reactor.callFromThread(self._source.stop)

    def _explain(self, failure: Failure) -> bool:
        if failure.check(FatalError):
            self._console.fatal(failure.getErrorMessage())
        elif failure.check(OSError):
            self._console.fatal(printable(failure.getErrorMessage()))
        else:
            return False
        return True

    def _close(self) -> None:
        self._tables.close()
        if self._source.is_waiting and self._failure is None:
            # A thread waits for input that nobody needs: it must not hold up the end, as it would that of the reactor.
            os._exit(self._status)
