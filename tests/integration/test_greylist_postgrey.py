"""The same requests to a real postgrey and to our policy: the same answers, and the same lines in the log."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import attrs
import pytest

from socketmap_memcache import __version__

from .greylist_cases import BEGIN, Attributes, Options, options, requests
from .greylist_sides import Answer, EverlastingTable, Ours, ask_postgrey
from .harness.policy import PolicyClient
from .harness.postgrey import Postgrey
from .harness.processes import Server, accepts, free_port, scratch_directory, wait_until, write_config

#: Sets of options that share the requests; some of the postgreys run at the same time.
_SETS = 12
_AT_ONCE = 3

#: Every so many sets have whitelists, and times that go back.
_WITH_LISTS = 3
_BACKWARD = 2

#: The part of the requests that are decided over a table on the disk, which takes its time.
_ON_DISK = 50

#: What postgrey adds to a message, if it is not told otherwise.
_HEADER = "X-Greylist: delayed %t seconds by postgrey-%v at %h; %d"

_DAY = 86400
_DATE = re.compile(rb"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d [A-Z]+")


@attrs.frozen
class Case:
    """Requests, and what postgrey with some options answered to them."""

    options: Options
    requests: list[Attributes]
    answers: list[Answer]

    def compare(self, ours: Ours) -> None:
        for number, (attributes, theirs) in enumerate(zip(self.requests, self.answers, strict=True)):
            answer = ours.ask(attributes)
            assert (comparable(answer.action), answer.lines) == (comparable(theirs.action), theirs.lines), (
                f"request {number}: {attributes}\n{self.options}"
            )


def comparable(action: bytes) -> bytes:
    """Return an action without what differs: the version, and the date, which is always today's in postgrey's."""
    return _DATE.sub(b"DATE", action).replace(__version__.encode(), b"VERSION").replace(b"1.37", b"VERSION")


def ask(directory: Path, made: Options, asked: list[Attributes]) -> Case:
    """Ask a postgrey with a database of its own."""
    directory.mkdir()
    with Postgrey(directory, made.postgrey, made.client_whitelist, made.recipient_whitelist) as postgrey:
        return Case(made, asked, ask_postgrey(postgrey, asked))


def main_cf(directory: Path, made: Options) -> str:
    """Return our parameters, with postgrey's own whitelists."""
    return made.main_cf + (
        f"greylist_client_whitelist = {directory}/postgrey/whitelist_clients\n"
        f"greylist_recipient_whitelist = {directory}/postgrey/whitelist_recipients\n"
    )


def reason(answer: Answer) -> str:
    found = re.search(r"reason=([^,]*)", answer.lines[-1])
    assert found is not None, answer
    return re.sub("[0-9]+", "N", found[1]) + (" with header" if answer.action.startswith(b"PREPEND") else "")


@pytest.fixture(scope="module")
def random(request: pytest.FixtureRequest) -> Random:
    seed = request.config.getoption("--greylist-seed")
    print(f"--greylist-seed={seed}")
    return Random(seed)


@pytest.fixture
def scratch() -> Iterator[Path]:
    with scratch_directory() as directory:
        yield directory


def test_same_as_postgrey(scratch: Path, random: Random, request: pytest.FixtureRequest) -> None:
    """Action, text and log lines are postgrey's, for requests in any order of time, with any of its options."""
    count = request.config.getoption("--greylist-cases") // _SETS + 1
    places = [scratch / str(number) for number in range(_SETS)]
    sets = [options(random, lists=number % _WITH_LISTS == 0) for number in range(_SETS)]
    asked = [
        requests(random, count, edges=made.edges, forward=number % _BACKWARD != 0) for number, made in enumerate(sets)
    ]
    reasons = Counter[str]()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for number, case in enumerate(pool.map(ask, places, sets, asked)):
            # When time goes back, a store with times to live has forgotten what it would have then.
            table = EverlastingTable() if number % _BACKWARD == 0 else None
            with Ours(main_cf(places[number], case.options), table) as ours:
                case.compare(ours)
            reasons.update(map(reason, case.answers))
    print(f"{reasons.total()} requests with {_SETS} sets of options: {dict(reasons)}")
    assert {"new", "early-retry (Ns missing)", "triplet found with header", "triplet found"} <= reasons.keys()


def test_same_over_lmdb(scratch: Path, random: Random, request: pytest.FixtureRequest) -> None:
    """They are also when the records are on the disk."""
    made, count = options(random, lists=False), request.config.getoption("--greylist-cases") // _ON_DISK
    case = ask(scratch / "0", made, requests(random, count, edges=made.edges, forward=True))
    with Ours(case.options.main_cf, lmdb=scratch / "greylist.lmdb") as ours:
        case.compare(ours)


def test_whitelists_of_the_package(scratch: Path, random: Random) -> None:
    """They are with the lists that come with postgrey."""
    clients, recipients = (Path(f"/etc/postgrey/whitelist_{name}").read_text() for name in ("clients", "recipients"))
    names = re.findall(r"(?m)^[\w.-]+\.[a-z]+$", clients)
    asked = requests(random, 500, edges=[300], forward=True)
    for attributes in asked:
        if random.random() < 0.5:
            attributes["client_name"] = random.choice(["", "a.", "x", "mail12."]) + random.choice(names)
        if random.random() < 0.1:
            attributes["recipient"] = random.choice(["Postmaster@a.example", "abuse+x@b.example", "abuses@c.example"])
    case = ask(scratch / "0", Options([], "", clients, recipients), asked)
    with Ours(main_cf(scratch / "0", case.options) + f"greylist_header = {_HEADER}\n") as ours:
        case.compare(ours)


class InShell(Server):
    """The command that docs/greylisting.rst has for systemd, with what is installed here."""

    def __init__(self, directory: Path) -> None:
        self.address = f"inet:127.0.0.1:{free_port()}"
        lines = f"policies = greylist\ngreylist_table = memory:\npolicy_listen = {self.address}\n"
        config = write_config(directory / "main.cf", lines)
        document = (Path(__file__).parents[2] / "docs/greylisting.rst").read_text()
        (command,) = re.findall(r"ExecStart=(.+\\\n.+)", document)
        command = command.replace("/opt/socketmap-memcache/bin", str(Path(sys.executable).parent))
        super().__init__(shlex.split(command.replace(" \\\n", f" --config {config}")), directory / "mail.log")

    def ready(self) -> bool:
        return accepts(self.address)


def test_mail_log(scratch: Path) -> None:
    """As documented, systemd gets lines that logcheck takes for postgrey's, however many come at a time."""
    with InShell(scratch) as server, PolicyClient(server.address) as client:
        client.ask_all([mail(0, sender=f"{'x' * number}@b.example") for number in range(1, 21)])
    wait_until(lambda: server.log.count("action=greylist") == 20, "all is logged")
    lines = [f"Nov 22 12:00:00 mx postgrey[1]: {line}\n" for line in server.log.splitlines() if "action=" in line]
    rules = ["grep", "-vEf", "/etc/logcheck/ignore.d.server/postgrey"]
    left = subprocess.run(rules, check=False, input="".join(lines), stdout=subprocess.PIPE, text=True)
    assert (left.returncode, left.stdout) == (1, "")  # grep has read the rules, and selected nothing


def mail(seconds: int, address: str = "192.0.2.1", **others: str) -> Attributes:
    """Make a request, so long after the beginning."""
    client = {"client_address": address, "client_name": "unknown"}
    addresses = {"sender": "a@b.example", "recipient": "c@d.example"}
    return client | addresses | {"policy_test_time": str(BEGIN + seconds)} | others


def test_one_header_a_message(scratch: Path) -> None:
    """A message has one header for all its recipients, as long as no more than ten messages passed since."""
    recipients = [f"{name}@d.example" for name in "cde"]
    messages = [(f"{name}@b.example", f"1.{number}") for number, name in enumerate("abcdefghijklmn")]
    asked = [mail(0, sender=sender, recipient=recipient) for sender, _ in messages for recipient in recipients]
    for recipient, order in zip(recipients, (messages, messages[::-1], messages), strict=True):
        asked += [mail(300, sender=sender, recipient=recipient, instance=instance) for sender, instance in order]
    made = Options(["--auto-whitelist-clients=0", f"--x-greylist-header={_HEADER}"], "", "", "")
    case = ask(scratch / "0", made, asked)
    passed = [answer.action.split()[0] for answer in case.answers if not answer.action.startswith(b"DEFER")]
    assert passed.count(b"PREPEND") > len(messages)
    assert passed.count(b"DUNNO") > len(messages) // 2
    with Ours(f"greylist_auto_whitelist_clients = 0\ngreylist_header = {_HEADER}\n") as ours:
        case.compare(ours)


class TestMendedFaults:
    """Where we do not answer as postgrey does."""

    @pytest.fixture
    def postgrey(self, scratch: Path) -> Iterator[Postgrey]:
        with Postgrey(scratch) as server:
            yield server

    def actions(self, postgrey: Postgrey, asked: list[Attributes]) -> tuple[list[str], list[str]]:
        """Return the first word of what each answers."""
        with Ours("") as ours:
            both = ask_postgrey(postgrey, asked), [ours.ask(attributes) for attributes in asked]
        theirs, own = ([answer.action.split()[0].decode() for answer in answers] for answers in both)
        return theirs, own

    @pytest.mark.parametrize("address", ["unknown", "", "fe80::1%eth0", "192.0.2.1 ", "192.0.2.256"])
    def test_no_address(self, postgrey: Postgrey, address: str) -> None:
        """What is no address is let through; postgrey dies of most of them."""
        asked = mail(0, address)
        with Ours("") as ours:
            assert ours.ask(asked).action == b"DUNNO"
        if address in {"unknown", "fe80::1%eth0", "192.0.2.256"}:
            with PolicyClient(postgrey.address) as client, pytest.raises(EOFError):
                client.ask(asked)

    def test_mapped_addresses(self, postgrey: Postgrey) -> None:
        """IPv4 addresses in IPv6 form are the IPv4 addresses; postgrey takes all of them for one network."""
        asked = [
            mail(0, "::ffff:192.0.2.1"),
            mail(300, "::ffff:198.51.100.1"),
            mail(301, "192.0.2.1"),
        ]
        theirs, own = self.actions(postgrey, asked)
        assert theirs == ["DEFER_IF_PERMIT", "PREPEND", "DEFER_IF_PERMIT"]
        assert own == ["DEFER_IF_PERMIT", "DEFER_IF_PERMIT", "PREPEND"]

    def test_age_of_triplets(self, postgrey: Postgrey) -> None:
        """A triplet that was not seen for more than max_age is new; postgrey knows it until it cleans its database."""
        asked = [mail(0), mail(300), mail(300 + 35 * _DAY), mail(301 + 70 * _DAY)]
        theirs, own = self.actions(postgrey, asked)
        assert theirs == ["DEFER_IF_PERMIT", "PREPEND", "DUNNO", "DUNNO"]
        assert own == ["DEFER_IF_PERMIT", "PREPEND", "DUNNO", "DEFER_IF_PERMIT"]

    def test_age_of_clients(self, postgrey: Postgrey) -> None:
        """So is a client that was auto-whitelisted."""
        asked = [
            mail(7200 * number + seconds, sender=f"{sender}@b.example")
            for number, sender in enumerate("abcde")
            for seconds in (0, 300)
        ]
        asked += [mail(_DAY, sender="x@b.example"), mail(40 * _DAY, sender="y@b.example")]
        theirs, own = self.actions(postgrey, asked)
        assert theirs == ["DEFER_IF_PERMIT", "PREPEND"] * 5 + ["DUNNO", "DUNNO"]
        assert own == ["DEFER_IF_PERMIT", "PREPEND"] * 5 + ["DUNNO", "DEFER_IF_PERMIT"]

    def test_log(self, postgrey: Postgrey) -> None:
        """Text is logged as it is, if it can be printed; postgrey doubles percent signs, and leaves out a zero."""
        asked = mail(0, sender="50%@jörg.example", queue_id="0")
        with PolicyClient(postgrey.address) as client, Ours("") as ours:
            client.ask(asked)
            (line,) = ours.ask(asked).lines
        assert "sender=50%%@j%C3%B6rg.example" in postgrey.log
        assert "0: action=" not in postgrey.log
        assert "sender=50%@jörg.example" in line
        assert line.startswith("0: action=")

    def test_date(self, postgrey: Postgrey) -> None:
        """The date in the header is that of the request."""
        asked = [mail(0), mail(300)]
        with Ours("") as ours:
            header = [ours.ask(attributes) for attributes in asked][1].action
        assert b" 2001 " in header
        assert b" 2001 " not in ask_postgrey(postgrey, asked)[1].action
