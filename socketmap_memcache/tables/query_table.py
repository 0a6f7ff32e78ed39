"""What tables in SQL databases share beside their templates: their ``.cf`` files, and which keys are not asked for."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer

from socketmap_memcache.config.parameters import Parameters
from socketmap_memcache.config.syntax import excerpt
from socketmap_memcache.tables.domain_check import DomainCheck
from socketmap_memcache.tables.folding import normalize
from socketmap_memcache.tables.interface import ITable
from socketmap_memcache.tables.key_format import Template
from socketmap_memcache.tables.match_list import MatchList
from socketmap_memcache.tables.query_format import parse_query, parse_result, unquoted
from socketmap_memcache.tables.read_only import ReadOnlyTable
from socketmap_memcache.under_way import UnderWay

_LEGACY = ("table", "select_field", "where_field")


def not_empty(parameters: Parameters, name: str, default: str = "") -> str:
    """Read a parameter that must be there."""
    value = parameters.text(name, default)
    if not value:
        parameters.error(name, f"the parameter {name} is needed, and must not be empty")
    return value


def read_query(parameters: Parameters, select_function: bool = False) -> tuple[str, str]:
    """Read ``query``, or the older parameters that it replaces.

    :param select_function: whether there is that one, too.
    :return: the name of the parameter that has the query, and the query, which is empty if it cannot be used.
    """
    function = parameters.text("select_function", "") if select_function else ""
    legacy = {name: parameters.text(name, "") for name in (*_LEGACY, "additional_conditions")}
    name, query = "query", ""
    if parameters.line("query") or not (function or any(legacy.values())):
        query = not_empty(parameters, "query")
    elif function:
        name, query = "select_function", f"SELECT {function}('%s')"
    else:
        name = "where_field"
        if all([not_empty(parameters, needed) for needed in _LEGACY]):  # noqa: C419 (to name all that are missing)
            template = "SELECT {select_field} FROM {table} WHERE {where_field}='%s' {additional_conditions}"
            query = template.format_map(legacy)
    for specifier in unquoted(query):
        text = f"{specifier} is not in single quotes: whoever chooses a key can choose another query"
        parameters.warn(name, text)
    return name, query


def query_template(parameters: Parameters, name: str, query: str) -> Template:
    """Compile what :func:`read_query` gave."""
    return _template(parameters, name, query, parse_query)


def read_result_format(parameters: Parameters) -> Template:
    """Read and compile ``result_format``."""
    return _template(parameters, "result_format", not_empty(parameters, "result_format", "%s"), parse_result)


def _template(parameters: Parameters, name: str, text: str, parse_text: Callable[[str], Template]) -> Template:
    try:
        text.encode()
        return parse_text(text)
    except UnicodeError:
        parameters.error(name, f"is not UTF-8: {excerpt(text)}")
    except ValueError as error:
        parameters.error(name, str(error))
    return ()


@implementer(ITable)
class QueryTable(ReadOnlyTable):
    """Asks the database for keys whose domain is in the list."""

    def __init__(self, name: str, rows: ITable, domain: MatchList | None, fold_keys: bool) -> None:
        """:param rows: gets keys as they are to be asked for; closed with the table, as is ``domain``."""
        self.name = name
        self._rows = rows
        self._domain = domain
        self._fold_keys = fold_keys
        self._under_way = UnderWay(self._let_go)
        self._check = DomainCheck(domain, self._under_way)

    def lookup(self, key: bytes) -> Deferred[bytes | None]:
        """See :class:`ITable`."""
        normalized = normalize(key, self._fold_keys)
        return self._check.if_in_domain(normalized, self._rows.lookup, None) if normalized else succeed(None)

    def close(self) -> None:
        """See :class:`ITable`."""
        self._under_way.close()

    def _let_go(self) -> None:
        self._rows.close()
        if self._domain is not None:
            self._domain.close()
