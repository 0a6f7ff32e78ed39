"""What several files of tests hold this program against: an installed Postfix, and what the cases are made with."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from .harness.postfix import Postfix
from .harness.processes import scratch_directory
from .oracle import Oracle


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    with scratch_directory() as directory:
        folder = directory / "cases"
        folder.mkdir()
        yield Oracle(Postfix(directory), folder)


@pytest.fixture
def source(request: pytest.FixtureRequest) -> random.Random:
    """What the cases are made with; a failed test shows the option that repeats them."""
    seed = request.config.getoption("--differential-seed")
    print(f"--differential-seed={seed}")
    return random.Random(f"{seed} {request.node.name}")
