"""Options of the test run."""

from __future__ import annotations

from random import SystemRandom

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let more cases, or the same again, be asked for."""
    group = parser.getgroup("differential")
    group.addoption("--differential-cases", type=int, default=2200, help="look-ups to compare with Postfix's own")
    group.addoption(
        "--differential-seed", type=int, default=SystemRandom().randrange(10**9), help="what the cases are made of"
    )
    group.addoption("--greylist-cases", type=int, default=20_000, help="requests to compare with postgrey's answers")
    group.addoption(
        "--greylist-seed", type=int, default=SystemRandom().randrange(10**9), help="what the requests are made of"
    )
