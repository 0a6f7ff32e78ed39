"""Nothing that breaks around the service makes it give a wrong answer, forget, hang, or refuse its clients."""

from __future__ import annotations

from collections.abc import Callable
from random import SystemRandom

import pytest

from .faults import FAULTS, Fault
from .report import attributes
from .run import Run


@pytest.fixture(scope="module")
def first_try(request: pytest.FixtureRequest) -> None:
    """Fail in a second try: with another seed what is rare may not happen again."""
    if request.config.getoption("--second-try"):
        pytest.fail("has failed before; a wrong answer is no matter of speed", pytrace=False)


@pytest.fixture(scope="module")
def run(request: pytest.FixtureRequest) -> Run:
    """Let all faults happen that are asked for."""
    config = request.config
    names = {item.callspec.id for item in request.session.items if isinstance(item, pytest.Function) and _is_one(item)}
    seed = config.getoption("--fault-seed") or SystemRandom().randrange(1, 10**9)
    print(f"--fault-seed {seed}")
    run = Run(
        [fault for fault in FAULTS if fault.name in names],
        config.getoption("--fault-rounds"),
        config.getoption("--fault-seconds"),
        seed,
    )
    run.run()
    return run


def _is_one(item: pytest.Function) -> bool:
    return item.function in {test_answers, test_fault}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
@pytest.mark.usefixtures("first_try")
def test_answers(fault: Fault, run: Run) -> None:
    """No answer is wrong, whatever else fails."""
    row = run.rows.get(fault.name)  # none where a site did not even start: that fails below
    assert row is None or not row.wrong(), "\n".join([*row.wrong(), *row.evidence])


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault(fault: Fault, run: Run, record_property: Callable[[str, object], None]) -> None:
    """Each answer is right, or a failure that says so, in time; and soon after the fault all is as before."""
    assert fault.name not in run.errors, run.errors[fault.name]
    row = run.rows[fault.name]
    record_property("fault", attributes(row))
    assert not row.problems(), "\n".join([*row.problems(), *row.evidence])
