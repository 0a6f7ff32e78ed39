"""What a real postgrey remembers is what this service goes by after the import."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from .harness.greylist_command import greylist, serve
from .harness.policy import PolicyClient
from .harness.postgrey import Postgrey
from .harness.processes import scratch_directory

HOUR = 3600
DAY = 24 * HOUR

CLIENTS = [
    *(f"192.0.2.{host}" for host in range(1, 11)),
    *(f"198.51.{network}.9" for network in range(100, 110)),
    *(f"2001:db8:1:{network}::{network}" for network in range(8, 14)),
    *(f"2001:db8:9::{host}" for host in range(1, 5)),
]
SENDERS = ["Alice@example.com", "list+x@example.com", "bounce-123-4@example.com", "prvs=1234567890=x@example.com", ""]
RECIPIENTS = ["Bob@example.org", "carol+x@example.org", "d/e@example.net"]

Mail = Mapping[str, str]


@pytest.fixture
def directory() -> Iterator[Path]:
    with scratch_directory() as scratch:
        yield scratch


def mail(client: str, sender: str, recipient: str) -> Mail:
    return {"client_address": client, "client_name": "mx.example.com", "sender": sender, "recipient": recipient}


def ages(choice: random.Random) -> list[int]:
    """Choose how many seconds ago a mail was tried: none of it is near to a limit."""
    return choice.choice(
        [
            [30],  # waiting
            [HOUR],  # may pass
            [2 * HOUR, HOUR],  # passed
            [3 * HOUR, 3 * HOUR - 60],  # too early, may pass
            [3 * DAY],  # out of the retry window
            [3 * DAY, 3 * DAY - 20],
            [34 * DAY, 34 * DAY - 600],  # passed long ago
        ]
    )


def teach(postgrey: Postgrey, now: int, seed: int) -> list[Mail]:
    """Let a postgrey see mail over weeks, and return all of it, in a random order."""
    choice = random.Random(seed)
    pairs = [(sender, recipient) for sender in SENDERS for recipient in RECIPIENTS]
    mails = [mail(client, *pair) for client in CLIENTS for pair in choice.sample(pairs, 5)]
    tries = [(now - age, place) for place in range(len(mails)) if choice.random() < 0.8 for age in ages(choice)]
    with PolicyClient(postgrey.address) as client:
        for when, place in sorted(tries):
            client.ask({**mails[place], "policy_test_time": str(when)})
    choice.shuffle(mails)
    return mails


def answers(address: str, mails: Sequence[Mail]) -> list[bytes]:
    """Return the actions for mails at this time; of a header only its name."""
    with PolicyClient(address) as client:
        actions = [client.ask({**each, "instance": f"mail{number}"}) for number, each in enumerate(mails)]
    return [action.partition(b":")[0] if action.startswith(b"PREPEND") else action for action in actions]


@pytest.mark.parametrize(
    "options,settings",
    [
        ([], []),
        (["--privacy"], ["greylist_privacy = yes"]),
        (
            ["--lookup-by-host", "--delay=60", "--auto-whitelist-clients=2"],
            ["greylist_lookup_by_host = yes", "greylist_delay = 60", "greylist_auto_whitelist_clients = 2"],
        ),
        ([], ["greylist_privacy = yes"]),
    ],
    ids=["default", "privacy", "options", "hashed by the import"],
)
def test_same_decisions(directory: Path, options: Sequence[str], settings: Sequence[str]) -> None:
    """After the import, the service decides as the postgrey does whose database it was, in clear and with hashed keys.

    The postgrey is still running, and the import is done twice.
    """
    with (
        Postgrey(directory, options) as postgrey,
        serve(directory, f"lmdb:{directory}/greylist", *settings) as service,
    ):
        mails = teach(postgrey, int(time.time()), seed=len(options) + 10 * len(settings))
        first = greylist(service.config_path, "import-postgrey", str(postgrey.database))
        assert first.stderr == b""
        second = greylist(service.config_path, "import-postgrey", str(postgrey.database)).stdout
        assert b" stored" not in second
        assert b" joined" not in second
        theirs = answers(postgrey.address, mails)
        ours = answers(service.policy_addresses[0], mails)
        assert ours == theirs
        assert {action.split()[0] for action in theirs} == {b"DEFER_IF_PERMIT", b"DUNNO", b"PREPEND"}
        # And so does the second attempt, of what both have stored now.
        assert answers(service.policy_addresses[0], mails) == answers(postgrey.address, mails)


def test_hashed_database_in_clear(directory: Path) -> None:
    """A database of --privacy is of no use to a service whose keys are in clear: that is an error that says so."""
    with Postgrey(directory, ["--privacy"]) as postgrey:
        teach(postgrey, int(time.time()), seed=1)
    with serve(directory, f"lmdb:{directory}/greylist") as service:
        done = greylist(service.config_path, "import-postgrey", str(postgrey.database), status=1)
        assert b"greylist_privacy = yes" in done.stderr
        assert done.stderr.count(b"\n") == 1
        assert greylist(service.config_path, "list").stdout == b""


def test_ours_is_newer(directory: Path) -> None:
    """What the service itself has seen meanwhile is not lost."""
    known = mail(CLIENTS[0], SENDERS[0], RECIPIENTS[0])
    other = mail(CLIENTS[-1], SENDERS[0], RECIPIENTS[0])
    with serve(directory, f"lmdb:{directory}/greylist") as service:
        with Postgrey(directory) as postgrey, PolicyClient(postgrey.address) as client:
            client.ask({**known, "policy_test_time": str(int(time.time()) - HOUR)})
        answers(service.policy_addresses[0], [known, other])
        output = greylist(service.config_path, "import-postgrey", str(postgrey.database)).stdout
        assert b"triplets: 1 read, 1 joined with ours\n" in output
        rows = [json.loads(line) for line in greylist(service.config_path, "list", "--json").stdout.splitlines()]
        assert sorted(row["state"] for row in rows) == ["passed", "waiting"]
        assert answers(service.policy_addresses[0], [known]) == [b"DUNNO"]


def test_while_postgrey_stores(directory: Path) -> None:
    """The copy of a database that a postgrey is busy writing to is whole: what was acknowledged before is in it."""
    stop = threading.Event()
    asked: list[int] = []

    def store() -> None:
        with PolicyClient(postgrey.address) as client:
            while not stop.is_set():
                client.ask(mail("192.0.2.7", f"s{len(asked)}x@example.com", "bob@example.org"))
                asked.append(1)

    service = serve(directory, f"lmdb:{directory}/greylist")
    with Postgrey(directory) as postgrey, service:
        thread = threading.Thread(target=store)
        thread.start()
        try:
            for _ in range(2):
                before = len(asked)
                greylist(service.config_path, "import-postgrey", str(postgrey.database))
                stats = json.loads(greylist(service.config_path, "stats", "--json").stdout)
                assert sum(stats["triplets"].values()) >= before
        finally:
            stop.set()
            thread.join()
