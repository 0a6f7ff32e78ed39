"""Names of hosts are looked up before libpq is asked, which would stop the reactor meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from socket import gaierror
from typing import Any
from unittest.mock import patch

import pytest

pytest.importorskip("psycopg")

from psycopg import pq

from socketmap_memcache.tables import pgsql_cf
from socketmap_memcache.tables.pgsql_cf import connect, with_addresses
from socketmap_memcache.tables.pgsql_connection import ConnectionFailure

ADDRESSES = {"db": ["2001:db8::1", "192.0.2.1"], "other": ["192.0.2.2"]}


def look_up(host: str, _: None, type: int) -> list[tuple[Any, ...]]:  # noqa: A002 (getaddrinfo's)
    if host not in ADDRESSES:
        raise gaierror(-2, "Name or service not known")
    return [(0, type, 6, "", (address, 0)) for address in ADDRESSES[host]]


@pytest.fixture(autouse=True)
def names() -> Iterator[None]:
    with patch.object(pgsql_cf, "getaddrinfo", look_up):
        yield


def options(conninfo: bytes) -> dict[str, str]:
    parsed = pq.Conninfo.parse(with_addresses(conninfo))
    return {option.keyword.decode(): option.val.decode() for option in parsed if option.val is not None}


def test_all_addresses() -> None:
    """Libpq gets all addresses of a host, with its name for each; all else stays, any password too."""
    given = rb"host='db' port='5433' password='it\'s \\ a\'' sslmode='verify-full'"
    assert options(given) == {
        "host": "db,db",
        "hostaddr": "2001:db8::1,192.0.2.1",
        "port": "5433,5433",
        "password": "it's \\ a'",
        "sslmode": "verify-full",
    }


def test_several_hosts() -> None:
    """Of several hosts each has its own addresses and port; a socket's directory has none; what is unknown is out."""
    assert options(b"host=other,/run/pg,nowhere,192.0.2.9 port=1,2,3,4") == {
        "host": "other,/run/pg,192.0.2.9",
        "hostaddr": "192.0.2.2,,",
        "port": "1,2,4",
    }
    assert options(b"host=other,db")["port"] == ",,"


@pytest.mark.parametrize(
    "conninfo",
    [
        b"host=192.0.2.1",
        b"host=2001:db8::1",
        b"host=/run/pg",
        b"dbname=x",
        b"host=db hostaddr=::1",
        b"host=db,a port=1,2,3",
    ],
)
def test_unchanged(conninfo: bytes) -> None:
    """Where there is no name to look up, or libpq has something to say, nothing changes."""
    assert with_addresses(conninfo) == conninfo


def test_unknown() -> None:
    """A name without addresses is why there is no connection."""
    with pytest.raises(ConnectionFailure, match="could not translate host name nowhere to address: Name or service"):
        connect(b"host=nowhere", 1.0, seconds=lambda: 0.0, timeout=1.0, owned=False)
