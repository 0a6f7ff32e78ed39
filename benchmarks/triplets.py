"""What the benchmarks of greylisting ask for."""

from __future__ import annotations

from pathlib import Path
from random import Random


def write_triplets(path: Path, count: int, name: str) -> Path:
    """Write triplets of clients that are in no whitelist, for load.c; those of another name are others."""
    random = Random(name)  # noqa: S311 (the same each time)
    with path.open("w") as file:
        for number in range(count):
            bits = random.getrandbits(24)
            address = f"10.{bits & 255}.{bits >> 8 & 255}.{bits >> 16}"
            file.write(f"{address} sender{number}.of.{name}@example.net user{number % 5000}@example.org\n")
    return path
