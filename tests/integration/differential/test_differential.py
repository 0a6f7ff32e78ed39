"""The service's answers against those of Postfix's own memcache: client, for made-up tables and keys."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from random import Random

import attrs
import pytest

from tests.integration.differential.generate import Case, case, domains_file, long_key, table_file
from tests.integration.differential.servers import BROKEN, echo, serve
from tests.integration.harness.memcached import Memcached
from tests.integration.harness.postfix import Postfix
from tests.integration.harness.processes import scratch_directory, write_config
from tests.integration.harness.service import Service

#: Keys that a table is asked for in one run of postmap.
_KEYS = 24

#: Processes of postmap at once; most of them sleep.
_AT_ONCE = 24


@attrs.frozen
class Answer:
    """What postmap says of one key.

    :ivar value: what it prints, or ``None``.
    :ivar error: whether it says that it could not tell.
    """

    value: bytes | None
    status: int
    error: bool


@attrs.frozen
class Site:
    """A Postfix and the service, both reading the same files."""

    postfix: Postfix
    service: Service
    directory: Path

    def both(self, number: int) -> tuple[str, str]:
        return f"memcache:{self.directory}/{number}.cf", self.service.map(f"t{number}")

    def ask(self, key: bytes, table: str) -> Answer:
        ran = self.postfix.postmap("-q", key, table)
        error = b"query error" in ran.stderr
        return Answer(ran.stdout if ran.stdout or ran.returncode == 0 else None, ran.returncode, error)

    def ask_many(self, keys: list[bytes], table: str) -> tuple[bytes, int, bool]:
        ran = self.postfix.postmap("-q", "-", table, stdin=b"".join(key + b"\n" for key in keys))
        return ran.stdout, ran.returncode, b"query error" in ran.stderr


def _check_one(site: Site, number: int, made: Case, key: bytes) -> str | None:
    native, ours = (site.ask(key, table) for table in site.both(number))
    if native == ours:
        return None
    return f"key {key!r}: Postfix {native}, the service {ours}, of\n{made.cf}"


def _check_many(site: Site, number: int, made: Case) -> str | None:
    native, ours = (site.ask_many(made.keys, table) for table in site.both(number))
    if native == ours and not native[2]:
        return None
    # Either they differ, or both ended at the first error: ask for each key to see.
    wrong = [_check_one(site, number, made, key) for key in made.keys]
    return next((text for text in wrong if text), None)


@pytest.fixture(scope="module")
def random(request: pytest.FixtureRequest) -> Random:
    seed = request.config.getoption("--differential-seed")
    print(f"--differential-seed={seed}")
    return Random(seed)


@pytest.fixture(scope="module")
def cases(random: Random, request: pytest.FixtureRequest) -> Iterator[tuple[Site, list[Case]]]:
    wanted = request.config.getoption("--differential-cases")
    with ExitStack() as stack:
        directory = stack.enter_context(scratch_directory())
        good = stack.enter_context(serve(directory / "echo", echo))
        bad = {name: stack.enter_context(serve(directory / name, answer)) for name, answer in BROKEN.items()}
        bad["dead"] = f"unix:{directory}/dead"
        write_config(directory / "domains", domains_file(random))
        write_config(directory / "table", table_file())
        made: list[Case] = []
        while sum(len(c.keys) for c in made) < wanted:
            one = case(random, good, bad, _KEYS)
            made.append(attrs.evolve(one, cf=one.cf.replace("/DIR/", f"{directory}/")))
        tables = []
        for number, one in enumerate(made):
            write_config(directory / f"{number}.cf", one.cf)
            tables.append(f"  t{number}=memcache:{directory}/{number}.cf")
        postfix = Postfix(directory)
        service = stack.enter_context(Service(directory, "tables =\n" + "\n".join(tables) + "\n"))
        yield Site(postfix, service, directory), made


def test_same_answers(cases: tuple[Site, list[Case]]) -> None:
    """Value, exit status, and whether it was a query error are those of Postfix's own memcache: table."""
    site, made = cases
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        many = [pool.submit(_check_many, site, n, c) for n, c in enumerate(made) if not c.failing]
        one = [pool.submit(_check_one, site, n, c, key) for n, c in enumerate(made) if c.failing for key in c.keys]
        wrong = [text for text in (future.result() for future in [*one, *many]) if text]
    pairs = sum(len(c.keys) for c in made)
    print(f"{pairs} keys in {len(made)} tables, {len(one)} of them one by one")
    assert not wrong, f"{len(wrong)} differences; the first: {wrong[0]}"


def test_long_keys(cases: tuple[Site, list[Case]], random: Random) -> None:
    """Keys around memcached's limit of 250 bytes are answered, backed up, or failed as by Postfix."""
    site, made = cases
    healthy = [(n, c) for n, c in enumerate(made) if not c.failing]
    asked = [(*random.choice(healthy), long_key(random)) for _ in range(40)]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        wrong = [text for text in pool.map(lambda one: _check_one(site, *one), asked) if text]
    assert not wrong, f"{len(wrong)} differences; the first: {wrong[0]}"


def test_real_memcached(cases: tuple[Site, list[Case]], random: Random) -> None:
    """A real memcached gives both the same values, present and absent, and both survive what it refuses."""
    site, _ = cases
    directory = site.directory / "real"
    directory.mkdir()
    with Memcached(directory) as memcached:
        names = [f"user{n}@example.com".encode() for n in range(300)]
        memcached.set_many({b"p:" + name: b"value of " + name for name in names[::2]})
        write_config(directory / "0.cf", f"memcache = {memcached.address}\nkey_format = p:%s\n")
        with Service(directory, f"tables = t0=memcache:{directory}/0.cf\n") as service:
            here = Site(site.postfix, service, directory)
            keys = [name.upper() if random.random() < 0.3 else name for name in names]
            native, ours = (here.ask_many(keys, table) for table in here.both(0))
            assert native == ours
            assert native[0].count(b"\n") == 150
