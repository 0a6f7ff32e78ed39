"""Two MX hosts as docs/several-hosts.rst has them, while each machine in turn is killed or hangs: one greylist."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count

import attrs
import pytest

from .greylist_load import ALIASES, CLIENT, Event, Load
from .harness.map_command import run_map
from .harness.policy import PolicyClient
from .harness.processes import scratch_directory, wait_until
from .several_hosts import DELAY, KINDS, POLICY_TIMEOUT, Host, Site, make_site

#: Seconds of each part of the scenario.
PHASE = 2.0

_probes = count()


@attrs.frozen
class Phase:
    """A part of the scenario; its end is when all is as before."""

    name: str
    begin: float
    end: float


class Scenario:
    """What has happened at a site, and what its clients were told meanwhile.

    :ivar outages: from when to when the database was not used.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self.load = Load(site)
        self.phases: dict[str, Phase] = {}
        self.outages: list[tuple[float, float]] = []
        self.forgotten: list[str] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        begin = time.monotonic()
        yield
        self.phases[name] = Phase(name, begin, time.monotonic())

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Note that the database is away, and wait until both hosts have found it again."""
        begin = time.monotonic()
        try:
            yield
            for host in self.site.hosts:
                wait_until(lambda: defers(host), "the database is used again", 8)  # noqa: B023
        finally:
            self.outages.append((begin, time.monotonic()))

    def events(self, *kinds: str, phase: str | None = None, database: bool | None = None) -> list[Event]:
        """Give what was asked, and answered in a phase, or with the database all the time, or not all the time."""
        events = [event for event in self.load.events if event.kind in kinds]
        if phase is not None:
            during = self.phases[phase]
            events = [event for event in events if during.begin < event.ended <= during.end]
        if database is not None:
            events = [event for event in events if self._has_database(event) is database]
        return events

    def _has_database(self, event: Event) -> bool:
        return all(event.ended < begin or event.began > end for begin, end in self.outages)


def defers(host: Host) -> bool:
    """Say whether a new mail has to wait at a host."""
    with PolicyClient(host.policy_addresses[0]) as client:
        return client.ask({**CLIENT, "recipient": f"probe{next(_probes)}@example.org"}).startswith(b"DEFER")


def disturb(scenario: Scenario) -> None:
    """Let each machine of the site fail, under load."""
    site = scenario.site
    first = site.hosts[0]
    killed, hung, _ = site.memcacheds
    with scenario.phase("undisturbed"):
        time.sleep(PHASE + DELAY)
    with scenario.phase("memcached killed"):
        killed.kill()
        time.sleep(PHASE)
        killed.start()
    with scenario.phase("memcached hung"):
        hung.freeze()
        time.sleep(PHASE)
        hung.thaw()
    with scenario.phase("host killed"):
        first.lives += 1
        first.kill()
        time.sleep(PHASE / 2)
        first.start()
        first.lives += 1
    with scenario.phase("sessions ended"):
        for _ in range(5):
            site.database.end_sessions()
            time.sleep(PHASE / 5)
    with scenario.phase("database killed"), scenario.outage():
        site.database.stop()
        time.sleep(PHASE)
        site.database.start()
    with scenario.phase("database hung"), scenario.outage():
        site.database.freeze()
        time.sleep(PHASE * 2)
        site.database.thaw()
    with scenario.phase("back"):
        time.sleep(PHASE)


def ask_all(site: Site, scenario: Scenario) -> list[str]:
    """Ask both hosts for all that was promised to be remembered; give what was deferred again."""
    requests = [{**CLIENT, "recipient": mail.recipient} for mail in scenario.load.mails]
    deferred = []
    for host in reversed(site.hosts):
        with PolicyClient(host.policy_addresses[0]) as client:
            for mail, answer in zip(scenario.load.mails, client.ask_all(requests), strict=True):
                if answer.startswith(b"DEFER"):
                    deferred.append(f"{mail}: {answer!r}")
    return deferred


def play(site: Site) -> Scenario:
    """Start the hosts and the load, and let everything happen."""
    aliases = b"".join(b"%b %b\n" % entry for entry in ALIASES.items())
    done = run_map("-i", f"memcache:{site.hosts[0].place}/aliases.cf", stdin=aliases)
    assert done.returncode == 0, done.stderr
    with ThreadPoolExecutor() as threads:
        list(threads.map(lambda host: host.start(), site.hosts))
    scenario = Scenario(site)
    try:
        scenario.load.start()
        disturb(scenario)
    finally:
        scenario.load.stop()
    time.sleep(DELAY)
    # What only memcached has would be forgotten now.
    site.empty_memcached()
    scenario.forgotten = ask_all(site, scenario)
    return scenario


@pytest.fixture(scope="module")
def scenarios() -> Iterator[dict[str, Scenario]]:
    """Both sites go through it at the same time."""

    def run(kind: str) -> Scenario:
        place = directory / kind
        place.mkdir()
        with make_site(place, kind) as site:
            return play(site)

    with scratch_directory() as directory, ThreadPoolExecutor() as threads:
        yield dict(zip(KINDS, threads.map(run, KINDS), strict=True))


@pytest.fixture(params=KINDS)
def scenario(request: pytest.FixtureRequest, scenarios: dict[str, Scenario]) -> Scenario:
    return scenarios[request.param]


def passed(event: Event) -> bool:
    """Say whether a mail was let in."""
    return event.answer == b"DUNNO" or event.answer.startswith(b"PREPEND X-Greylist: delayed ")


class TestTwoHosts:
    def test_clients(self, scenario: Scenario) -> None:
        """No client is hung up on, but by a host that is killed; and no answer takes longer than it may."""
        assert scenario.load.faults == []
        slowest = max(scenario.load.events, key=lambda event: event.seconds)
        kinds = Counter((event.kind, event.answer[:12]) for event in scenario.load.events)
        print(scenario.site.kind, dict(kinds), f"slowest {slowest.seconds:.2f} s", scenario.phases, scenario.outages)
        assert slowest.seconds < POLICY_TIMEOUT, slowest

    def test_known(self, scenario: Scenario) -> None:
        """A mail that has waited, or has passed, is never deferred again, at either host, whatever is away."""
        assert [event for event in scenario.events("retry", "known") if not passed(event)] == []

    def test_nothing_forgotten(self, scenario: Scenario) -> None:
        """In the end, with all memcached emptied, each mail that was ever told to wait passes at both hosts."""
        assert len(scenario.load.mails) > 100
        assert scenario.forgotten == []

    def test_new(self, scenario: Scenario) -> None:
        """With the database, a new mail has to wait, also when it is tried too soon; one that has waited is known."""
        events = scenario.events("new", "early", database=True)
        assert [event for event in events if not event.answer.startswith(b"DEFER")] == []
        retries = [event for event in scenario.events("retry", database=True) if event.certain]
        assert [event for event in retries if not event.answer.startswith(b"PREPEND ")] == []

    def test_without_database(self, scenario: Scenario) -> None:
        """Only without the database mail flows that would have to wait."""
        for name in ("database killed", "database hung"):
            news = scenario.events("new", phase=name)
            assert {event.answer for event in news} >= {b"DUNNO"}, name
            assert {event.answer[:5] for event in news} <= {b"DUNNO", b"DEFER"}, name
            assert len(scenario.events("known", "retry", phase=name)) > 20, name

    def test_one_greylist(self, scenario: Scenario) -> None:
        """In each part, a mail that one host has deferred passes at the other, or is known to be early there."""
        for name, phase in scenario.phases.items():
            events = scenario.events("retry", "early", phase=name)
            assert len([event for event in events if event.elsewhere]) >= 5, phase

    def test_maps(self, scenario: Scenario) -> None:
        """A key is found as long as memcached or the database has it, and missing only if the database says so."""
        found = {(event.what, event.answer) for event in scenario.events("found")}
        assert found == {(key, b"OK " + value) for key, value in ALIASES.items()}
        assert {event.answer for event in scenario.events("missing", database=True)} == {b"NOTFOUND "}
        without = Counter(event.answer.split()[0] for event in scenario.events("missing", phase="database killed"))
        assert without[b"TEMP"] > 5
        assert without.keys() <= {b"TEMP", b"TIMEOUT", b"NOTFOUND"}

    def test_log(self, scenario: Scenario) -> None:
        """The lines that the document shows are in the log, and no errors but those."""
        logs = "".join(host.log for host in scenario.site.hosts)
        assert "Traceback" not in logs
        assert "reason=no store" in logs
