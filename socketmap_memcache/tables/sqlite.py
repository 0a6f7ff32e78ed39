"""``sqlite:``, look-ups in an SQLite database with the query of a ``.cf`` file, as sqlite_table(5) describes it."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any
from urllib.parse import quote_from_bytes

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from zope.interface import implementer

from socketmap_memcache.config.parameters import Parameters
from socketmap_memcache.config.syntax import excerpt
from socketmap_memcache.errors import ConfigurationError, PermanentError, TableError, TemporaryError
from socketmap_memcache.tables.folding import normalize
from socketmap_memcache.tables.indexed_file import without_nul
from socketmap_memcache.tables.interface import ITable
from socketmap_memcache.tables.key_format import Template
from socketmap_memcache.tables.match_list import MatchList
from socketmap_memcache.tables.options import read_cf, read_match_list
from socketmap_memcache.tables.query_format import QueryFormat, parse_query, parse_result, unquoted
from socketmap_memcache.tables.read_only import ReadOnlyTable
from socketmap_memcache.tables.registry import TableContext
from socketmap_memcache.tables.store import Operation, StoreTable

#: Seconds that a look-up waits for somebody who writes to the database. (Postfix does not wait.)
LOCK_TIMEOUT = 5.0

_LEGACY = ("table", "select_field", "where_field")
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
    path = _not_empty(parameters, "dbpath")
    where, query = _query(parameters)
    loose = unquoted(query)
    for specifier in loose:
        text = f"{specifier} is not in single quotes: whoever chooses a key can choose another query"
        parameters.warn(where, text)
    template = _template(parameters, where, query, parse_query)
    result = _template(parameters, "result_format", _not_empty(parameters, "result_format", "%s"), parse_result)
    limit = parameters.integer("expansion_limit", 0)
    domain = read_match_list(parameters, "domain", context)
    parameters.unknown(fatal=False)
    full_name = f"sqlite:{name}"
    store = SqliteStore(full_name, path, QueryFormat(template, result, _double_quotes), limit)
    if path and template:
        # What is not in quotes may be made for keys that are not like the sample.
        _check(store, parameters, where, parameters.warn if loose else parameters.error)
    try:
        parameters.finish(context.warnings)
    except ConfigurationError:
        if domain is not None:
            domain.close()
        raise
    rows = StoreTable(full_name, store, context.reactor, False, context.timeout)
    return SqliteTable(full_name, rows, domain, context.fold_keys)


def _not_empty(parameters: Parameters, name: str, default: str = "") -> str:
    value = parameters.text(name, default)
    if not value:
        parameters.error(name, f"the parameter {name} is needed, and must not be empty")
    return value


def _query(parameters: Parameters) -> tuple[str, str]:
    """Return the name of the parameter that has the query, and the query, which is empty if it cannot be used."""
    legacy = {name: parameters.text(name, "") for name in (*_LEGACY, "additional_conditions")}
    if parameters.line("query") or not any(legacy.values()):
        return "query", _not_empty(parameters, "query")
    if not all([_not_empty(parameters, name) for name in _LEGACY]):  # noqa: C419 (to name all that are missing)
        return "where_field", ""
    legacy_query = "SELECT {select_field} FROM {table} WHERE {where_field}='%s' {additional_conditions}"
    return "where_field", legacy_query.format_map(legacy)


def _template(parameters: Parameters, name: str, text: str, parse_text: Callable[[str], Template]) -> Template:
    try:
        text.encode()
        return parse_text(text)
    except UnicodeError:
        parameters.error(name, f"is not UTF-8: {excerpt(text)}")
    except ValueError as error:
        parameters.error(name, str(error))
    return ()


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
    """The blocking side; see :class:`~socketmap_memcache.tables.store.Store`. It only knows look-ups."""

    _log = Logger()

    def __init__(self, name: str, path: str, query_format: QueryFormat, expansion_limit: int) -> None:
        """Make a store; the database is opened when it is first needed, and again when another takes its place."""
        self._name = name
        self._path = os.path.abspath(path)  # noqa: PTH100 (a URI has to have one)
        self._format = query_format
        self._limit = expansion_limit
        self._connection: sqlite3.Connection | None = None
        self._opened: tuple[int, int] | None = None
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
                return [self._answer(connection, operation.key) for operation in operations]
            finally:
                connection.rollback()
        except OSError as error:
            raise TemporaryError(f"{self._name}: {self._path} cannot be opened: {error.strerror}") from error
        except sqlite3.Error as error:
            raise TemporaryError(f"{self._name}: {error}") from error

    def close(self) -> None:
        """Close the database."""
        self._opened = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connected(self) -> sqlite3.Connection:
        status = os.stat(self._path)  # noqa: PTH116
        now = status.st_dev, status.st_ino
        if self._connection is None or now != self._opened:
            self.close()
            self._connection = self.connect(LOCK_TIMEOUT)
            self._opened = now
        return self._connection

    def _answer(self, connection: sqlite3.Connection, key: bytes) -> bytes | TableError | None:
        statement = self.statement(key)
        if not statement:
            return None
        try:
            return self._rows(connection, statement, key)
        except TableError as error:
            return error
        except (sqlite3.Error, sqlite3.Warning) as error:
            if isinstance(error, sqlite3.Error) and _is_locked(error):
                raise  # it is so for all keys, and was waited for
            return TemporaryError(f"{self._name}: {error}")

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


@implementer(ITable)
class SqliteTable(ReadOnlyTable):
    """Asks the database for keys whose domain is in the list."""

    def __init__(self, name: str, rows: StoreTable, domain: MatchList | None, fold_keys: bool) -> None:
        """:param rows: gets keys as they are to be asked for; closed with the table, as is ``domain``."""
        self.name = name
        self._rows = rows
        self._domain = domain
        self._fold_keys = fold_keys
        self._under_way = 0  # look-ups that wait for a table in the list, and then need the database
        self._closed = False

    def lookup(self, key: bytes) -> Deferred[bytes | None]:
        """See :class:`ITable`."""
        normalized = normalize(key, self._fold_keys)
        if not normalized:
            return succeed(None)
        match = self._domain is None or self._domain.match_address(normalized)
        if isinstance(match, Deferred):
            self._under_way += 1
            return match.addCallback(lambda yes: self._rows.lookup(normalized) if yes else None).addBoth(self._done)
        return self._rows.lookup(normalized) if match else succeed(None)

    def close(self) -> None:
        """See :class:`ITable`."""
        self._closed = True
        if not self._under_way:
            self._let_go()

    def _done(self, result: Any) -> Any:
        self._under_way -= 1
        if self._closed:
            self.close()
        return result

    def _let_go(self) -> None:
        self._rows.close()
        if self._domain is not None:
            self._domain.close()
