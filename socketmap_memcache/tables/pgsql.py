"""``pgsql:``, look-ups in a PostgreSQL database as pgsql_table(5) describes them, or a table that this service owns.

The ``.cf`` file is that of Postfix. With ``store_table`` in place of ``query`` there is a table of keys and values that
can be updated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from random import SystemRandom
from typing import TYPE_CHECKING, Any
from typing import Protocol as Structure

from twisted.logger import Logger

from socketmap_memcache.config.parameters import Parameters
from socketmap_memcache.errors import ConfigurationError, Problem
from socketmap_memcache.tables.interface import ITable
from socketmap_memcache.tables.options import finish, read_cf, read_match_list
from socketmap_memcache.tables.query_table import QueryTable, query_template, read_query, read_result_format
from socketmap_memcache.tables.registry import TableContext
from socketmap_memcache.tables.store import Store
from socketmap_memcache.tables.store_table import StoreTable, Submitted

if TYPE_CHECKING:
    # At run time they need psycopg, which is imported when it is needed.
    from socketmap_memcache.tables.pgsql_hosts import Host, Hosts

_INTERVAL = 60
_QUERY_PARAMETERS = {
    *("query", "result_format", "expansion_limit", "domain", "select_function", "select_field", "table"),
    *("where_field", "additional_conditions"),
}

_log = Logger()


def open_pgsql(name: str, context: TableContext, create: bool = False) -> ITable:
    """Open the table that a ``.cf`` file describes. No server is asked before the first operation.

    As with Postfix, all columns of all rows count; NULL and empty values are passed over, and if nothing is left, the
    key is missing. The values are joined by commas, and more than ``expansion_limit`` of them are a failure.

    :param name: the file; as with Postfix, its name begins with ``/`` or ``.``.
    :param create: for ``store_table``: whether to make the table in the database before anything is stored in it.
    :raises ConfigurationError: psycopg is missing, or whatever Postfix would stop with or that can never work.
    """
    try:
        from socketmap_memcache.tables.pgsql_cf import read_hosts
        from socketmap_memcache.tables.pgsql_connection import check_libpq

        check_libpq()
    except ImportError as error:
        text = f"pgsql: tables need psycopg 3; install it with: pip install 'socketmap-memcache[postgres]' ({error})"
        raise ConfigurationError([Problem(text)]) from error
    parameters = read_cf("pgsql", name)
    owned = bool(parameters.text("store_table", "") or parameters.line("store_table"))
    hosts = read_hosts(parameters, name, owned)
    retry_interval = parameters.integer("retry_interval", _INTERVAL, minimum=1)
    idle_interval = parameters.integer("idle_interval", _INTERVAL, minimum=1)
    opened = partial(_hosts, f"pgsql:{name}", hosts, context, retry_interval, owned)
    read = _owned if owned else _queried
    return read(parameters, context, f"pgsql:{name}", opened, idle_interval, create)


def _owned(
    parameters: Parameters,
    context: TableContext,
    name: str,
    hosts: Callable[[], Hosts],
    idle_interval: float,
    create: bool,
) -> ITable:
    from socketmap_memcache.tables.pgsql_store import KeyValueStore, quoted_table

    table = "", ""
    try:
        table = quoted_table(parameters.text("store_table", ""))
    except ValueError as error:
        parameters.error("store_table", str(error))
    for other in sorted(_QUERY_PARAMETERS):
        if parameters.line(other):
            parameters.error(other, f"{other} has no meaning together with store_table")
    parameters.accept(_QUERY_PARAMETERS)
    parameters.unknown(fatal=False)
    parameters.finish(context.warnings)
    store = KeyValueStore(name, hosts(), table, create, context.reactor.seconds)
    return PgsqlTable(name, store, context, context.fold_keys, idle_interval)


def _queried(
    parameters: Parameters,
    context: TableContext,
    name: str,
    hosts: Callable[[], Hosts],
    idle_interval: float,
    create: bool,  # noqa: ARG001
) -> ITable:
    from socketmap_memcache.tables.pgsql_query import QueryStore

    where, query = read_query(parameters, select_function=True)
    query_template(parameters, where, query)
    result = read_result_format(parameters)
    limit = parameters.integer("expansion_limit", 0, minimum=0)
    domain = read_match_list(parameters, "domain", context)
    parameters.unknown(fatal=False)
    finish(parameters, context, domain)
    store = QueryStore(name, hosts(), query, result, limit)
    return QueryTable(name, PgsqlTable(name, store, context, False, idle_interval), domain, context.fold_keys)


def _hosts(name: str, hosts: Sequence[Host], context: TableContext, retry_interval: float, owned: bool) -> Hosts:
    from socketmap_memcache.tables.pgsql_cf import connect
    from socketmap_memcache.tables.pgsql_hosts import Hosts

    reactor = context.reactor

    def note(text: str) -> None:
        """Log from the table's thread."""
        reactor.callFromThread(_log.warn, "{text}", text=text)

    # A server of several has half of the time; if it ended a statement later than that, it would be taken for dead.
    timeout = context.timeout / 2 if len(hosts) > 1 else context.timeout
    connect_to = partial(connect, seconds=reactor.seconds, timeout=timeout, owned=owned)
    # Postfix takes any of several hosts; of those that can be written to there should be one, and the first is it.
    return Hosts(name, hosts, connect_to, reactor.seconds, note, retry_interval, None if owned else SystemRandom())


class RestingStore(Store, Structure):
    """The blocking side of a table that keeps a connection, and can do without."""

    def rest(self) -> None:
        """Close the connection until the next operation."""


class PgsqlTable(StoreTable):
    """A table over a database, whose connection is closed when it is not used for a while."""

    def __init__(
        self, name: str, store: RestingStore, context: TableContext, fold_keys: bool, idle_interval: float
    ) -> None:
        """:param idle_interval: seconds."""
        super().__init__(name, store, context.reactor, fold_keys, context.timeout)
        self._resting_store = store
        self._idle_interval = idle_interval

    def _next_batch(self) -> list[Submitted]:
        with self._wake:
            busy: Any = self._wake.wait_for(lambda: self._waiting or self._closed, self._idle_interval)
        if not busy:
            self._resting_store.rest()
        return super()._next_batch()
