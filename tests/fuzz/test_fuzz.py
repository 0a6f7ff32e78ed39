"""A short run of what ``make fuzz`` does at length."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import pytest
from twisted.logger import Logger

from socketmap_memcache import listeners, protocols
from tests.fuzz.mutate import cut, mutate
from tests.fuzz.run import TARGETS, Fault, fuzz
from tests.fuzz.target import Target


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_samples(target: Target) -> None:
    """What real programs have said does no harm."""
    random = Random(1)
    with target.open() as opened:
        for sample in target.samples():
            target.check(opened, sample, random)


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_mutated(target: Target) -> None:
    """Nor does anything like it."""
    fuzz(target, 500, 1)


def _modules(package: ModuleType) -> list[Path]:
    return [path for path in Path(package.__path__[0]).glob("*.py") if path.stem not in {"__init__", "receive_buffer"}]


def test_shares() -> None:
    """Each codec, and each listener (what has a codec in it), gets the whole number of inputs."""
    names = [rf"\b{path.stem}\b(?! listener)" for path in _modules(protocols)]
    names += [rf"^{path.stem} listener$" for path in _modules(listeners) if ".protocols" in path.read_text()]
    for name in names:
        assert sum(target.share for target in TARGETS.values() if re.search(name, target.name)) >= 1, name


def test_cut() -> None:
    """Chunks are not empty, and joined they are the input; each input is made again from its number."""
    random = Random(1)
    for number in range(300):
        data = mutate(random, [b"abc", b"12:x"])
        chunks = cut(random, data)
        assert b"".join(chunks) == data
        assert all(chunks)
        assert mutate(Random(number), [b"abc"]) == mutate(Random(number), [b"abc"])


def _raise(_: Any, data: bytes, __: Random) -> None:
    raise ValueError(data)


def _log(*_: Any) -> None:
    try:
        raise ValueError("caught")
    except ValueError:
        Logger().failure("unforeseen")


_LEFT: list[list[bytes]] = []


def _leave(_: Any, data: bytes, __: Random) -> None:
    _LEFT.append([data])


@pytest.mark.parametrize(
    "check, inputs, complaint", [(_raise, 1, "ValueError"), (_log, 1, "caught"), (_leave, 6001, "left over")]
)
def test_fault(check: Any, inputs: int, complaint: str) -> None:
    """An exception, one that was caught and logged, and what is left over are faults."""
    with pytest.raises(Fault, match=complaint):
        fuzz(Target("faulty", ("greylist-records",), check), inputs, 1)
    _LEFT.clear()
