"""``store_table``: a table of keys and values in a PostgreSQL database: the blocking side.

The table is ``(key text COLLATE "C" PRIMARY KEY, value text NOT NULL, expires timestamptz)``. An entry whose
``expires`` is over does not exist; what time it is the database says, to all services alike. Such entries are deleted a
few at a time, after updates.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from socketmap_memcache.errors import TableError
from socketmap_memcache.tables.interface import RefusedError
from socketmap_memcache.tables.pgsql_connection import Connection, ConnectionFailure, Row, StatementError
from socketmap_memcache.tables.pgsql_hosts import Hosts
from socketmap_memcache.tables.store import READ_AHEAD, Kind, Operation

#: Bytes of a key: an index of PostgreSQL takes about 2700.
KEY_LIMIT = 2000

#: Entries whose time is over that are deleted at once, and the seconds between two times when all are.
PURGE_LIMIT = 500
PURGE_PAUSE = 60.0

_LONGEST_TTL = 1000 * 365 * 24 * 60 * 60

# In this order the kinds are done in one step.
_PLACES = {Kind.LOOKUP: 0, Kind.UPDATE: 1, Kind.DELETE: 2}

_NO_TABLE = "42P01"
_READ_ONLY = "25006"

_NAME = re.compile(r"(?:([a-z_][a-z0-9_]{0,62})\.)?([a-z_][a-z0-9_]{0,52})", re.ASCII | re.IGNORECASE)

# Those that lock rows do so in the order of the keys, so that they never wait for each other in a circle.
_LOOKUP = "SELECT key, value FROM {table} WHERE key = ANY ($1::text[]) AND (expires > now()) IS NOT FALSE"
_UPDATE = """\
INSERT INTO {table} (key, value, expires)
SELECT key, value, now() + ttl * interval '1 second'
FROM unnest($1::text[], $2::text[], $3::float8[]) AS _ (key, value, ttl)
ON CONFLICT (key) DO UPDATE SET value = EXCLUDED.value, expires = EXCLUDED.expires"""
_DELETE = """\
DELETE FROM {table} WHERE key IN (SELECT key FROM {table} WHERE key = ANY ($1::text[]) ORDER BY key FOR UPDATE)
RETURNING key, (expires > now()) IS NOT FALSE"""
_AFTER = """\
SELECT key, value FROM {table} WHERE key COLLATE "C" > $1 AND (expires > now()) IS NOT FALSE
ORDER BY key COLLATE "C" LIMIT $2"""
_PURGE = """\
DELETE FROM {table}
WHERE key IN (SELECT key FROM {table} WHERE expires <= now() ORDER BY expires LIMIT $1 FOR UPDATE SKIP LOCKED)
RETURNING 1"""
_CREATE = """\
CREATE TABLE IF NOT EXISTS {table} (key text COLLATE "C" PRIMARY KEY, value text NOT NULL, expires timestamptz);
CREATE INDEX IF NOT EXISTS {index} ON {table} (expires)"""


def quoted_table(name: str) -> tuple[str, str]:
    """Return the name of a table as SQL takes it, and one for its index.

    :param name: with or without a schema; its case does not matter.
    :raises ValueError: it is not a plain name.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError("write the name of a table, [schema.]table, of letters, digits and underscores")
    schema, table = match.groups()
    quoted = [f'"{part.lower()}"' for part in (schema, table) if part]
    return ".".join(quoted), f'"{table.lower()}_expires"'


def array(values: Iterable[bytes | None]) -> bytes:
    """Return an array as PostgreSQL writes it."""
    items = [
        b"NULL" if value is None else b'"%b"' % value.replace(b"\\", b"\\\\").replace(b'"', b'\\"') for value in values
    ]
    return b"{%b}" % b",".join(items)


class KeyValueStore:
    """A table of keys and values; see :class:`~socketmap_memcache.tables.store.Store`.

    Operations that wait are done as one look-up, one update and one delete, each one transaction. A connection that
    ends in the middle of one leaves it open whether it was done, so it is done again: that changes nothing, except that
    a delete then says that nothing was there.
    """

    def __init__(
        self, name: str, hosts: Hosts, table: tuple[str, str], create: bool, seconds: Callable[[], float]
    ) -> None:
        """Make a store.

        :param hosts: of which only those are used that can be written to.
        :param table: of :func:`quoted_table`.
        :param create: whether any operation makes the table if it does not exist; an update always does. (An empty
            table in place of one with the wrong name would make each look-up say: missing.)
        """
        self._name = name
        self._hosts = hosts
        self._names = {"table": table[0], "index": table[1]}
        self._create = create
        self._seconds = seconds
        self._purge_at = seconds()

    def execute(self, operations: Sequence[Operation]) -> Sequence[object]:
        """Do the operations in an order that gives each the result of their own order."""
        acts = {Kind.LOOKUP: self._lookup, Kind.UPDATE: self._update, Kind.DELETE: self._delete}
        results: dict[Operation, object] = {}
        for step in steps(operation for operation in operations if operation.kind in acts):
            for kind, act in acts.items():
                chosen = [operation for operation in step if operation.kind is kind and not operation.given_up]
                if chosen:
                    results |= self._together(chosen, act)
        for operation in operations:
            if operation.kind is Kind.AFTER:  # last, so that it comes after the changes before it
                results |= self._together([operation], self._after)
        if self._seconds() >= self._purge_at and any(each.kind is Kind.UPDATE for each in operations):
            self._purge(max(operation.deadline for operation in operations))
        return [results.get(operation) for operation in operations]

    def rest(self) -> None:
        """Close the connection until the next operation."""
        self._hosts.rest()

    def close(self) -> None:
        """Close the connection."""
        self._hosts.rest()

    def _together(
        self, operations: list[Operation], act: Callable[[list[Operation], float], dict[Operation, object]]
    ) -> dict[Operation, object]:
        try:
            return act(operations, max(operation.deadline for operation in operations))
        except TableError as error:
            return dict.fromkeys(operations, error)

    def _lookup(self, operations: list[Operation], deadline: float) -> dict[Operation, object]:
        keys = array({operation.key for operation in operations})
        found = {row[0]: row[1] for row in self._rows(_LOOKUP, [keys], deadline)}
        return {operation: found.get(operation.key) for operation in operations}

    def _update(self, operations: list[Operation], deadline: float) -> dict[Operation, object]:
        results: dict[Operation, object] = {}
        entries: dict[bytes, Operation] = {}
        for operation in operations:
            if len(operation.key) > KEY_LIMIT:
                size = len(operation.key)
                text = f"{self._name}: a key of {size} bytes cannot be stored, only {KEY_LIMIT}"
                results[operation] = RefusedError(text)
            else:
                results[operation] = True
                entries[operation.key] = operation
        if entries:
            chosen = [entries[key] for key in sorted(entries)]
            columns = [
                array(operation.key for operation in chosen),
                array(operation.value for operation in chosen),
                array(None if each.ttl is None else b"%d" % min(each.ttl, _LONGEST_TTL) for each in chosen),
            ]
            self._rows(_UPDATE, columns, deadline, create=True)
        return results

    def _delete(self, operations: list[Operation], deadline: float) -> dict[Operation, object]:
        keys = array({operation.key for operation in operations})
        deleted = {row[0]: row[1] for row in self._rows(_DELETE, [keys], deadline)}
        return {operation: deleted.get(operation.key) == b"t" for operation in operations}

    def _after(self, operations: list[Operation], deadline: float) -> dict[Operation, object]:
        (operation,) = operations
        return {operation: self._rows(_AFTER, [operation.key, b"%d" % READ_AHEAD], deadline)}

    def _purge(self, deadline: float) -> None:
        """Delete some of what has ended; if that cannot be done, it will be later."""
        self._purge_at = self._seconds() + PURGE_PAUSE
        try:
            purged = self._rows(_PURGE, [b"%d" % PURGE_LIMIT], deadline)
        except TableError:
            return
        if len(purged) == PURGE_LIMIT:
            self._purge_at = self._seconds()

    def _rows(self, sql: str, values: Sequence[bytes], deadline: float, create: bool = False) -> Sequence[Row]:
        """Execute a statement and return its rows.

        :param create: whether to make the table if there is none.
        """
        statement = sql.format_map(self._names).encode()
        return self._hosts.perform(partial(self._work, statement, values, create or self._create), deadline)

    def _work(
        self, sql: bytes, values: Sequence[bytes], create: bool, connection: Connection, deadline: float
    ) -> Sequence[Row]:
        answer = connection.ask(sql, deadline, values)
        if create and isinstance(answer, StatementError) and answer.state == _NO_TABLE:
            # Another service may do so at the same time, and that is an error for one of the two.
            made = connection.ask(_CREATE.format_map(self._names).encode(), deadline)
            answer = connection.ask(sql, deadline, values)
            if isinstance(made, StatementError) and isinstance(answer, StatementError):
                answer = made
        if not isinstance(answer, StatementError):
            return answer or []
        if answer.state == _READ_ONLY:
            raise ConnectionFailure(answer.message)  # it was demoted; another one has its place
        raise answer.failure(self._name)


def steps(operations: Iterable[Operation]) -> list[list[Operation]]:
    """Divide operations into steps, in each of which look-ups may go before updates, and these before deletes.

    Operations on different keys may change places; those on one key may not, and two deletes of it are two steps.
    """
    made: list[list[Operation]] = []
    last: dict[bytes, tuple[int, int]] = {}  # of each key, the step and the place in it
    for operation in operations:
        place = _PLACES[operation.kind]
        step, last_place = last.get(operation.key, (0, 0))
        if place < last_place or place == last_place == _PLACES[Kind.DELETE]:
            step += 1
        last[operation.key] = step, place
        if step == len(made):
            made.append([])
        made[step].append(operation)
    return made
