"""What the benchmarks of greylisting ask for, and the whitelists that they all have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random


def write_triplets(path: Path, count: int, name: str) -> Path:
    """Write triplets of different clients, for load.c; those of another name are others."""
    random = Random(name)  # noqa: S311 (the same each time)
    with path.open("w") as file:
        for number in range(count):
            bits = random.getrandbits(32)
            address = f"{1 + bits % 189}.{bits >> 8 & 255}.{bits >> 16 & 255}.{bits >> 24}"
            file.write(f"{address} sender{number}.of.{name}@example.net user{number % 5000}@example.org\n")
    return path


def whitelist() -> Iterator[str]:
    """Make a list of clients as long, and of the same kinds of entries, as the one that comes with postgrey."""
    for number in range(150):
        yield f"mail{number}.example.com\n"
        yield f"198.51.{number}.0/24\n"
    for number in range(40):
        yield f"/^out-{number}-[0-9]+\\.mx\\.example\\.edu$/\n"
