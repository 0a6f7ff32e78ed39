"""What the other integration tests stand on: the real programs behave as those tests take for granted."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from .harness.memcached import Memcached
from .harness.policy import PolicyClient
from .harness.postfix import Postfix, needs_root
from .harness.postgrey import Postgrey
from .harness.processes import find_program, free_port, scratch_directory, wait_until, write_config
from .harness.service import Service
from .harness.smtp import ask_recipients, deliver


@pytest.fixture
def scratch() -> Iterator[Path]:
    with scratch_directory() as directory:
        yield directory


class TestMemcached:
    @pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
    def test_values(self, scratch: Path, tcp: bool) -> None:
        """What is set is there until it is deleted, flushed, or lost in a restart on the same address."""
        with Memcached(scratch, tcp=tcp) as memcached:
            memcached.set(b"key", b"two\r\nlines")
            assert memcached.get(b"key") == b"two\r\nlines"
            assert memcached.delete(b"key")
            assert not memcached.delete(b"key")
            memcached.set_many({b"a": b"1", b"b": b"2"})
            assert [memcached.get(b"a"), memcached.get(b"b")] == [b"1", b"2"]
            memcached.flush()
            assert memcached.get(b"a") is None
            memcached.set(b"key", b"value")
            memcached.restart()
            assert memcached.get(b"key") is None

    def test_frozen(self, scratch: Path) -> None:
        """A frozen memcached accepts connections, answers nobody, and can still be stopped."""
        with Memcached(scratch) as memcached:
            memcached.freeze()
            assert memcached.ready()
        assert not memcached.running


class TestPostgrey:
    def test_time_and_lists(self, scratch: Path) -> None:
        """Postgrey takes the time from the request, reads its lists again when told, and keeps its database."""
        mail = {"client_address": "192.0.2.1", "client_name": "unknown", "sender": "a", "recipient": "c@d.example"}
        postgrey = Postgrey(scratch, ["--delay=60"])
        with postgrey, PolicyClient(postgrey.address) as client:
            assert client.ask(mail | {"policy_test_time": "1000"}).startswith(b"DEFER_IF_PERMIT Greylisted")
            assert "action=greylist, reason=new" in postgrey.log
        with postgrey, PolicyClient(postgrey.address) as client:
            assert client.ask(mail | {"policy_test_time": "1060"}).startswith(b"PREPEND X-Greylist: delayed 60 seconds")
            postgrey.client_whitelist.write_text("192.0.2.2\n")
            postgrey.reload()
            assert client.ask(mail | {"client_address": "192.0.2.2", "sender": "x"}) == b"DUNNO"


class TestPostmap:
    def test_answers(self, scratch: Path) -> None:
        """Postfix's own memcache table tells found, missing and failed apart by exit status and standard error."""
        postfix = Postfix(scratch)
        with Memcached(scratch) as memcached:
            memcached.set(b"t:alice@example.com", b"alice@mail.example.com")
            cf = write_config(scratch / "t.cf", f"memcache = {memcached.address}\nkey_format = t:%s\nretry_pause = 1\n")
            hit = postfix.postmap("-q", "Alice@Example.Com", f"memcache:{cf}")
            assert (hit.returncode, hit.stdout, hit.stderr) == (0, b"alice@mail.example.com\n", b"")
            miss = postfix.postmap("-q", "bob@example.com", f"memcache:{cf}")
            assert (miss.returncode, miss.stdout, miss.stderr) == (1, b"", b"")
            both = postfix.postmap("-q", "-", f"memcache:{cf}", stdin=b"bob@example.com\nalice@example.com\n")
            assert (both.returncode, both.stdout) == (0, b"alice@example.com\talice@mail.example.com\n")
        failed = postfix.postmap("-q", "alice@example.com", f"memcache:{cf}")
        assert (failed.returncode, failed.stdout) == (1, b"")
        assert b"query error" in failed.stderr


MAIN_CF = {
    "virtual_alias_domains": "example.com",
    "virtual_alias_maps": "inline:{alice@example.com=alice@mail.example.com}",
}


@needs_root
class TestSmtpd:
    def test_recipients(self, scratch: Path) -> None:
        """A known address is accepted, an unknown one is rejected for good, and another domain is not relayed."""
        with Postfix(scratch, MAIN_CF) as postfix:
            recipients = ["alice@example.com", "bob@example.com", "carol@example.org"]
            known, unknown, foreign = ask_recipients(postfix.port, recipients)
            assert known.code == 250
            assert (unknown.code, "User unknown in virtual alias table" in unknown.text) == (550, True)
            assert (foreign.code, "Relay access denied" in foreign.text) == (554, True)
            wait_until(lambda: "reject: RCPT from" in postfix.maillog, "it is logged")
            assert "backwards-compatible" not in postfix.maillog
        assert not postfix.running

    def test_delivery(self, scratch: Path) -> None:
        """An accepted mail goes to the address of the map, and from there nowhere."""
        with Postfix(scratch, MAIN_CF) as postfix:
            deliver(postfix.port, "alice@example.com", "Subject: test\r\n\r\ntest\r\n")
            wait_until(lambda: "status=sent" in postfix.maillog, "delivery")
            assert "to=<alice@mail.example.com>" in postfix.maillog
            assert "relay=none" in postfix.maillog
            assert "warning" not in postfix.maillog


class TestService:
    @pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
    def test_life(self, scratch: Path, tcp: bool) -> None:
        """The service answers postmap where it was told to listen, and SIGTERM ends it."""
        listen = [f"inet:127.0.0.1:{free_port()}"] if tcp else []
        with Service(scratch, "tables = t=inline:{key=value}\n", listen=listen) as service:
            answer = Postfix(scratch).postmap("-q", "key", service.map("t"))
            assert (answer.returncode, answer.stdout, answer.stderr) == (0, b"value\n", b"")
            assert service.stop() == -signal.SIGTERM
        assert not service.ready()


class TestMissingPrograms:
    def test_failure(self) -> None:
        """A program that is not installed is an error that says what to do, not a skipped test."""
        with pytest.raises(RuntimeError, match="tests/install-packages"):
            find_program("no-such-program-is-installed")
