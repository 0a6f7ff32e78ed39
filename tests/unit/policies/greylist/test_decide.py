from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketmap_memcache.policies.greylist.decide import (
    Decision,
    client_is_over,
    decide,
    triplet_is_over,
)
from socketmap_memcache.policies.greylist.record import Client, Triplet
from socketmap_memcache.policies.greylist.settings import Settings

NOW = 1_700_000_000
HOUR, DAY = 3600, 24 * 3600
SETTINGS = Settings()
KEPT = 35 * DAY + 1
WITHOUT_AWL = Settings(auto_whitelist_clients=0)


def result(
    triplet: Triplet | None = None,
    client: Client | None = None,
    settings: Settings = SETTINGS,
    delay: int | None = None,
) -> Decision:
    return decide(triplet, client, NOW, settings, settings.delay if delay is None else delay)


def seen(first: int, last: int) -> Triplet:
    """Give a triplet that was seen some seconds ago."""
    return Triplet(NOW - first, NOW - last)


def counted(count: int, last: int) -> Client:
    return Client(count, NOW - last)


class TestDeferred:
    def test_new(self) -> None:
        """A new triplet is deferred, and stored as long as the retry window."""
        assert result() == Decision(
            passed=False, reason=b"new", missing=300, triplet=Triplet(NOW, NOW), triplet_ttl=2 * DAY + 1
        )

    def test_early(self) -> None:
        """A retry before the delay is over is deferred; the first attempt counts, for the rest of its window."""
        assert result(seen(299, 200)) == Decision(
            passed=False,
            reason=b"early-retry (1s missing)",
            missing=1,
            triplet=Triplet(NOW - 299, NOW),
            triplet_ttl=2 * DAY - 299 + 1,
        )

    def test_late(self) -> None:
        """A first retry after the retry window counts as new; in its last second it passes."""
        assert result(seen(2 * DAY, 2 * DAY)).passed
        assert result(seen(2 * DAY + 1, 2 * DAY + 1)) == result()
        assert result(seen(2 * DAY + 1, 2 * DAY + 2 - 300)) == result()

    def test_old(self) -> None:
        """A triplet that has not been seen for the maximum age is new; in the last second of it, it passes."""
        assert result(seen(100 * DAY, 35 * DAY)).passed
        assert result(seen(100 * DAY, 35 * DAY + 1)) == result()

    def test_future(self) -> None:
        """A triplet that was first seen in the future is new, and that is told."""
        assert result(seen(-1, -1)) == result()._replace(corrected=True)
        assert result(seen(-1, -400)) == result()._replace(corrected=True)

    def test_clock_set_back(self) -> None:
        """A triplet that has passed waits again where the clock was set back by more than the time since then."""
        decision = result(seen(100, -1000))
        assert (decision.passed, decision.reason, decision.delayed) == (False, b"early-retry (200s missing)", None)

    def test_no_auto_whitelisting(self) -> None:
        """The client is not counted as long as the triplet is deferred."""
        assert result(client=counted(4, DAY)) == result()


class TestPassed:
    def test_first_time(self) -> None:
        """A retry when the delay is just over passes; the client is counted."""
        assert result(seen(300, 300)) == Decision(
            passed=True,
            reason=b"triplet found",
            delayed=300,
            triplet=Triplet(NOW - 300, NOW),
            triplet_ttl=KEPT,
            client=Client(1, NOW),
            client_ttl=KEPT,
        )

    def test_known(self) -> None:
        """A triplet that has passed before passes, without a header, and the client is not counted."""
        assert result(seen(400, 100)) == Decision(
            passed=True, reason=b"triplet found", triplet=Triplet(NOW - 400, NOW), triplet_ttl=KEPT
        )

    def test_no_delay(self) -> None:
        """Without a delay, everything passes at once and is remembered; that says nothing good of the client."""
        for decision in (result(delay=0), result(settings=Settings(delay=0))):
            assert (decision.passed, decision.delayed, decision.reason) == (True, None, b"triplet found")
            assert decision.triplet is not None
            assert (decision.triplet.last, decision.client) == (NOW, None)

    def test_shorter_delay(self) -> None:
        """A triplet that passes after a shorter delay than usual is stored like one that passed after the usual one."""
        decision = result(seen(60, 60), delay=60)
        assert decision.delayed == 60
        assert decision.triplet == Triplet(NOW - 300, NOW)
        assert decision.triplet is not None
        assert not triplet_is_over(decision.triplet, NOW + 3 * DAY, SETTINGS)

    def test_longer_delay(self) -> None:
        """A delay that is longer than usual holds."""
        assert result(seen(599, 200), delay=600).missing == 1
        decision = result(seen(600, 200), delay=600)
        assert (decision.delayed, decision.triplet) == (600, Triplet(NOW - 600, NOW))


class TestAutoWhitelisting:
    @pytest.mark.parametrize("last, count", [(HOUR - 1, None), (HOUR, 3), (DAY, 3), (-1, None)])
    def test_once_an_hour(self, last: int, count: int | None) -> None:
        """A client is counted once in an hour."""
        stored = result(seen(300, 300), counted(2, last)).client
        assert stored == (None if count is None else Client(count, NOW))

    def test_enough(self) -> None:
        """The count that is enough is told once."""
        assert result(seen(300, 300), counted(4, DAY)).whitelisted
        assert not result(seen(300, 300), counted(3, DAY)).whitelisted
        assert not result(seen(300, 300), counted(4, 1)).whitelisted
        assert result(seen(300, 300), settings=Settings(auto_whitelist_clients=1)).whitelisted

    @pytest.mark.parametrize("triplet", [None, seen(300, 300), seen(100, 100)])
    def test_passes(self, triplet: Triplet | None) -> None:
        """A client that was counted often enough passes, whatever the triplet; that is not stored."""
        assert result(triplet, counted(5, HOUR - 1)) == Decision(passed=True, reason=b"client AWL")
        assert result(triplet, counted(5, HOUR)) == Decision(
            passed=True, reason=b"client AWL", client=Client(6, NOW), client_ttl=KEPT
        )

    def test_future(self) -> None:
        """A client that was counted in the future, and passes, is counted now."""
        assert result(client=counted(5, -1)).client == Client(6, NOW)

    def test_old(self) -> None:
        """A client that has not been counted for the maximum age begins anew."""
        assert result(client=counted(5, 35 * DAY)).passed
        assert result(client=counted(5, 35 * DAY + 1)) == result()
        assert result(seen(300, 300), counted(4, 35 * DAY + 1)).client == Client(1, NOW)

    def test_off(self) -> None:
        """Without auto-whitelisting clients are neither counted nor let through."""
        assert result(client=counted(5, 1), settings=WITHOUT_AWL) == result()
        assert result(seen(300, 300), counted(5, 1), WITHOUT_AWL).client is None


TIMES = st.one_of(
    st.integers(-400, 4000), st.integers(2 * DAY - 400, 2 * DAY + 400), st.integers(35 * DAY - 400, 35 * DAY + 400)
)
TRIPLETS = st.one_of(st.none(), st.builds(seen, TIMES, TIMES))
CLIENTS = st.one_of(st.none(), st.builds(counted, st.integers(0, 7), TIMES))


@given(TRIPLETS, CLIENTS, st.sampled_from([0, 60, 300, 600]), st.sampled_from([SETTINGS, WITHOUT_AWL]))
def test_consistent(triplet: Triplet | None, client: Client | None, delay: int, settings: Settings) -> None:
    """Whatever is stored: what is deferred has to wait, and passes when it has waited; times to live make sense."""
    decision = decide(triplet, client, NOW, settings, delay)
    assert (decision.missing > 0) is not decision.passed
    assert (decision.triplet is None) is (decision.reason == b"client AWL")
    assert (decision.triplet_ttl > 0) is (decision.triplet is not None)
    assert (decision.client_ttl > 0) is (decision.client is not None)
    assert decision.delayed is None or decision.delayed >= 0
    if not decision.passed:
        assert decision.triplet_ttl > decision.missing
        later = NOW + decision.missing
        assert not decide(decision.triplet, None, later - 1, settings, delay).passed
        assert decide(decision.triplet, None, later, settings, delay).passed
    elif decision.triplet is not None:
        again: Any = decide(decision.triplet, None, NOW + 1, settings, delay)
        assert (again.passed, again.delayed) == (True, None) or delay > settings.delay


@given(TRIPLETS, CLIENTS)
def test_over(triplet: Triplet | None, client: Client | None) -> None:
    """Without what is over the decision is the same."""
    kept = None if triplet is None or triplet_is_over(triplet, NOW, SETTINGS) else triplet
    kept_client = None if client is None or client_is_over(client, NOW, SETTINGS) else client
    assert result(triplet, client) == result(kept, kept_client)
