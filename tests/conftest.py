"""Options of the test run."""

from __future__ import annotations

from random import SystemRandom
from typing import Any

import pytest

from tests.faults.report import table


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
    group = parser.getgroup("faults")
    group.addoption("--fault-rounds", type=int, default=1, help="how often each fault happens")
    group.addoption("--fault-seconds", type=float, default=1.5, help="how long each fault lasts")
    group.addoption("--second-try", action="store_true", help="fail at once where a second try proves nothing")
    group.addoption("--fault-seed", type=int, default=0, help="what is random about them; 0: another one each time")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table of the faults."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    properties = [each for report in reports for each in getattr(report, "user_properties", [])]
    rows = [value for name, value in properties if name == "fault"]
    if rows:
        terminalreporter.section("faults")
        for line in table(sorted(rows, key=lambda row: row["place"])):
            terminalreporter.write_line(line)
