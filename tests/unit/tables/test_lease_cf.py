from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest
from twisted.internet.testing import MemoryReactorClock

from socketmap_memcache.config.parameters import Parameters
from socketmap_memcache.config.syntax import parse
from socketmap_memcache.errors import ConfigurationError, Problem
from socketmap_memcache.memcache.pool import ClientPool
from socketmap_memcache.tables.lease_cf import read_leases
from socketmap_memcache.tables.memcache import MemcacheTable
from socketmap_memcache.tables.memcache_cf import open_memcache
from socketmap_memcache.tables.memcache_settings import LeaseSettings
from socketmap_memcache.tables.registry import TableContext

BACKUP = "backup = lmdb:/x\n"
DOCS = Path(__file__).parents[3] / "docs" / "leases.rst"


def read(text: str) -> tuple[LeaseSettings, list[str]]:
    """Give what is read, and the warnings or errors."""
    parameters = Parameters(parse(text.encode(), "x.cf"))
    settings = read_leases(parameters)
    problems: list[Problem] = []
    try:
        parameters.finish(problems)
    except ConfigurationError as error:
        problems += error.problems
    return settings, [problem.text for problem in problems]


def test_defaults() -> None:
    """Nothing is on that Postfix does not have."""
    assert read(BACKUP) == (LeaseSettings(False, 3, 0, 0), [])
    assert read("") == (LeaseSettings(), [])


def test_all() -> None:
    """Times may have units."""
    text = "lease = yes\nlease_timeout = 5\nstale_ttl = 1h\nnegative_ttl = 2m\n"
    assert read(BACKUP + text) == (LeaseSettings(True, 5, 3600, 120), [])


def test_no_backup() -> None:
    """Without a backup nothing has an effect, and there are warnings."""
    settings, problems = read("lease = yes\nstale_ttl = 1h\nnegative_ttl = 2m\n")
    assert settings == LeaseSettings()
    assert problems == [f"{name} has no effect without a backup" for name in ("lease", "stale_ttl", "negative_ttl")]


def test_memory() -> None:
    """Leases are for caches that are shared; marks of missing keys are not."""
    settings, (problem,) = read(BACKUP + "memcache = memory:\nlease = yes\nnegative_ttl = 60\n")
    assert settings == LeaseSettings(negative_ttl=60)
    assert problem == "lease has no effect with memory:, which no other process shares"


def test_no_lease() -> None:
    """What is of use with leases only has no effect without."""
    settings, problems = read(BACKUP + "stale_ttl = 60\nlease_timeout = 5\n")
    assert settings.stale_ttl == 0
    assert problems == [f"{name} has no effect without lease = yes" for name in ("stale_ttl", "lease_timeout")]


@pytest.mark.parametrize("line", ["lease_timeout = 0", "lease_timeout = 61", "stale_ttl = 31d", "negative_ttl = 31d"])
def test_bounds(line: str) -> None:
    """Times that cannot be are errors."""
    settings, (problem,) = read(f"{BACKUP}lease = yes\n{line}\n")
    assert settings == LeaseSettings(lease=True)
    assert problem.startswith(f"invalid {line.split(maxsplit=1)[0]} parameter value")


def test_documentation(tmp_path: Path) -> None:
    """The lines that the documentation has to paste are good."""
    (block,) = [part for part in DOCS.read_text().split("::\n\n") if part.startswith("    memcache =")]
    file = tmp_path / "x.cf"
    file.write_text(dedent(block.split("\n\n", maxsplit=1)[0]) + "\n")
    context = TableContext(ClientPool(MemoryReactorClock()))
    table = open_memcache(str(file), context)
    assert context.warnings == []
    assert isinstance(table, MemcacheTable)
    assert table._settings.leases == LeaseSettings(True, 3, 600, 60)
    table.close()
