"""Whitelists that change while the service runs, with and without SIGHUP."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .harness.policy import PolicyClient
from .harness.processes import free_port, scratch_directory, wait_until
from .harness.service import Service

LISTS = {"client": "good.example\n", "recipient": "abuse@\n", "sender": "friend@example.com\n"}
MAIL = {"client_address": "192.0.2.7", "client_name": "mx.example.com", "sender": "alice@example.com"}


class Site:
    """A service with three lists; each is a file below ``directory``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name, text in LISTS.items():
            self.write(name, text)
        lists = "".join(f"greylist_{name}_whitelist = {directory}/{name}\n" for name in LISTS)
        config = f"policies = greylist\ngreylist_table = lmdb:{directory}/greylist\n{lists}"
        self.service = Service(directory, config, policy_listen=[f"inet:127.0.0.1:{free_port()}"])

    def write(self, name: str, text: str) -> None:
        """Write a file as an administrator's editor does."""
        new = self.directory / "new"
        new.write_text(text)
        new.rename(self.directory / name)

    def passes(self, **changes: str) -> bool:
        """Say whether a mail to bob@example.org passes at once."""
        with PolicyClient(self.service.policy_addresses[0]) as client:
            action = client.ask({**MAIL, "recipient": "bob@example.org", **changes})
        assert action == b"DUNNO" or action.startswith(b"DEFER_IF_PERMIT Greylisted")
        return action == b"DUNNO"

    def assert_logged(self, text: str) -> None:
        wait_until(lambda: text in self.service.log, f"in the log: {text}", 5)


@pytest.fixture
def site() -> Iterator[Site]:
    with scratch_directory() as directory:
        site = Site(directory)
        with site.service:
            assert site.passes(client_name="mx.good.example")
            assert site.passes(recipient="Abuse@example.org")
            assert site.passes(sender="friend@example.com")
            assert not site.passes()
            yield site


def test_files_change(site: Site) -> None:
    """Without a signal, files that change are read again within 15 s; one with an error is not, and the log says so."""
    site.write("client", "better.example\n192.0.2.64/26\n")
    site.write("recipient", "abuse@\nbob@example.org\n/carol(/\n")
    site.write("sender.local", "/^alice[@]/\n")
    begin = time.monotonic()
    wait_until(site.passes, "the new file is read", 15)
    print(f"after {time.monotonic() - begin:.1f} s")
    other = {"sender": "x@example.com"}
    for changes in ({"client_name": "mx.better.example"}, {"client_address": "192.0.2.65"}):
        wait_until(lambda changes=changes: site.passes(**other, **changes), "all are read", 5)  # type: ignore[misc]
    assert not site.passes(**other, client_name="mx.good.example")
    site.assert_logged("greylist_client_whitelist: read again, 2 entries")
    site.assert_logged(f"greylist_recipient_whitelist: {site.directory}/recipient:3: ")
    assert site.service.log.count("; the old list stays in use") == 1
    assert not site.passes(**other)  # bob's line stands before the one with the error
    assert site.passes(**other, recipient="abuse@example.org")
    assert "Traceback" not in site.service.log


def test_hangup(site: Site) -> None:
    """At SIGHUP they are read at once; if one has an error nothing changes, and the log says where."""
    site.write("client", "better.example\n")
    site.write("recipient", "abuse@\n/bob(/\n")
    site.service.reload()
    site.assert_logged("reload refused")
    assert f"{site.directory}/recipient:2: " in site.service.log
    assert site.passes(client_name="mx.good.example")
    assert site.passes(recipient="abuse@example.org")
    assert not site.passes(client_name="mx.better.example")

    (site.directory / "recipient").unlink()
    site.service.reload()
    wait_until(lambda: site.service.log.count("reload refused") == 2, "the second refusal", 5)
    assert f"{site.directory}/recipient: cannot be read: No such file or directory" in site.service.log
    assert site.passes(recipient="abuse@example.org")

    site.write("recipient", "carol@\n")
    begin = time.monotonic()
    site.service.reload()
    wait_until(lambda: site.passes(client_name="mx.better.example"), "the new list is in use", 5)
    assert time.monotonic() - begin < 3
    assert site.passes(recipient="carol@example.org")
    assert not site.passes(recipient="abuse@example.org")
    assert not site.passes(client_name="mx.good.example")
    assert "Traceback" not in site.service.log
