"""Servers that answer too much, too little, too late or something else: the service says what Postfix would say."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import attrs
import pytest

from .harness.postfix import Postfix
from .harness.processes import scratch_directory, write_config
from .harness.scripted import Get, Script, ScriptedMemcached, scripted_memcached, value
from .harness.service import Service
from .harness.socketmap import SocketmapClient

VALUE = value(b"key", b"value")
MISS = b"END\r\n"


def says(*replies: bytes) -> Script:
    """Answer with each of the replies in turn, and with the last one from then on."""
    left = list(replies)

    def script(get: Get) -> bool:
        get.send(left.pop(0) if len(left) > 1 else left[0])
        return True

    return script


def leaves(data: bytes = b"", then: bytes | None = None) -> Script:
    """Send this, and close the connection; on later connections send something else."""

    def script(get: Get) -> bool:
        get.send(data if get.connection == 1 or then is None else then)
        return get.connection > 1 and then is not None

    return script


def hangs(data: bytes = b"", then: bytes | None = None) -> Script:
    """Send this and no more; on later connections send something else."""

    def script(get: Get) -> bool:
        get.send(data if get.connection == 1 or then is None else then)
        if get.connection == 1 or then is None:
            get.hang()
        return True

    return script


def trickles(data: bytes, pause: float) -> Script:
    """Send byte by byte."""

    def script(get: Get) -> bool:
        for byte in data:
            get.send(bytes([byte]))
            get.wait(pause)
        return True

    return script


@attrs.frozen
class Case:
    """A server, a table, and what both clients are to make of it.

    :ivar script: makes a new script; each client gets a server of its own.
    :ivar answer: the value, ``None`` for a miss; or else the status of the service's failure, ``TEMP`` or ``TIMEOUT``.
    :ivar reason: part of what the service's failure says.
    """

    script: Callable[[], Script]
    answer: bytes | str | None
    reason: str = ""
    settings: str = ""

    @property
    def failure(self) -> bool:
        return isinstance(self.answer, str)


LONG_LINE = b"VALUE key 0 5 %b\r\nvalue\r\nEND\r\n" % (b"x" * 100)

CASES = {
    # value above data_size_limit
    "value-at-limit": Case(lambda: says(VALUE), b"value", settings="data_size_limit = 5"),
    "value-above-limit": Case(lambda: says(VALUE), "TEMP", "data_size_limit is 4", "data_size_limit = 4"),
    "value-far-above-limit": Case(lambda: says(value(b"key", b"x" * 300_000)), "TEMP", "data_size_limit is 10240"),
    "length-far-above-limit": Case(lambda: hangs(b"VALUE key 0 999999999\r\nxx"), "TIMEOUT", "1 s", "timeout = 1"),
    "value-above-limit-then-well": Case(lambda: says(value(b"key", b"x" * 11_000), VALUE), b"value"),
    # line above line_size_limit
    "line-at-limit": Case(lambda: says(VALUE), b"value", settings="line_size_limit = 14"),
    "line-above-limit": Case(lambda: says(VALUE), "TEMP", "line_size_limit", "line_size_limit = 13"),
    "line-far-above-limit": Case(lambda: says(LONG_LINE), "TEMP", "line_size_limit", "line_size_limit = 50"),
    "line-without-end": Case(lambda: hangs(b"x" * 5000), "TEMP", "line_size_limit"),
    "line-above-limit-then-miss": Case(lambda: says(LONG_LINE, MISS), None, settings="line_size_limit = 50"),
    # garbage
    "greeting": Case(lambda: says(b"220 mail.example.com ESMTP\r\n"), "TEMP", "220 mail"),
    "binary": Case(lambda: says(bytes(range(256)) * 4), "TEMP", "unexpected reply"),
    "empty-line": Case(lambda: says(b"\r\n"), "TEMP", "unexpected reply"),
    "stored": Case(lambda: says(b"STORED\r\n"), "TEMP", "STORED"),
    "not-found": Case(lambda: says(b"NOT_FOUND\r\n"), "TEMP", "NOT_FOUND"),
    "value-without-length": Case(lambda: says(b"VALUE key 0\r\nvalue\r\nEND\r\n"), "TEMP", "VALUE key 0"),
    "value-of-other-length": Case(lambda: says(b"VALUE key 0 4\r\nvalue\r\nEND\r\n"), "TEMP", "line end"),
    "server-error": Case(lambda: says(b"SERVER_ERROR out of memory\r\n"), "TEMP", "SERVER_ERROR out of memory"),
    "server-error-then-well": Case(lambda: says(b"SERVER_ERROR out of memory\r\n", VALUE), b"value"),
    "garbage-then-well": Case(lambda: says(b"220 mail.example.com ESMTP\r\n", VALUE), b"value"),
    "garbage-then-miss": Case(lambda: says(b"220 mail.example.com ESMTP\r\n", MISS), None),
    "garbage-twice-then-well": Case(lambda: says(b"?\r\n", b"?\r\n", VALUE), "TEMP", "unexpected reply"),
    "garbage-twice-then-well-of-three": Case(lambda: says(b"?\r\n", b"?\r\n", VALUE), b"value", settings="max_try = 3"),
    "garbage-once-of-one": Case(lambda: says(b"?\r\n", VALUE), "TEMP", "unexpected reply", "max_try = 1"),
    "more-than-asked-for": Case(lambda: says(VALUE + MISS + VALUE), b"value"),
    # half a reply
    "leaves": Case(leaves, "TEMP", "connection lost"),
    "leaves-in-line": Case(lambda: leaves(b"VALUE key 0"), "TEMP", "connection lost"),
    "leaves-in-miss": Case(lambda: leaves(b"END"), "TEMP", "connection lost"),
    "leaves-in-value": Case(lambda: leaves(b"VALUE key 0 5\r\nval"), "TEMP", "connection lost"),
    "leaves-after-value": Case(lambda: leaves(b"VALUE key 0 5\r\nvalue"), "TEMP", "connection lost"),
    "leaves-before-end": Case(lambda: leaves(b"VALUE key 0 5\r\nvalue\r\n"), b"value"),
    "leaves-then-well": Case(lambda: leaves(then=VALUE), b"value"),
    "leaves-then-miss": Case(lambda: leaves(b"VALUE key 0 5\r\nval", then=MISS), None),
    # a server that hangs
    "hangs": Case(hangs, "TIMEOUT", "no answer within 1 s", "timeout = 1"),
    "hangs-in-line": Case(lambda: hangs(b"VAL"), "TIMEOUT", "no answer within 1 s", "timeout = 1\nmax_try = 1"),
    "hangs-in-miss": Case(lambda: hangs(b"END\r"), "TIMEOUT", "no answer within 1 s", "timeout = 1\nmax_try = 1"),
    "hangs-in-value": Case(lambda: hangs(b"VALUE key 0 5\r\nval"), "TIMEOUT", "within 1 s", "timeout = 1\nmax_try = 1"),
    "hangs-before-end": Case(lambda: hangs(b"VALUE key 0 5\r\nvalue\r\n"), b"value", settings="timeout = 1"),
    "hangs-then-well": Case(lambda: hangs(then=VALUE), b"value", settings="timeout = 1"),
    "hangs-then-miss": Case(lambda: hangs(then=MISS), None, settings="timeout = 1"),
    "slow": Case(lambda: trickles(VALUE, 0.01), b"value"),
    "slow-miss": Case(lambda: trickles(MISS, 0.1), None),
}


@attrs.frozen
class Answer:
    """What postmap says.

    :ivar warnings: in its own words, which depend on the client.
    """

    value: bytes
    status: int
    error: bool
    warnings: str = attrs.field(default="", eq=False)


class Site:
    """The service and Postfix, each in front of its own unusual servers; all are asked at once, because most are slow.

    :ivar native: what Postfix says with its own client.
    :ivar ours: what it says through the service.
    """

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._directory = stack.enter_context(scratch_directory())
        self._tables: list[str] = []
        files = {
            (name, backup): (
                self.table(f"native-{name}{backup}", case.script(), case.settings, backup),
                self.table(f"ours-{name}{backup}", case.script(), case.settings, backup),
            )
            for name, case in CASES.items()
            for backup in self.backups(case)
        }
        self.wrong_key = self.server("wrong-key", another_key)
        self.twice = self.server("twice", twice)
        self.trickle = self.server("trickle", trickles(VALUE, 0.1), "timeout = 1\nmax_try = 1")
        self.service = Service(self._directory, f"tables = {', '.join(self._tables)}\n")
        stack.enter_context(self.service)
        postfix = Postfix(self._directory)

        def ask(table: str) -> Answer:
            ran = postfix.postmap("-q", "key", table)
            return Answer(ran.stdout, ran.returncode, b"query error" in ran.stderr, ran.stderr.decode())

        with ThreadPoolExecutor(24) as threads:
            native: dict[tuple[str, str], Future[Answer]] = {}
            ours: dict[tuple[str, str], Future[Answer]] = {}
            for what, (native_file, our_file) in files.items():
                native[what] = threads.submit(ask, f"memcache:{native_file}")
                ours[what] = threads.submit(ask, self.service.map(our_file.stem))
        self.native = {what: answer.result() for what, answer in native.items()}
        self.ours = {what: answer.result() for what, answer in ours.items()}

    @staticmethod
    def backups(case: Case) -> list[str]:
        """Return the backups to try a case with; a backup that has the key says more where there is a choice."""
        return ["", "-backed"] if case.answer is None or case.failure else [""]

    def server(self, name: str, script: Script, settings: str = "") -> ScriptedMemcached:
        """Start a server, with a table of its name."""
        server = self._stack.enter_context(scripted_memcached(self._directory / f"{name}.sock", script))
        cf = write_config(self._directory / f"{name}.cf", f"memcache = {server.address}\n{settings}\n")
        self._tables.append(f"{name}=memcache:{cf}")
        return server

    def table(self, name: str, script: Script, settings: str, backup: str) -> Path:
        if backup:
            settings += "\nbackup = inline:{key=backup}"
        self.server(name, script, settings)
        return self._directory / f"{name}.cf"

    def client(self) -> SocketmapClient:
        return SocketmapClient(self.service.addresses[0])


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(stack)


def expected(answer: bytes | str | None) -> Answer:
    if isinstance(answer, str):
        return Answer(b"", 1, error=True)
    return Answer(b"", 1, error=False) if answer is None else Answer(answer + b"\n", 0, error=False)


@pytest.mark.parametrize("name", CASES)
class TestAnswer:
    def test_same(self, site: Site, name: str) -> None:
        """Postfix says the same through the service as with its own client."""
        case = CASES[name]
        assert site.native[name, ""] == expected(case.answer)
        assert site.ours[name, ""] == site.native[name, ""]

    def test_backup(self, site: Site, name: str) -> None:
        """With a backup both clients give its answer instead of a miss or a failure."""
        if (name, "-backed") in site.native:
            assert site.native[name, "-backed"] == expected(b"backup")
            assert site.ours[name, "-backed"] == site.native[name, "-backed"]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.failure])
class TestReason:
    def test_warning(self, site: Site, name: str) -> None:
        """Postfix logs the service's reason, and whether it was a time-out."""
        case, warnings = CASES[name], site.ours[name, ""].warnings
        kind = "timeout" if case.answer == "TIMEOUT" else "temporary"
        assert f"socketmap server {kind} error: memcached unix:" in warnings
        assert case.reason in warnings


def another_key(get: Get) -> bool:
    get.send(value(b"other", b"value"))
    return True


def twice(get: Get) -> bool:
    get.send(value(get.key, get.key) * 2)
    return True


class TestOnlyHere:
    def test_value_of_another_key(self, site: Site) -> None:
        """A value that comes for another key than was asked for is a failure; Postfix would take it."""
        with site.client() as client:
            answer = client.ask("wrong-key", b"key")
        assert answer.startswith(b"TEMP memcached ")
        assert b"a value for another key, b'other'" in answer

    def test_unasked_replies(self, site: Site) -> None:
        """A reply that nobody asked for is never taken for that to the next look-up."""
        with site.client() as client:
            for key in (b"a", b"b", b"c"):
                assert client.ask("twice", key) == b"OK " + key
            assert client.ask_all("twice", [b"d", b"e", b"f"])[0] == b"OK d"

    def test_trickle(self, site: Site) -> None:
        """The time-out is for the whole of a try; Postfix would wait as long again for each byte."""
        begun = time.monotonic()
        with site.client() as client:
            assert client.ask("trickle", b"key").startswith(b"TIMEOUT ")
        assert 0.9 < time.monotonic() - begun < 2.5
