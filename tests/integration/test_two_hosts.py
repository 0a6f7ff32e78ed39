"""Two MX hosts as docs/several-hosts.rst has them, while each machine in turn is killed or hangs: one greylist."""

from __future__ import annotations

import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count

import attrs
import pytest

from .greylist_load import ALIASES, CLIENT, Event, Load
from .harness.launch import check
from .harness.map_command import COMMAND, run_map
from .harness.memcached import Memcached
from .harness.policy import PolicyClient
from .harness.postfix import Postfix, needs_root
from .harness.processes import scratch_directory, wait_until
from .harness.smtp import ask_recipient
from .harness.socketmap import SocketmapClient, ask
from .several_hosts import BLOCKS, COMMANDS, DELAY, FILES, KINDS, POLICY_TIMEOUT, Host, Site, make_site

#: Seconds of each part of the scenario; and how many mails that one host knows are then to have come to the other.
PHASE = 2.0
CROSSINGS = 5

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
    :ivar returned: when it was there again.
    :ivar forgotten: what was promised to be remembered, and was not in the database in the end.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self.load = Load(site)
        self.phases: dict[str, Phase] = {}
        self.outages: list[tuple[float, float]] = []
        self.returned: list[float] = []
        self.forgotten: list[str] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        begin = time.monotonic()
        yield
        self.phases[name] = Phase(name, begin, time.monotonic())

    def go_on(self, seconds: float = PHASE) -> None:
        """Let a part of the scenario last so long; on a busy machine, until there is enough to see in it."""
        begin = time.monotonic()

        def crossings() -> int:
            events = [event for event in self.events("retry", "early") if event.ended > begin]
            return sum(event.elsewhere for event in events)

        time.sleep(seconds)
        wait_until(lambda: crossings() >= CROSSINGS, "mails that one host knows come to the other")

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Note that the database is away, and wait until both hosts have found it again."""
        begin = time.monotonic()
        try:
            yield
            self.returned.append(time.monotonic())
            for host in self.site.hosts:
                wait_until(lambda: defers(host) and misses(host), "the database is used again")  # noqa: B023
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


def misses(host: Host) -> bool:
    """Say whether a host knows that a key is in no map."""
    return ask(host.addresses[0], "aliases", b"probe%d@example.org" % next(_probes)) == b"NOTFOUND "


def settle(site: Site) -> None:
    """Wait until both hosts use each memcached, and the map is in them."""
    keys = {b"aliases:" + key for key in ALIASES}

    def uses(host: Host, server: Memcached) -> bool:
        for key in keys:
            server.delete(key)
        with SocketmapClient(host.addresses[0]) as client:
            client.ask_all("aliases", list(ALIASES))
        for _ in range(5):  # it is stored after the answer
            time.sleep(0.01)
            if any(map(server.get, keys)):
                return True
        return False

    for host in site.hosts:
        for server in site.memcacheds:
            wait_until(lambda: uses(host, server), "memcached is used")  # noqa: B023
    wait_until(lambda: all(any(server.get(key) for server in site.memcacheds) for key in keys), "all is cached")


def disturb(scenario: Scenario) -> None:
    """Let each machine of the site fail, under load."""
    site = scenario.site
    first = site.hosts[0]
    killed, hung, _ = site.memcacheds
    with scenario.phase("undisturbed"):
        scenario.go_on(DELAY + PHASE / 2)
    with scenario.phase("memcached killed"):
        killed.kill()
        scenario.go_on()
        killed.start()
    with scenario.phase("memcached hung"):
        hung.freeze()
        scenario.go_on()
        hung.thaw()
    with scenario.phase("host killed"):
        first.lives += 1
        first.kill()
        time.sleep(PHASE / 2)
        first.start()
        first.lives += 1
    settle(site)
    with scenario.phase("sessions ended"):
        for _ in range(5):
            site.database.end_sessions()
            # One whose new connection is ended, too, would take the database to be down, for a second.
            assert [host.place.name for host in site.hosts if not (defers(host) and misses(host))] == []
            time.sleep(PHASE / 5)
    with scenario.phase("database killed"), scenario.outage():
        site.database.stop()
        time.sleep(PHASE)
        site.database.start()
    with scenario.phase("database hung"), scenario.outage():
        site.database.freeze()
        time.sleep(PHASE + 1.5)
        site.database.thaw()
    with scenario.phase("back"):
        scenario.go_on()


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
    """Both sites go through it at the same time, and are there afterwards."""
    with scratch_directory() as directory, ExitStack() as stack, ThreadPoolExecutor() as threads:
        sites = threads.map(lambda kind: stack.enter_context(make_site(directory / kind, kind)), KINDS)
        yield dict(zip(KINDS, threads.map(play, list(sites)), strict=True))


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
        print(f"{scenario.site.kind}: {len(scenario.load.events)} answers, the slowest after {slowest.seconds:.2f} s")
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
        """Only without the database mail flows that would have to wait; it is used again soon after its return."""
        for name in ("database killed", "database hung"):
            news = scenario.events("new", phase=name)
            assert {event.answer for event in news} >= {b"DUNNO"}, name
            assert {event.answer[:5] for event in news} <= {b"DUNNO", b"DEFER"}, name
            assert len(scenario.events("known", "retry", phase=name)) > 5, name
        for (_, used), returned in zip(scenario.outages, scenario.returned, strict=True):
            print(f"used again after {used - returned:.2f} s")
            assert used - returned < 5  # two, on a machine that is not busy

    def test_one_greylist(self, scenario: Scenario) -> None:
        """Whatever is away, a mail that one host has deferred passes at the other, or is known to be early there."""
        for name in scenario.phases.keys() - {"database hung"}:
            events = scenario.events("retry", "early", phase=name)
            assert len([event for event in events if event.elsewhere]) >= CROSSINGS, name

    def test_maps(self, scenario: Scenario) -> None:
        """What memcached or the database has is found, and a key is missing only if the database says so."""
        found = {(event.what, event.answer) for event in scenario.events("found")}
        assert found == {(key, b"OK " + value) for key, value in ALIASES.items()}
        assert {event.answer for event in scenario.events("missing", database=True)} == {b"NOTFOUND "}
        without = Counter(event.answer.split()[0] for event in scenario.events("missing", phase="database killed"))
        assert without[b"TEMP"] > 5
        assert without.keys() <= {b"TEMP", b"TIMEOUT", b"NOTFOUND"}

    def test_hits(self, scenario: Scenario) -> None:
        """A database that is away, or hangs, does not keep what memcached has waiting."""
        for name in ("database killed", "database hung"):
            found = scenario.events("found", phase=name)
            assert len(found) > 3
            assert max(event.seconds for event in found) < 2, name


class TestDocument:
    def test_check(self, scenario: Scenario) -> None:
        """The files have no errors, and nothing is to be warned of."""
        done = check(scenario.site.hosts[0].config_path)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout

    def test_commands(self, scenarios: dict[str, Scenario]) -> None:
        """Both hosts show the same map and the same greylist."""
        scenario = scenarios["redis"]
        first, second = scenario.site.hosts
        (shown,) = [line for line in COMMANDS if line.startswith("postmap ")]
        place = scenario.site.directory / "postmap"
        place.mkdir()
        postfix = Postfix(place)
        for host in (first, second):
            _, *arguments = host.move(shown).replace("bob@", "user1@").split()
            assert postfix.postmap(*arguments).stdout == b"mailbox1@example.net\n"
        operations = [command.split()[2] for command in COMMANDS if command.startswith("socketmap-memcache greylist ")]
        assert operations == ["list", "stats"]
        with ThreadPoolExecutor() as threads:
            firsts, seconds = (list(threads.map(partial(greylist, host), operations)) for host in (first, second))
        assert firsts == seconds
        assert firsts[0].count("@example.org") >= len(scenario.load.mails)

    def test_log(self, scenario: Scenario) -> None:
        """The lines that are shown are in the log; nothing that was unforeseen is."""
        logs = "".join(host.log for host in scenario.site.hosts)
        assert "Traceback" not in logs
        assert "reason=no store" in logs
        (block,) = [block for block in BLOCKS if block.startswith("memcached inet:")]
        for line in block.splitlines():
            if line.startswith(("memcached ", scenario.site.kind)):
                assert any(host.move(line) in logs for host in scenario.site.hosts), line

    @needs_root
    def test_postfix(self, scenarios: dict[str, Scenario]) -> None:
        """A Postfix beside each host: unknown recipients are refused, and what one has deferred the other takes."""
        with ExitStack() as stack:
            ports = []
            for host in scenarios["pgsql"].site.hosts:
                place = host.place / "mta"
                place.mkdir()
                shown = parameters(host.move(FILES["/etc/postfix/main.cf"]))
                ports.append(
                    stack.enter_context(Postfix(place, {"virtual_alias_domains": "example.org", **shown})).port
                )
            first, second = ports
            for port in ports:
                assert ask_recipient(port, "nobody@example.org").code == 550
            reply = ask_recipient(first, "user1@example.org")
            assert (reply.code, "Greylisted" in reply.text) == (450, True), reply
            time.sleep(DELAY)
            assert ask_recipient(second, "user1@example.org").code == 250
            assert ask_recipient(first, "user1@example.org").code == 250
            scenarios["pgsql"].site.hosts[0].kill()
            assert ask_recipient(first, "user1@example.org").code == 451
            assert ask_recipient(second, "user1@example.org").code == 250


def parameters(text: str) -> dict[str, str]:
    """Read the lines of a main.cf."""
    logical = re.sub(r"\n +", " ", text).splitlines()
    return {name: value.strip() for name, _, value in (line.partition(" =") for line in logical)}


def greylist(host: Host, operation: str) -> str:
    """Give what the command prints at a host."""
    argv = [*COMMAND[:-1], "greylist", operation, "--config", str(host.config_path)]
    return subprocess.run(argv, capture_output=True, check=True, text=True, timeout=60).stdout
