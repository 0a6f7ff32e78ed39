from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from socketmap_memcache.commands import greylist_import
from socketmap_memcache.commands.map_console import FatalError
from socketmap_memcache.errors import TemporaryError

from .greylist_bench import HASH, NOW, Bench, picky_table, refusing_table

db: Any = pytest.importorskip("berkeleydb.db")

DAY = 24 * 3600
TRIPLETS = {
    b"192.0.2.0/a@b.example/c@d.example": f"{NOW - 400},{NOW - 50}",
    b"192.0.2.0/e@b.example/c@d.example": f"{NOW - 100},{NOW - 100}",
    b"192.0.2.0/long@b.example/c@d.example": f"{NOW - 40 * DAY},{NOW - 36 * DAY}",
    b"192.0.2.0/once@b.example/c@d.example": f"{NOW - 3 * DAY},{NOW - 3 * DAY}",
    b"192.0.2.0/\xe4 b@b.example/c@d.example": f"{NOW - 400},{NOW - 50}",
}
CLIENTS = {b"192.0.2.7": f"4,{NOW - 60}", b"2001:DB8:0:0:0:0:0:1": f"9,{NOW - 36 * DAY}", b"what": "1,1"}


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="postgrey-") as name:
        write(Path(name), "postgrey.db", TRIPLETS)
        write(Path(name), "postgrey_clients.db", CLIENTS)
        yield Path(name)


def write(directory: Path, name: str, entries: dict[bytes, str]) -> None:
    """Make a file anew."""
    (directory / name).unlink(missing_ok=True)
    database = db.DB()
    database.open(str(directory / name), dbtype=db.DB_BTREE, flags=db.DB_CREATE)
    for key, value in entries.items():
        database.put(key, value.encode())
    database.close()


def counts(output: str) -> tuple[str, ...]:
    return tuple(line.partition(": ")[2] for line in output.splitlines()[1:])


def test_import(directory: Path) -> None:
    """What is not over is stored with the time that is left; a second time, all is there already."""
    bench = Bench()
    output = bench.run("import-postgrey", str(directory))
    assert output.splitlines()[0] == f"{directory}: reading a copy of the files; postgrey may go on running"
    assert counts(output) == ("5 read, 3 stored, 2 expired", "3 read, 1 stored, 1 expired, 1 not readable")
    assert bench.get("t/192.0.2.0/a@b.example/c@d.example") == f"{NOW - 400},{NOW - 50}"
    assert bench.get("c/192.0.2.7") == f"4,{NOW - 60}"
    assert counts(bench.run("import-postgrey", str(directory)))[0] == "5 read, 3 there already, 2 expired"
    assert bench.stderr == ""
    bench.reactor.advance(2 * DAY - 100)
    assert bench.get("t/192.0.2.0/e@b.example/c@d.example")
    bench.reactor.advance(1)
    assert bench.get("t/192.0.2.0/e@b.example/c@d.example") is None


def test_import_joins(directory: Path) -> None:
    """What is in both is joined; of ours, what is newer stays, and what is over or no record does not count."""
    bench = Bench()
    keys = [f"t/192.0.2.0/{name}@b.example/c@d.example" for name in ("a", "e")]
    bench.put({keys[0]: f"{NOW - 10},{NOW - 5}", keys[1]: f"{NOW - 99 * DAY},{NOW - 98 * DAY}", "c/192.0.2.7": "what"})
    assert counts(bench.run("import-postgrey", str(directory))) == (
        "5 read, 2 stored, 1 joined with ours, 2 expired",
        "3 read, 1 stored, 1 expired, 1 not readable",
    )
    assert [bench.get(key) for key in keys] == [f"{NOW - 400},{NOW - 5}", f"{NOW - 100},{NOW - 100}"]
    assert bench.get("c/192.0.2.7") == f"4,{NOW - 60}"


def test_import_same_client(directory: Path) -> None:
    """A client that postgrey has under two addresses is one."""
    write(directory, "postgrey_clients.db", {b"192.0.2.7": f"4,{NOW}", b"0:0:0:0:0:FFFF:C000:207": f"6,{NOW - 9}"})
    bench = Bench()
    assert counts(bench.run("import-postgrey", str(directory)))[1] == "2 read, 1 stored, 1 joined with ours"
    assert bench.get("c/192.0.2.7") == f"6,{NOW}"


def test_import_hashed(directory: Path) -> None:
    """Hashed keys are of use only where ours are hashed; elsewhere that is an error, but the rest is stored."""
    write(directory, "postgrey.db", {HASH.encode(): f"{NOW},{NOW}", **TRIPLETS})
    private = Bench("greylist_privacy = yes\n")
    assert counts(private.run("import-postgrey", str(directory)))[0] == "6 read, 4 stored, 2 expired"
    assert private.get(f"t/{HASH}") == f"{NOW},{NOW}"
    bench = Bench()
    assert bench.status("import-postgrey", str(directory)) == 1
    assert counts(bench.output.text)[0] == "6 read, 3 stored, 2 expired, 1 hashed"
    assert "error: 1 entries are of postgrey --privacy, and need greylist_privacy = yes" in bench.stderr


def test_import_other_networks(directory: Path) -> None:
    """Triplets of networks of another size are a warning: they will not be found."""
    bench = Bench("greylist_ipv4_prefix = 16\n")
    bench.run("import-postgrey", str(directory))
    assert "warning: 5 triplets will not be found: greylist_ipv4_prefix" in bench.stderr


def test_import_log(directory: Path) -> None:
    """It is told when postgrey's log is read, and when it cannot be."""
    (directory / "log.0000000001").write_bytes(b"junk" * 5000)
    bench = Bench()
    output = bench.run("import-postgrey", str(directory))
    assert output.splitlines()[0].endswith("a copy of the files and of its log (1); postgrey may go on running")
    assert "warning: its log cannot be read, so the last hour may be missing" in bench.stderr


def test_import_batches(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries are stored some at a time, and after ^C no more."""
    monkeypatch.setattr(greylist_import, "WINDOW", 2)
    bench = Bench()
    assert counts(bench.run("import-postgrey", str(directory)))[0] == "5 read, 3 stored, 2 expired"
    bench.session.stopped = True
    assert counts(bench.run("import-postgrey", str(directory)))[0] == "0 read"


def test_import_nothing(directory: Path) -> None:
    """A directory without a database is an error."""
    with pytest.raises(FatalError, match="postgrey.db: No such file"):
        Bench().run("import-postgrey", str(directory / "nope"))


def test_import_damaged(directory: Path) -> None:
    """A damaged file is an error."""
    (directory / "postgrey.db").write_bytes(b"x" * 9000)
    with pytest.raises(FatalError, match="postgrey.db is damaged"):
        Bench().run("import-postgrey", str(directory))


def test_import_failing_table(directory: Path) -> None:
    """A table that fails, or does not take a key, is an error."""
    broken = refusing_table(TemporaryError("disk"))
    with pytest.raises(TemporaryError, match="disk"):
        Bench(table=broken).run("import-postgrey", str(directory))
    broken.lookup = picky_table().lookup
    with pytest.raises(TemporaryError, match="disk"):
        Bench(table=broken).run("import-postgrey", str(directory))
    with pytest.raises(FatalError, match="does not take all keys"):
        Bench(table=picky_table()).run("import-postgrey", str(directory))
