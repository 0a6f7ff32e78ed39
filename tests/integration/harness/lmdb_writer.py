"""A process that updates an ``lmdb:`` table, and prints the number of each update that was acknowledged.

    python lmdb_writer.py NAME PREFIX COUNT [LARGEST]

The keys are PREFIX0, PREFIX1 and so on; LARGEST is a limit to the size of files, in bytes. After an update that failed
it prints the error, and then what a look-up of the first key gives, and ends.
"""

from __future__ import annotations

import resource
import sys
from typing import Any

import attrs
from twisted.internet import defer, reactor, task
from twisted.internet.defer import Deferred

from socketmap_memcache.errors import TableError
from socketmap_memcache.tables.lmdb import open_lmdb
from socketmap_memcache.tables.registry import TableContext

AT_ONCE = 20


@attrs.frozen
class Clients:
    reactor: Any = reactor


async def write(name: str, prefix: str, count: int) -> None:
    table = open_lmdb(name, TableContext(clients=Clients()))  # type: ignore[arg-type]

    async def update(number: int) -> None:
        await table.update(b"%s%d" % (prefix.encode(), number), b"value of %d, %s" % (number, b"x" * 200))
        print(number, flush=True)

    try:
        for first in range(0, count, AT_ONCE):
            numbers = range(first, min(first + AT_ONCE, count))
            updates = [Deferred.fromCoroutine(update(number)) for number in numbers]
            await defer.gatherResults(updates, consumeErrors=True)
    except defer.FirstError as error:
        error.subFailure.trap(TableError)
        print(error.subFailure.getErrorMessage())
        print(await table.lookup(b"%s0" % prefix.encode()), flush=True)
    table.close()


if __name__ == "__main__":
    if len(sys.argv) > 4:
        largest = int(sys.argv[4])
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    task.react(lambda _: Deferred.fromCoroutine(write(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
