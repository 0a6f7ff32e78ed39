from __future__ import annotations

import pytest

from socketmap_memcache.tables.pgsql_parameters import parametrize

PARTS = [b"u@d", b"u", b"d"]


@pytest.mark.parametrize(
    "query, sql, values",
    [
        ("SELECT v FROM t WHERE k = '%s'", b"SELECT v FROM t WHERE k = $1", [b"u@d"]),
        ("'%u' '%d@%u' 'x%%y''z' 10 %% 2", b"$1 $2 'x%y''z' 10 % 2", [b"u", b"d@u"]),
        ("f('a''b','%s')", b"f('a''b',$1)", [b"u@d"]),
        ("SELECT 1", b"SELECT 1", []),
    ],
)
def test_parametrized(query: str, sql: bytes, values: list[bytes]) -> None:
    """Each literal that depends on the key is a parameter; all else stays as it is."""
    made = parametrize(query)
    assert made is not None
    assert (made.sql, made.values(PARTS)) == (sql, values)


@pytest.mark.parametrize(
    "query",
    [
        *("k = %s", "k = 'a''%s'", "k = '%s''a'", "k = E'%s'", "k = U&'%s'", "k = date'%s'"),
        *("\"k\" = '%s'", "$$'%s'$$", "'\\' || '%s'", "-- '%s'", "/* '%s' */", "k = '%s' || 'open"),
    ],
)
def test_uncertain(query: str) -> None:
    """Where a parameter might mean something else than the literal there is none."""
    assert parametrize(query) is None
