"""A real memcached that dies, comes back, hangs, or has values that are too large: no false answer, ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import attrs
import pytest

from .harness.memcached import Memcached
from .harness.processes import scratch_directory, wait_until, write_config
from .harness.service import Service
from .harness.socketmap import SocketmapClient

if TYPE_CHECKING:
    from typing_extensions import Self

KEYS = [b"key%d" % number for number in range(200)]
VALUES = {key: b"value of " + key for key in KEYS}
LARGE = b"x" * 200

#: The maps of one memcached; each is called after it, as in ``unix-backed``.
MAPS = {
    "once": "timeout = 1\nmax_try = 1\n",
    "twice": "timeout = 1\nmax_try = 2\nretry_pause = 1\n",
    "patient": "timeout = 10\nmax_try = 1\n",
    "backed": "timeout = 1\nmax_try = 1\nbackup = inline:{key1=backup, large=small}\n",
    "small": "max_try = 1\ndata_size_limit = 199\n",
    "small-twice": "max_try = 2\nretry_pause = 1\ndata_size_limit = 199\n",
    "small-backed": "max_try = 1\ndata_size_limit = 199\nbackup = inline:{large=small}\n",
    "large": "max_try = 1\ndata_size_limit = 200\n",
}


@attrs.frozen
class Site:
    """The service in front of two memcacheds."""

    service: Service
    memcacheds: dict[str, Memcached]

    def client(self) -> SocketmapClient:
        return SocketmapClient(self.service.addresses[0])

    def fill(self, name: str) -> None:
        self.memcacheds[name].set_many({**VALUES, b"large": LARGE})

    def restore(self, name: str) -> None:
        """Let a memcached run, with all keys, and wait until the service knows."""
        memcached = self.memcacheds[name]
        if memcached.running:
            memcached.thaw()
        else:
            memcached.start()
        self.fill(name)
        with self.client() as client:
            wait_until(lambda: client.ask(f"{name}-once", b"key0") == b"OK value of key0", "memcached is found again")


@pytest.fixture(scope="module")
def module_site() -> Iterator[Site]:
    with scratch_directory() as directory:
        memcacheds = {}
        tables = []
        for name in ("unix", "inet"):
            place = directory / name
            place.mkdir()
            memcacheds[name] = Memcached(place, tcp=name == "inet")
            for map_name, text in MAPS.items():
                cf = write_config(place / f"{map_name}.cf", f"memcache = {memcacheds[name].address}\n{text}")
                tables.append(f"{name}-{map_name}=memcache:{cf}")
        with memcacheds["unix"], memcacheds["inet"], Service(directory, f"tables = {', '.join(tables)}\n") as service:
            yield Site(service, memcacheds)


@pytest.fixture
def site(module_site: Site) -> Site:
    for name in module_site.memcacheds:
        module_site.restore(name)
    return module_site


class Load:
    """Clients that look keys up one after the other, and note every answer; a context manager."""

    def __init__(self, site: Site, name: str, clients: int = 6) -> None:
        self.answers: list[tuple[bytes, bytes, float]] = []
        self._name = name
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(site.client(), turn)) for turn in range(clients)]

    def _run(self, client: SocketmapClient, turn: int) -> None:
        with client:
            while not self._ended.is_set():
                turn += 1
                key = KEYS[turn % len(KEYS)]
                begun = time.monotonic()
                answer = client.ask(self._name, key)
                self.answers.append((key, answer, time.monotonic() - begun))

    def wait_for(self, more: int) -> None:
        """Wait for this many answers from now on."""
        target = len(self.answers) + more
        wait_until(lambda: len(self.answers) >= target, "look-ups go on")

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def verdicts(self) -> list[str]:
        """Sort the answers into right, failed, and whatever should not be."""
        return [
            "right"
            if answer == b"OK " + VALUES[key]
            else "failed"
            if answer.startswith((b"TEMP ", b"TIMEOUT "))
            else repr(answer)
            for key, answer, _ in self.answers
        ]


class TestKilled:
    @pytest.mark.parametrize("name", ["unix", "inet"])
    def test_while_look_ups_run(self, site: Site, name: str) -> None:
        """When memcached is killed, each look-up gets the right value or fails, and none is told "not found"."""
        with Load(site, f"{name}-once") as load:
            load.wait_for(500)
            site.memcacheds[name].kill()
            load.wait_for(500)
        verdicts = load.verdicts()
        assert set(verdicts) == {"right", "failed"}
        assert set(verdicts[-50:]) == {"failed"}

    @pytest.mark.parametrize("name", ["unix", "inet"])
    def test_restart(self, site: Site, name: str) -> None:
        """When memcached runs again on the same address, look-ups go on over the same client connection."""
        with site.client() as client:
            site.memcacheds[name].kill()
            assert client.ask(f"{name}-once", b"key1").startswith(b"TEMP ")
            site.memcacheds[name].start()
            site.fill(name)
            wait_until(lambda: client.ask(f"{name}-once", b"key1") == b"OK value of key1", "memcached is found again")

    def test_restart_between_look_ups(self, site: Site) -> None:
        """A restart that happens between two look-ups costs the second one nothing."""
        with site.client() as client:
            assert client.ask("unix-once", b"key1") == b"OK value of key1"
            site.memcacheds["unix"].restart()
            site.fill("unix")
            assert client.ask("unix-once", b"key1") == b"OK value of key1"

    def test_backup(self, site: Site) -> None:
        """With memcached dead the backup answers, at once, what it has and what it has not."""
        site.memcacheds["unix"].kill()
        with site.client() as client:
            client.ask("unix-backed", b"key0")
            begun = time.monotonic()
            assert client.ask("unix-backed", b"key1") == b"OK backup"
            assert client.ask("unix-backed", b"key2") == b"NOTFOUND "
            assert time.monotonic() - begun < 0.5

    def test_reason(self, site: Site) -> None:
        """The reply names the server that is down."""
        site.memcacheds["unix"].kill()
        with site.client() as client:
            wait_until(lambda: b" is down: " in client.ask("unix-once", b"key1"), "the service knows")
            assert client.ask("unix-once", b"key1").startswith(
                b"TEMP memcached " + site.memcacheds["unix"].address.encode()
            )


class TestFrozen:
    @pytest.mark.parametrize(
        "name, least, most",
        [pytest.param("unix-once", 0.9, 2.5, id="one-try"), pytest.param("inet-twice", 1.4, 4.0, id="two-tries")],
    )
    def test_timeout(self, site: Site, name: str, least: float, most: float) -> None:
        """A look-up times out after its time limit; with more tries, when the server does not answer a probe either."""
        server = name.partition("-")[0]
        site.memcacheds[server].freeze()
        with site.client() as client:
            begun = time.monotonic()
            answer = client.ask(name, b"key1")
            seconds = time.monotonic() - begun
        assert answer.startswith(f"TIMEOUT memcached {site.memcacheds[server].address}".encode())
        assert b": no answer within " in answer
        assert least < seconds < most

    def test_others(self, site: Site) -> None:
        """While one memcached hangs, look-ups in another are as fast as ever."""
        site.memcacheds["unix"].freeze()
        with site.client() as hanging, Load(site, "inet-once", 2) as load:
            hanging.send("unix-twice", *KEYS)
            assert {hanging.receive()[:8] for _ in KEYS} == {b"TIMEOUT "}
        assert set(load.verdicts()) == {"right"}
        assert len(load.answers) > 500
        assert max(seconds for _, _, seconds in load.answers) < 0.5

    def test_backup(self, site: Site) -> None:
        """When memcached does not answer in time, the backup does."""
        site.memcacheds["unix"].freeze()
        with site.client() as client:
            assert client.ask_all("unix-backed", [b"key1", b"key2"]) == [b"OK backup", b"NOTFOUND "]

    def test_goes_on(self, site: Site) -> None:
        """Late replies answer nobody: after the hang each look-up gets the value of its own key."""
        site.memcacheds["unix"].freeze()
        early, late = KEYS[:100], KEYS[100:]
        with site.client() as impatient, site.client() as patient:
            patient.send("unix-patient", *late)
            assert {answer[:8] for answer in impatient.ask_all("unix-once", early)} == {b"TIMEOUT "}
            site.memcacheds["unix"].thaw()
            # These were sent before the hang ended, behind those that timed out ...
            assert [patient.receive() for _ in late] == [b"OK " + VALUES[key] for key in late]
            # ... and these after it, while replies to the first ones may still arrive.
            assert impatient.ask_all("unix-once", late) == [b"OK " + VALUES[key] for key in late]

    def test_freezes_while_look_ups_run(self, site: Site) -> None:
        """Short and long hangs under load give right values and time-outs, and nothing else."""
        with Load(site, "inet-once") as load:
            for seconds in (0.2, 1.2, 0.5):
                load.wait_for(200)
                site.memcacheds["inet"].freeze()
                time.sleep(seconds)
                site.memcacheds["inet"].thaw()
            load.wait_for(200)
        assert set(load.verdicts()) <= {"right", "failed"}
        assert set(load.verdicts()[-20:]) == {"right"}


class TestLargeValue:
    def test_limit(self, site: Site) -> None:
        """A value of exactly data_size_limit bytes is an answer."""
        with site.client() as client:
            assert client.ask("unix-large", b"large") == b"OK " + LARGE

    @pytest.mark.parametrize("name", ["unix-small", "inet-small-twice"])
    def test_above(self, site: Site, name: str) -> None:
        """A value above data_size_limit is a failure that gives the reason, and the next key is answered."""
        with site.client() as client:
            answer, next_one = client.ask_all(name, [b"large", b"key1"])
            assert answer.startswith(b"TEMP memcached ")
            assert b"value of 200 bytes (data_size_limit is 199)" in answer
            assert next_one == b"OK value of key1"

    def test_backup(self, site: Site) -> None:
        """A value above data_size_limit is answered by the backup."""
        with site.client() as client:
            assert client.ask("inet-small-backed", b"large") == b"OK small"
