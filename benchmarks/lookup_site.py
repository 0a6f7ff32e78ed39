"""What the benchmarks of look-ups have in common: a memcached with all keys, and Postfix's own table of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import attrs

from benchmarks.load import Load
from benchmarks.session import Bench
from tests.integration.harness.memcached import Memcached
from tests.integration.harness.postfix import Postfix
from tests.integration.harness.processes import scratch_directory, write_config


@attrs.frozen
class Site:
    """All of it.

    :ivar keys: which memcached has.
    :ivar load: the load generator, which asks for them.
    :ivar table: the Postfix name of the table.
    """

    directory: Path
    memcached: Memcached
    postfix: Postfix
    keys: Sequence[str]
    load: Load
    table: str

    def cf(self, name: str, text: str) -> str:
        """Write the ``.cf`` file of another table of this memcached, and give the table's name."""
        return f"memcache:{write_config(self.directory / f'{name}.cf', f'memcache = {self.memcached.address}{text}')}"


@contextmanager
def lookup_site(bench: Bench) -> Iterator[Site]:
    """Make it, and take it away again."""
    keys = [f"user{number}@example.com" for number in range(bench.keys)]
    with scratch_directory() as directory, Memcached(directory) as memcached:
        memcached.set_many({key.encode(): key.replace("@", "@mail.").encode() for key in keys})
        load = Load(write_lines(directory / "keys", keys), bench.seconds)
        table = f"memcache:{write_config(directory / 'bench.cf', f'memcache = {memcached.address}')}"
        yield Site(directory, memcached, Postfix(directory), keys, load, table)


def write_lines(path: Path, lines: Sequence[str]) -> Path:
    """Write a file, a line for each."""
    path.write_text("".join(f"{line}\n" for line in lines))
    return path
