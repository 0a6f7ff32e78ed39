"""Servers of PostgreSQL, and a place for the files of a test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.harness.postgresql import Postgresql, make_cluster
from tests.integration.harness.processes import scratch_directory

from .cases import ROWS
from .site import Site


@pytest.fixture(scope="package")
def place() -> Iterator[Path]:
    with scratch_directory() as directory:
        yield directory


@pytest.fixture(scope="package")
def cluster(place: Path) -> Path:
    return make_cluster(place)


@pytest.fixture(scope="package")
def server(place: Path, cluster: Path) -> Iterator[Postgresql]:
    folder = place / "first"
    folder.mkdir()
    with Postgresql(folder, cluster, ["-c", "log_statement=all"]) as running:
        running.execute(
            "CREATE TABLE t (k text, v text, w text);"
            "CREATE FUNCTION f(text) RETURNS SETOF text AS 'SELECT v FROM t WHERE k = $1 ORDER BY v' LANGUAGE SQL"
        )
        with running.connect() as connection:
            connection.cursor().executemany("INSERT INTO t VALUES (%s, %s, %s)", ROWS)
        yield running


@pytest.fixture
def second(cluster: Path) -> Iterator[Postgresql]:
    with scratch_directory() as directory, Postgresql(directory, cluster) as running:
        yield running


@pytest.fixture
def site() -> Iterator[Site]:
    with scratch_directory() as directory:
        made = Site(directory)
        yield made
        made.close()
