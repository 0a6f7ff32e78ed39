"""Greylisting of what nobody should send, and with records that nobody should have stored, over the wire."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from random import Random

import pytest

from .greylist_bad_input import ADDRESSES, DEFERRED, DELAYED, MAIL, MEGABYTE, NO_ADDRESSES, mutated
from .greylist_site import Site, lmdb_access
from .harness.memcached import Memcached
from .harness.policy import PolicyClient, request
from .harness.processes import free_port, scratch_directory, wait_until, write_config
from .harness.service import Service


@pytest.fixture(scope="module", params=["lmdb", "memcached"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    with ExitStack() as stack:
        directory = stack.enter_context(scratch_directory())
        if request.param == "lmdb":
            table = f"lmdb:{directory}/greylist"
            put, get = lmdb_access(directory / "greylist.lmdb")
        else:
            memcached = stack.enter_context(Memcached(directory))
            cf = write_config(directory / "greylist.cf", f"memcache = {memcached.address}\n")
            table, put, get = f"memcache:{cf}", memcached.set, memcached.get
        (directory / "clients").write_text("127.0.0.1\n/^regular-expression/\n")
        (directory / "recipients").write_text("skip.example.org skip\nodd.example.org what\n")
        config = (
            f"policies = greylist\ngreylist_table = {table}\ngreylist_delay = 1s\n"
            f"greylist_client_whitelist = {directory}/clients\n"
            f"greylist_recipient_access = texthash:{directory}/recipients\n"
        )
        service = Service(directory, config, policy_listen=[f"inet:127.0.0.1:{free_port()}"])
        stack.enter_context(service)
        bystander = stack.enter_context(PolicyClient(service.policy_addresses[0]))
        yield Site(service, put, get, bystander)


@pytest.fixture(autouse=True)
def unharmed(site: Site) -> Iterator[None]:
    """Whatever a test does, the service lives, a connection goes on, mail is greylisted, nothing was unforeseen."""
    yield
    for ask in (lambda mail: site.bystander.ask({**MAIL, **mail}), lambda mail: site.ask(**mail)):
        assert ask({"sender": f"{time.monotonic()}x@example.com"}).startswith(DEFERRED)
    assert site.service.running
    for sign in ("Traceback", "Unhandled", "#critical", "no store"):
        assert sign not in site.service.log
    for line in site.service.log_path.read_bytes().decode().splitlines():
        assert line.replace("\t", "").isprintable(), line


class TestNoRequests:
    @pytest.mark.parametrize(
        "garbage",
        [
            pytest.param(b"GET / HTTP/1.0\r\n\r\n", id="http"),
            pytest.param(b"\n\n\n\n", id="newlines"),
            pytest.param(b"EHLO client.example\r\nMAIL FROM:<>\r\n\r\n", id="smtp"),
            pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n\n", id="tls"),
            pytest.param(b"=\n\n", id="nameless"),
            pytest.param(bytes(range(256)) * 300, id="bytes"),
            pytest.param(request(MAIL).replace(b"request=smtpd_access_policy\n", b""), id="no-request"),
            pytest.param(request({**MAIL, "request": "smtpd_access_policy2"}), id="other-request"),
            pytest.param(request({**MAIL, "request": ""}), id="empty-request"),
            pytest.param(request({**MAIL, "sender": "a\0@example.com"}), id="nul"),
            pytest.param(request({**MAIL, "sender": "a@example.com\nb"}), id="no-value"),
            pytest.param(request({**MAIL, **{f"n{number}": "" for number in range(10_000)}}), id="many-attributes"),
            pytest.param(request({**MAIL, "sender": "a" * MEGABYTE}), id="long-value"),
            pytest.param(request({**MAIL, "a" * MEGABYTE: ""}), id="long-name"),
            pytest.param(b"a" * MEGABYTE, id="long-line"),
        ],
    )
    def test_closed(self, site: Site, garbage: bytes) -> None:
        """What is no request closes that connection without a reply, with one line in the log."""
        before = site.mark()
        with site.connect() as bad:
            with suppress(OSError):  # not all of it is read
                bad.send_raw(garbage)
            with suppress(ConnectionError):
                assert bad.closed()
        (line,) = site.logged(before)
        assert "policy client " in line
        assert line.endswith("; connection closed")

    def test_no_end(self, site: Site) -> None:
        """A request without an end waits for it, and is answered then; without one there is no reply."""
        before = site.mark()
        with site.connect() as client:
            client.send_raw(request({**MAIL, "sender": "end@example.com"})[:-1])
            assert site.ask(sender="meanwhile@example.com").startswith(DEFERRED)
            client.send_raw(b"\n")
            assert client.receive().startswith(DEFERRED)
            client.send_raw(request({**MAIL, "sender": "no-end@example.com"})[:-1])
            client.socket.shutdown(socket.SHUT_WR)
            assert client.closed()
        assert not any("no-end" in line for line in site.logged(before))


class TestAttributes:
    @pytest.mark.parametrize("name", sorted(MAIL))
    def test_missing(self, site: Site, name: str) -> None:
        """Without an attribute that is needed the answer is DUNNO, and the log says which."""
        before = site.mark()
        with site.connect() as client:
            assert client.ask({each: value for each, value in MAIL.items() if each != name}) == b"DUNNO"
        (line,) = site.logged(before)
        assert line.endswith(f"attribute missing: {name}")

    def test_only_request(self, site: Site) -> None:
        """With none at all too, and the same connection goes on."""
        with site.connect() as client:
            assert client.ask({}) == b"DUNNO"
            assert client.ask({**MAIL, "sender": "none@example.com"}).startswith(DEFERRED)

    def test_not_an_address(self, site: Site) -> None:
        """A client without an address that can be read passes, which is logged each time."""
        before = site.mark()
        for address in NO_ADDRESSES:
            assert site.ask(client_address=address) == b"DUNNO", address
        lines = [line for line in site.logged(before) if "action=pass, reason=can't parse client_address, " in line]
        assert len(lines) == len(NO_ADDRESSES)

    def test_other_attributes(self, site: Site) -> None:
        """Attributes that are not needed may be anything, and so may the name of the client."""
        others: list[dict[str, str | bytes]] = [
            {f"n{number}": "" for number in range(990)},
            {"client_name": b"\xff\xfe"},
            {"client_name": ""},
            {"client_name": "regular" * 5000},
            {"instance": "i" * 50_000, "queue_id": b"\x1b[2J\xff"},
            {"instance": b"\xff"},
            {"sasl_username": "", "ccert_subject": ""},
            {b"\xff".decode("latin-1"): "=", "": "="},
            {"policy_test_time": "1", "protocol_state": "NONE"},
        ]
        for number, attributes in enumerate(others):
            sender = f"{'abcdefghi'[number]}@others.example"
            assert site.ask(**{**attributes, "sender": sender}).startswith(DEFERRED), attributes


class TestAddresses:
    def test_greylisted(self, site: Site) -> None:
        """Any bytes are greylisted as sender and as recipient: they are deferred, and after the delay they pass."""
        mails: list[dict[str, str | bytes]] = [
            {"sender": f"{'x' * number}@senders.example", "recipient": address}
            for number, address in enumerate(ADDRESSES, 1)
        ]
        mails += [
            {"sender": address, "recipient": f"{'x' * number}@recipients.example"}
            for number, address in enumerate(ADDRESSES, 1)
        ]
        with site.connect() as client:
            for mail in mails:
                assert client.ask({**MAIL, **mail}).startswith(DEFERRED), mail
            time.sleep(1.05)
            for mail in mails:
                assert client.ask({**MAIL, **mail}).startswith(DELAYED), mail
            for mail in mails:
                assert client.ask({**MAIL, **mail}) == b"DUNNO", mail

    def test_recipient_access(self, site: Site) -> None:
        """So they are where recipients are looked up before; a value that means nothing is one line in the log."""
        for number, local in enumerate((b"a b", b"\xff", b"", "ü".encode(), b"x" * 490), 1):
            recipient = local + b"@odd.example.org"
            sender = f"{'y' * number}@access.example"
            assert site.ask(sender=sender, recipient=recipient).startswith(DEFERRED)
        site.mark()
        assert site.service.log.count("is not greylist, skip or delay=TIME") == 1
        assert site.ask(recipient="a b@skip.example.org") == b"DUNNO"


class TestRecords:
    def test_triplets(self, site: Site) -> None:
        """A record that cannot be read counts as none, is written anew, and logged once."""
        records = [
            *[b"junk", b"1", b"1,", b",1", b"-1,5", b"1,2,3", b"1.5,2", b" 1,2", b"1,2\n", b"1, 2", b"0x1,2"],
            *["\u0661,\u0662".encode(), b"9" * 13 + b",1", b"\xff,\xfe", b"\x1b[2J", b"x" * 5000, b"{},%s"],
        ]
        count = site.service.log.count("reloaded")
        site.service.reload()  # so that the next is logged
        wait_until(lambda: site.service.log.count("reloaded") > count, "the reload")
        before = site.mark()
        keys = [b"t/192.0.2.0/%b@record.example/bob@example.org" % (b"x" * number) for number in range(1, 18)]
        for key, record in zip(keys, records, strict=True):
            site.put(key, record)
        for attempt in (DEFERRED, DELAYED):
            if attempt == DELAYED:
                time.sleep(1.05)
            for key in keys:
                assert site.ask(sender=key.split(b"/")[2]).startswith(attempt), key
                wait_until(lambda key=key: re.fullmatch(rb"\d{10},\d{10}", site.get(key) or b""), "a new record")  # type: ignore[misc]
        lines = [line for line in site.logged(before) if "not a record" in line]
        assert len(lines) == 1
        assert len(lines[0]) < 500

    def test_clients(self, site: Site) -> None:
        """The same is true for what is counted for clients."""
        mail: dict[str, str | bytes] = {"client_address": "198.51.100.7"}
        site.put(b"c/198.51.100.7", b"many")
        assert site.ask(**mail).startswith(DEFERRED)
        time.sleep(1.05)
        assert site.ask(**mail).startswith(DELAYED)
        wait_until(lambda: (site.get(b"c/198.51.100.7") or b"").startswith(b"1,"), "it is written anew")

    def test_future(self, site: Site) -> None:
        """A triplet that was first seen in the future is corrected, which the log says, and waits from now on."""
        key = b"t/192.0.2.0/future@example.com/bob@example.org"
        site.put(key, b"999999999999,999999999999")
        assert site.ask(sender="future@example.com").startswith(DEFERRED)
        time.sleep(1.05)
        assert site.ask(sender="future@example.com").startswith(DELAYED)
        wait_until(lambda: "correcting date for first seen in the future" in site.service.log, "the line in the log")


class TestMemory:
    def test_bounded(self, site: Site) -> None:
        """Large and endless requests, however many, take no more memory than is allowed to each connection."""
        large = request({**MAIL, "sender": "s" * 20_000, "recipient": "r" * 20_000, "x": "x" * 20_000})

        def strain() -> None:
            for _ in range(20):
                with site.connect() as client, suppress(OSError):
                    client.send_raw(b"a" * MEGABYTE)
            with ExitStack() as stack:
                for _ in range(100):
                    stack.enter_context(site.connect()).send_raw(b"a=" + b"a" * 60_000)
                for _ in range(10):
                    client = stack.enter_context(site.connect())
                    client.send_raw(large * 10)
                    assert len([client.receive() for _ in range(10)]) == 10
                held.append(site.memory())

        held: list[int] = []
        begin = site.memory()
        for _ in range(2):  # how much the allocator keeps in the end depends on how requests meet
            strain()
        after = site.memory()
        for _ in range(3):
            strain()
        assert max(held) - begin < 25 * MEGABYTE  # 100 times 60 kB, 10 times 600 kB, and what is not given back
        assert site.memory() - after < 10 * MEGABYTE  # of 36 that came in


class TestRandom:
    def test_mutated(self, site: Site, request: pytest.FixtureRequest) -> None:
        """Requests with random faults get a well-formed action, or the connection is closed."""
        seed = request.config.getoption("--greylist-seed")
        print(f"--greylist-seed={seed}")
        random = Random(seed)
        closed = answered = 0
        client = site.connect()
        for number in range(400):
            data = mutated(random, number)
            try:
                client.send_raw(data + b"\n\n")
                action = client.receive()
                answered += 1
                assert action == b"DUNNO" or action.startswith((DEFERRED, DELAYED)), data
            except (EOFError, OSError):
                closed += 1
            client.close()
            client = site.connect()
        client.close()
        assert closed > 20
        assert answered > 20
