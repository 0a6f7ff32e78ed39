from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest

from socketmap_memcache.listeners.client_counts import LAST_NUMBER, ClientCounts


@pytest.fixture
def descriptor() -> Iterator[int]:
    descriptor = ClientCounts.make()
    yield descriptor
    os.close(descriptor)


def test_no_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file is made: the service may have no directory for it."""
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    os.close(ClientCounts.make())


def test_alone(descriptor: int) -> None:
    """Where no other worker is, none has fewer clients."""
    counts = ClientCounts(descriptor, 1)
    counts.tell(10_000)
    assert not counts.others_have_fewer(10_000)


def test_others(descriptor: int) -> None:
    """A worker knows how many clients the others have, the last one, too."""
    first, last = ClientCounts(descriptor, 1), ClientCounts(descriptor, LAST_NUMBER)
    first.tell(1)
    last.tell(0)
    assert first.others_have_fewer(1)
    assert not last.others_have_fewer(0)
    last.tell(1)
    assert not first.others_have_fewer(1)


def test_about_as_many(descriptor: int) -> None:
    """With many clients, a few more or less are no matter."""
    counts = ClientCounts(descriptor, 1)
    ClientCounts(descriptor, 2).tell(70)
    assert not counts.others_have_fewer(80)
    assert counts.others_have_fewer(81)


def test_gone(descriptor: int) -> None:
    """Nobody waits for a worker that has left, or of which the parent knows that it has ended."""
    first, second, parent = (ClientCounts(descriptor, number) for number in (1, 2, 0))
    second.tell(0)
    second.leave()
    assert not first.others_have_fewer(5)
    second.tell(0)
    parent.forget(2)
    assert not first.others_have_fewer(5)
