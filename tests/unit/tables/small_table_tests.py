"""What the tests of tables without a server have in common: how they are opened and asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from socketmap_memcache.errors import ConfigurationError
from socketmap_memcache.tables.interface import ITable
from socketmap_memcache.tables.registry import TableContext

if TYPE_CHECKING:
    from socketmap_memcache.memcache.pool import ClientPool


def context() -> TableContext:
    return TableContext(clients=cast("ClientPool", None))


class SmallTableTests(SynchronousTestCase):
    def open(self, spec: str) -> ITable:
        table = context().open_table(spec)
        verifyObject(ITable, table)
        assert table.name == spec
        return table

    def errors(self, spec: str) -> list[str]:
        caught = self.assertRaises(ConfigurationError, context().open_table, spec)
        return [str(problem) for problem in caught.problems]

    def lookup(self, table: ITable, key: bytes) -> bytes | None:
        return self.successResultOf(table.lookup(key))
