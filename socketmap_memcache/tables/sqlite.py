"""``sqlite:``, look-ups in an SQLite database with the query of a ``.cf`` file, as sqlite_table(5) describes it."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any
from urllib.parse import quote_from_bytes

from twisted.logger import Logger

from socketmap_memcache.config.parameters import Parameters
from socketmap_memcache.config.syntax import excerpt
from socketmap_memcache.errors import PermanentError, TableError, TemporaryError
from socketmap_memcache.tables.indexed_file import stamp, without_nul
from socketmap_memcache.tables.interface import ITable
from socketmap_memcache.tables.options import finish, read_cf, read_match_list
from socketmap_memcache.tables.query_format import QueryFormat, unquoted
from socketmap_memcache.tables.query_table import QueryTable, not_empty, query_template, read_query, read_result_format
from socketmap_memcache.tables.registry import TableContext
from socketmap_memcache.tables.store import Operation
from socketmap_memcache.tables.store_table import StoreTable

#: Seconds that a look-up waits for somebody who writes to the database. (Postfix does not wait.)
LOCK_TIMEOUT = 5.0

#: Steps of SQLite's virtual machine, some 0.1 ms, after which it is seen whether anybody still waits for the result.
#: Most queries take less.
STEPS = 10_000

# A key that has all that a template can ask for.
_SAMPLE_KEY = b"user@i.h.g.f.e.d.c.b.a"
# Text in which a semicolon does not end a statement, or a semicolon that does.
_UP_TO_END = re.compile(r"""'[^']*'|"[^"]*"|`[^`]*`|\[[^]]*\]|--[^\n]*|/\*.*?\*/|;""", re.DOTALL)


def open_sqlite(name: str, context: TableContext) -> ITable:
    """Open the table that a ``.cf`` file describes.

    As with Postfix, only the first column of the rows counts; NULL and empty values are passed over, and if nothing
    is left, the key is missing. The rows are joined by commas, and more than ``expansion_limit`` of them are a failure.

    :param name: the file; as with Postfix, its name begins with ``/`` or ``.``.
    :raises ConfigurationError: for whatever Postfix would stop with, a database that cannot be read (none is made, and
        nothing is ever written), and a query that the database refuses.
    """
    parameters = read_cf("sqlite", name)
    path = not_empty(parameters, "dbpath")
    where, query = read_query(parameters)
    template = query_template(parameters, where, query)
    result = read_result_format(parameters)
    limit = parameters.integer("expansion_limit", 0)
    domain = read_match_list(parameters, "domain", context)
    parameters.unknown(fatal=False)
    full_name = f"sqlite:{name}"
    store = SqliteStore(full_name, path, QueryFormat(template, result, _double_quotes), limit)
    if path and template:
        # What is not in quotes may be made for keys that are not like the sample.
        _check(store, parameters, where, parameters.warn if unquoted(query) else parameters.error)
    finish(parameters, context, domain)
    rows = StoreTable(full_name, store, context.reactor, False, context.timeout)
    return QueryTable(full_name, rows, domain, context.fold_keys)


def _check(store: SqliteStore, parameters: Parameters, where: str, note: Callable[[str, str], None]) -> None:
    """Ask the database what it thinks of the query, and note what is wrong."""
    try:
        with closing(store.connect(0)) as connection:
            connection.execute("BEGIN")
            connection.execute("PRAGMA schema_version").fetchone()  # reads, and locks, for as long as this takes
            try:
                connection.execute(f"EXPLAIN {store.statement(_SAMPLE_KEY)}").fetchone()
            except (sqlite3.Error, sqlite3.Warning) as error:
                note(where, f"the database refuses the query: {error}")
    except sqlite3.Error as error:
        if _is_locked(error):
            parameters.warn("dbpath", "the database is being written; the query was not checked")
        else:
            parameters.error("dbpath", f"the database cannot be read: {error}")


def _is_locked(error: sqlite3.Error) -> bool:
    return "locked" in str(error)


def _double_quotes(value: bytes) -> bytes:
    return value.replace(b"'", b"''")


class SqliteStore:
    """The blocking side; see :class:`~socketmap_memcache.tables.store.Store`. It only knows look-ups.

    A query for which nobody waits any more is stopped: it might have no end, and nothing else could be looked up.
    """

    _log = Logger()

    def __init__(self, name: str, path: str, query_format: QueryFormat, expansion_limit: int) -> None:
        """Make a store; the database is opened when it is first needed, and again when another takes its place."""
        self._name = name
        self._path = os.path.abspath(path)  # noqa: PTH100 (a URI has to have one)
        self._format = query_format
        self._limit = expansion_limit
        self._connection: sqlite3.Connection | None = None
        self._opened: tuple[int, ...] = ()  # the file, as it was then
        self._under_way: Operation | None = None
        self._empty_logged = False

    def connect(self, lock_timeout: float) -> sqlite3.Connection:
        """Open the database for reading.

        :param lock_timeout: seconds to wait for those who write.
        :raises sqlite3.Error: it cannot be opened.
        """
        uri = f"file:{quote_from_bytes(os.fsencode(self._path))}?mode=ro"
        connection = sqlite3.connect(uri, uri=True, timeout=lock_timeout, isolation_level=None)
        connection.text_factory = bytes
        return connection

    def statement(self, key: bytes) -> str:
        """Return the SQL statement for a key, or nothing for a key that is to be skipped.

        What follows the first statement of a query is left out, as Postfix does.
        """
        query = (self._format.query(key) or b"").decode()
        if ";" in query:
            for found in _UP_TO_END.finditer(query):
                if found[0] == ";":
                    return query[: found.end()]
        return query

    def execute(self, operations: Sequence[Operation]) -> Sequence[object]:
        """Look the keys up, all in the same state of the database."""
        try:
            connection = self._connected()
            connection.execute("BEGIN")
            try:
                return [self._answer(connection, operation) for operation in operations]
            finally:
                connection.rollback()
        except OSError as error:
            raise TemporaryError(f"{self._name}: {self._path} cannot be opened: {error.strerror}") from error
        except sqlite3.Error as error:
            raise TemporaryError(f"{self._name}: {error}") from error

    def close(self) -> None:
        """Close the database."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connected(self) -> sqlite3.Connection:
        # SQLite keeps pages in memory as long as the file has had the same number of changes. So may another one that
        # was copied over it: made by the same script, say.
        now = stamp(os.stat(self._path))  # noqa: PTH116
        if self._connection is None or now != self._opened:
            self.close()
            self._connection = self.connect(LOCK_TIMEOUT)
            self._connection.set_progress_handler(self._is_given_up, STEPS)
            self._opened = now
        return self._connection

    def _is_given_up(self) -> bool:
        return self._under_way is not None and self._under_way.given_up

    def _answer(self, connection: sqlite3.Connection, operation: Operation) -> bytes | TableError | None:
        statement = self.statement(operation.key)
        if not statement:
            return None
        self._under_way = operation
        try:
            return self._rows(connection, statement, operation.key)
        except TableError as error:
            return error
        except (sqlite3.Error, sqlite3.Warning) as error:
            if isinstance(error, sqlite3.Error) and _is_locked(error):
                raise  # it is so for all keys, and was waited for
            return TemporaryError(f"{self._name}: {error}")
        finally:
            self._under_way = None

    def _rows(self, connection: sqlite3.Connection, statement: str, key: bytes) -> bytes | None:
        with closing(connection.execute(statement)) as rows:
            if rows.description is None:
                raise PermanentError(f"{self._name}: the query is not one that gives rows")
            results = []
            for row in rows:
                result = self._result(connection, row[0], key)
                if result is None:
                    continue
                results.append(result)
                if 0 < self._limit < len(results):
                    raise TemporaryError(f"{self._name}: more rows than expansion_limit for {excerpt(key)}")
        return b",".join(results) or None

    def _result(self, connection: sqlite3.Connection, value: Any, key: bytes) -> bytes | None:
        if value is None:
            return None
        if not isinstance(value, bytes):  # a number: SQLite knows best how to write it
            (value,) = connection.execute("SELECT CAST(? AS TEXT)", (value,)).fetchone()
        text = without_nul(value)
        if not text and not self._empty_logged:
            self._empty_logged = True
            self._log.warn("{table}: an empty result is ignored (logged once)", table=self._name)
        return self._format.result(text, key)
