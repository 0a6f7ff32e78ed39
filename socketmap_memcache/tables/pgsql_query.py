"""Look-ups with the ``query`` of a ``.cf`` file, as pgsql_table(5) describes it: the blocking side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from socketmap_memcache.config.syntax import excerpt
from socketmap_memcache.errors import PermanentError, TableError, TemporaryError
from socketmap_memcache.tables.key_format import Template
from socketmap_memcache.tables.pgsql_connection import Answer, Connection, Execute, Prepare, Query, StatementError
from socketmap_memcache.tables.pgsql_hosts import Hosts
from socketmap_memcache.tables.pgsql_parameters import parametrize
from socketmap_memcache.tables.query_format import QueryFormat, parse_query
from socketmap_memcache.tables.store import Operation

Result = bytes | TableError | None


class QueryStore:
    """Sends the queries of all keys that wait in one go; see :class:`~socketmap_memcache.tables.store.Store`.

    Each query is a transaction of its own or one with others, as with any table that Postfix reads.
    """

    def __init__(self, name: str, hosts: Hosts, query: str, result: Template, expansion_limit: int) -> None:
        """Make a store.

        :param query: one that :func:`parse_query` takes.
        :param expansion_limit: the most values that may be found; 0 for no limit.
        """
        self._name = name
        self._hosts = hosts
        self._format = QueryFormat(parse_query(query), result, self._quote)
        self._parameters = parametrize(query)
        self._several = ";" in query.rstrip("; \t\n")  # a server takes several statements only as Postfix sends them
        self._limit = expansion_limit
        self._escape: Callable[[bytes], bytes]  # of the connection that is used

    def execute(self, operations: Sequence[Operation]) -> Sequence[object]:
        """Look the keys up."""
        keys = [key for key in dict.fromkeys(each.key for each in operations) if self._format.values(key) is not None]
        results: dict[bytes, Result] = {}
        if keys:
            deadline = max(operation.deadline for operation in operations)
            results = self._hosts.perform(partial(self._ask, keys), deadline)
        return [results.get(operation.key) for operation in operations]

    def rest(self) -> None:
        """Close the connection until the next look-up."""
        self._hosts.rest()

    def close(self) -> None:
        """Close the connection."""
        self._hosts.rest()

    def _ask(self, keys: Sequence[bytes], connection: Connection, deadline: float) -> dict[bytes, Result]:
        self._escape = connection.escape
        results: dict[bytes, Result] = {}
        while len(results) < len(keys):
            left = keys[len(results) :]
            answers = self._batch(left, connection, deadline)
            # What is after an error has not been done.
            results |= {key: self._result(key, answer) for key, answer in zip(left, answers, strict=False)}
        return results

    def _batch(self, keys: Sequence[bytes], connection: Connection, deadline: float) -> Sequence[Answer]:
        """Return answers for some keys, at least for the first."""
        if self._parameters is not None:
            commands = [Execute(self._parameters.values(self._format.values(key) or ())) for key in keys]
            prepared, *answers = connection.run([Prepare(self._parameters.sql), *commands], deadline)
            if not isinstance(prepared, StatementError):
                return answers
        texts: list[bytes] = []
        with suppress(ValueError):
            texts.extend(self._format.query(key) or b"" for key in keys)
        if not texts:
            return [StatementError("22021", f"{excerpt(keys[0])} is not text in the encoding of the connection")]
        if self._several:
            return [connection.ask(texts[0], deadline)]
        answers = connection.run([Query(text) for text in texts], deadline)
        if not isinstance(answers[0], StatementError):
            self._parameters = None  # literals are something else than parameters in this query
        return answers

    def _quote(self, value: bytes) -> bytes:
        return self._escape(value)

    def _result(self, key: bytes, answer: Answer) -> Result:
        if isinstance(answer, StatementError):
            return answer.failure(self._name)
        if answer is None:
            return PermanentError(f"{self._name}: the query is not one that gives rows")
        found = [self._format.result(value, key) for row in answer for value in row if value]
        values = [value for value in found if value is not None]
        if 0 < self._limit < len(values):
            return TemporaryError(f"{self._name}: more values than expansion_limit for {excerpt(key)}")
        return b",".join(values) or None
