"""Whitelists: who is in a list for postgrey is in it here, and what postgrey gets wrong is mended."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from socketmap_memcache.errors import Problem
from socketmap_memcache.policies.greylist.whitelist_match import ClientMatcher, MailMatcher
from socketmap_memcache.policies.greylist.whitelist_syntax import parse_clients, parse_recipients

from .greylist_cases import client_address, client_entry, client_name, recipient_entry, whitelist
from .greylist_cases import recipient as made_recipient
from .harness.policy import PolicyClient
from .harness.postgrey import Postgrey
from .harness.processes import scratch_directory

#: Pairs of lists, and the requests for each.
_LISTS = 40
_REQUESTS = 40


def _mutated(random: Random, text: str) -> str:
    """Write an entry or an address in another way that means the same."""
    return text if "\\" in text else random.choice([text, text.lower(), text.upper()])


@pytest.fixture
def postgrey() -> Iterator[Postgrey]:
    # Time stands still, so that nothing but a whitelist lets mail in.
    with scratch_directory() as directory, Postgrey(directory, ["--auto-whitelist-clients=0"]) as server:
        yield server


def _whitelisted(client: PolicyClient, name: str, address: str, recipient: str) -> bool:
    attributes = {"client_name": name, "client_address": address, "sender": "", "recipient": recipient}
    action = client.ask(attributes | {"policy_test_time": "1000000000"})
    assert action == b"DUNNO" or action.startswith(b"DEFER_IF_PERMIT")
    return action == b"DUNNO"


def _clients(text: str) -> ClientMatcher:
    problems: list[Problem] = []
    matcher = ClientMatcher(parse_clients(text.encode(), "list", problems))
    assert problems == []
    return matcher


def _recipients(text: str) -> MailMatcher:
    problems: list[Problem] = []
    matcher = MailMatcher(parse_recipients(text.encode(), "list", problems))
    assert problems == []
    return matcher


def test_same_as_postgrey(postgrey: Postgrey, request: pytest.FixtureRequest) -> None:
    """For lists of any usable entries, postgrey and we whitelist the same clients and recipients."""
    seed = request.config.getoption("--greylist-seed")
    print(f"--greylist-seed={seed}")
    random = Random(seed)
    matched = 0
    with PolicyClient(postgrey.address) as client:
        for _ in range(_LISTS):
            client_entries = [client_entry(random) for _ in range(random.randint(1, 5))]
            recipient_entries = [recipient_entry(random) for _ in range(random.randint(1, 3))]
            clients, recipients = whitelist(random, client_entries), whitelist(random, recipient_entries)
            postgrey.client_whitelist.write_text(clients)
            postgrey.recipient_whitelist.write_text(recipients)
            postgrey.reload()
            client_matcher, recipient_matcher = _clients(clients), _recipients(recipients)
            for _ in range(_REQUESTS):
                name, address, recipient = client_name(random), client_address(random), made_recipient(random)
                if random.random() < 0.2:
                    recipient = _mutated(random, random.choice(["", "x+", "a."]) + random.choice(recipient_entries))
                    recipient = recipient if "@" in recipient else "joe@" + recipient
                if random.random() < 0.2:
                    name = _mutated(random, random.choice(["", "x", "a."]) + random.choice(client_entries))
                ours = client_matcher.matches(name.encode(), address.encode())
                ours = ours or recipient_matcher.matches(recipient.encode())
                theirs = _whitelisted(client, name, address, recipient)
                assert ours is theirs, (name, address, recipient, clients, recipients)
                matched += ours
    print(f"{_LISTS * _REQUESTS} requests, {matched} of them whitelisted")
    assert matched > _LISTS


@pytest.mark.parametrize(
    "entry, name, address",
    [
        ("10.1", "unknown", "10.1.2.3"),
        ("10", "unknown", "10.1.2.3"),
        (".example.com", "mail.example.com", "10.1.2.3"),
        ("*.example.com", "mail.example.com", "10.1.2.3"),
        ("10.1.2.0/24", "unknown", "::ffff:10.1.2.3"),
        ("::ffff:10.1.2.0/120", "unknown", "10.1.2.3"),
    ],
)
def test_mended_clients(postgrey: Postgrey, entry: str, name: str, address: str) -> None:
    """What postgrey takes in a list of clients and never matches is matched."""
    postgrey.client_whitelist.write_text(entry + "\n")
    postgrey.reload()
    with PolicyClient(postgrey.address) as client:
        assert not _whitelisted(client, name, address, "joe@example.org")
    assert _clients(entry).matches(name.encode(), address.encode())


def test_families(postgrey: Postgrey) -> None:
    """All of IPv6 is not all of IPv4, as postgrey has it."""
    postgrey.client_whitelist.write_text("::/0\n")
    postgrey.reload()
    with PolicyClient(postgrey.address) as client:
        assert _whitelisted(client, "unknown", "10.1.2.3", "joe@example.org")
    assert not _clients("::/0").matches(b"unknown", b"10.1.2.3")
    assert _clients("::/0").matches(b"unknown", b"2001:db8::1")


@pytest.mark.parametrize(
    "entry, recipient",
    [
        ("@example.com", "joe@example.com"),
        (".example.com", "joe@mail.example.com"),
        ("*.example.com", "joe@mail.example.com"),
        ("postmaster@", "postmaster"),
    ],
)
def test_mended_recipients(postgrey: Postgrey, entry: str, recipient: str) -> None:
    """What postgrey takes in a list of recipients and never matches is matched."""
    postgrey.recipient_whitelist.write_text(entry + "\n")
    postgrey.reload()
    with PolicyClient(postgrey.address) as client:
        assert not _whitelisted(client, "unknown", "10.1.2.3", recipient)
    assert _recipients(entry).matches(recipient.encode())


@pytest.mark.parametrize("entry", ["10.1.2.3/33", "10.1.2.3.4", "2001:db8:1", "joe@example.com", "mail*.example.com"])
def test_bad_entries(postgrey: Postgrey, entry: str) -> None:
    """An entry that cannot be meant is named with its line; postgrey says nothing of it."""
    said = len(postgrey.log)
    postgrey.client_whitelist.write_text(f"one.example\n{entry}\n")
    postgrey.reload()
    assert "whitelist_clients" not in postgrey.log[said:]
    problems: list[Problem] = []
    parse_clients(f"one.example\n{entry}\n".encode(), "whitelist_clients", problems)
    assert [(problem.path, problem.line) for problem in problems] == [("whitelist_clients", 2)]


def test_lists_of_the_package() -> None:
    """The lists that come with postgrey have no entry that cannot be used."""
    for name, parse in (("clients", _clients), ("recipients", _recipients)):
        parse(Path(f"/etc/postgrey/whitelist_{name}").read_text(encoding="utf-8"))
