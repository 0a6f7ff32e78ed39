"""A real Postfix that gets its answers from a real memcached through the service."""

from __future__ import annotations

import smtplib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import attrs
import pytest

from .harness.memcached import Memcached
from .harness.postfix import Postfix, needs_root
from .harness.processes import accepts, free_port, scratch_directory, wait_until, write_config
from .harness.service import Service
from .harness.smtp import Reply, ask_recipients, deliver

#: In memcached; keys are in lower case there.
PRESENT = {b"user%d@example.com" % number: b"box%d@mail.example.com" % number for number in range(300)}


@attrs.frozen
class Site:
    """The service with an ``aliases`` map on UNIX and TCP, a memcached behind it, and a Postfix for its tools."""

    directory: Path
    memcached: Memcached
    service: Service
    postfix: Postfix

    def map(self, transport: str, name: str = "aliases") -> str:
        (address,) = [address for address in self.service.addresses if address.startswith(transport)]
        return self.service.map(name, address)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with scratch_directory() as directory, Memcached(directory, tcp=True) as memcached:
        cf = write_config(directory / "aliases.cf", f"memcache = {memcached.address}\nkey_format = aliases:%s\n")
        memcached.set_many({b"aliases:" + key: value for key, value in PRESENT.items()})
        listen = [f"unix:{directory}/socketmap.sock", f"inet:127.0.0.1:{free_port()}"]
        with Service(directory, f"tables = aliases=memcache:{cf}\n", listen=listen) as service:
            yield Site(directory, memcached, service, Postfix(directory))


@pytest.mark.parametrize("transport", ["unix", "inet"])
class TestPostmap:
    def test_hit(self, site: Site, transport: str) -> None:
        """A key that memcached has is found, whatever its case."""
        for key in ("user7@example.com", "User7@EXAMPLE.com"):
            answer = site.postfix.postmap("-q", key, site.map(transport))
            assert (answer.returncode, answer.stdout, answer.stderr) == (0, b"box7@mail.example.com\n", b"")

    def test_miss(self, site: Site, transport: str) -> None:
        """A key that memcached has not is missing, silently, with exit status 1."""
        answer = site.postfix.postmap("-q", "nobody@example.com", site.map(transport))
        assert (answer.returncode, answer.stdout, answer.stderr) == (1, b"", b"")

    def test_many_keys(self, site: Site, transport: str) -> None:
        """Hundreds of keys for ``postmap -q -``, half of them known, give what they give with Postfix's own client."""
        known = [key.upper() if number % 3 == 0 else key for number, key in enumerate(PRESENT)]
        keys = [line for number, key in enumerate(known) for line in (key, b"unknown%d@example.com" % number)]
        stdin = b"".join(key + b"\n" for key in keys)
        answer = site.postfix.postmap("-q", "-", site.map(transport), stdin=stdin)
        expected = b"".join(b"%b\t%b\n" % (key, PRESENT[key.lower()]) for key in known)
        assert (answer.returncode, answer.stdout, answer.stderr) == (0, expected, b"")
        native = site.postfix.postmap("-q", "-", f"memcache:{site.directory}/aliases.cf", stdin=stdin)
        assert (answer.returncode, answer.stdout, answer.stderr) == (native.returncode, native.stdout, native.stderr)

    def test_no_key_found(self, site: Site, transport: str) -> None:
        """The exit status of ``postmap -q -`` is 1 when no key is found."""
        answer = site.postfix.postmap("-q", "-", site.map(transport), stdin=b"no@example.com\nnot@example.com\n")
        assert (answer.returncode, answer.stdout, answer.stderr) == (1, b"", b"")

    def test_odd_keys(self, site: Site, transport: str) -> None:
        """Keys that memcached must not see are missing, and those around them in the same run are answered."""
        stdin = b"user1@example.com\n\nwith blank@example.com\nt\xe4st@example.com\n@\n\t\nuser2@example.com\n"
        answer = site.postfix.postmap("-q", "-", site.map(transport), stdin=stdin)
        expected = b"user1@example.com\tbox1@mail.example.com\nuser2@example.com\tbox2@mail.example.com\n"
        assert (answer.returncode, answer.stdout) == (0, expected)
        assert b"query error" not in answer.stderr


class TestUnknownMap:
    def test_query_error(self, site: Site) -> None:
        """A map that is not served is a query error that names the map, and is logged once."""

        def ask(key: str) -> tuple[int, bytes, bytes]:
            answer = site.postfix.postmap("-q", key, site.map("unix", "typo"))
            return answer.returncode, answer.stdout, answer.stderr

        with ThreadPoolExecutor(3) as threads:
            for status, stdout, stderr in threads.map(ask, ["a", "b", "c"]):
                assert (status, stdout) == (1, b"")
                assert b"permanent error: map 'typo' is not served here" in stderr
                assert b"query error" in stderr
        assert [line.count("'typo'") for line in site.service.log.splitlines() if "typo" in line] == [1]


@attrs.frozen
class MailSite:
    """A mail system whose virtual aliases are in memcached."""

    memcached: Memcached
    service: Service
    postfix: Postfix
    chrooted_port: int
    backed_port: int


# The known address is in upper case where Postfix would not find it without folding; smtpd asks in the client's case.
KNOWN, UNKNOWN, BACKED = "Alice@Example.COM", "nobody@example.com", "carol@example.com"


def replies(port: int, *recipients: str) -> list[Reply]:
    return ask_recipients(port, list(recipients))


@pytest.fixture(scope="module")
def mail_site() -> Iterator[MailSite]:
    with ExitStack() as stack:
        directory = stack.enter_context(scratch_directory())
        memcached = Memcached(directory)
        tcp = f"inet:127.0.0.1:{free_port()}"
        main_cf = {
            "virtual_alias_domains": "example.com",
            "virtual_alias_maps": "socketmap:unix:socketmap-memcache/socketmap.sock:aliases",
            "smtpd_reject_unlisted_recipient": "yes",
        }
        postfix = Postfix(directory, main_cf)
        chrooted_port, backed_port = free_port(), free_port()
        master_cf = postfix.config_directory / "master.cf"
        services = (
            f"{chrooted_port} inet n - y - - smtpd\n"
            f"{backed_port} inet n - n - - smtpd -o virtual_alias_maps=socketmap:{tcp}:backed\n"
        )
        write_config(master_cf, master_cf.read_text() + services)
        # A relative path: Postfix's processes are in the queue directory, and in a chroot it is their root.
        queue = Path(postfix.postconf("-h", "queue_directory"))
        socket_directory = queue / "socketmap-memcache"
        socket_directory.mkdir()
        memcache = f"memcache = {memcached.address}\nkey_format = t:%s\n"
        aliases = write_config(directory / "aliases.cf", memcache)
        backup = write_config(
            directory / "backup", "alice@example.com a@backup.example\ncarol@example.com c@backup.example\n"
        )
        backed = write_config(directory / "backed.cf", f"{memcache}backup = texthash:{backup}\n")
        listen = [f"unix:{socket_directory}/socketmap.sock", tcp]
        tables = f"tables = aliases=memcache:{aliases}, backed=memcache:{backed}\n"
        service = stack.enter_context(Service(directory, tables, listen=listen))
        stack.callback(memcached.stop)
        stack.enter_context(postfix)
        wait_until(lambda: accepts(f"inet:127.0.0.1:{chrooted_port}"), "the chrooted smtpd listens")
        wait_until(lambda: accepts(f"inet:127.0.0.1:{backed_port}"), "the third smtpd listens")
        yield MailSite(memcached, service, postfix, chrooted_port, backed_port)


@pytest.fixture
def up(mail_site: MailSite) -> MailSite:
    """Memcached runs, has one address, and the service knows."""
    if not mail_site.memcached.running:
        mail_site.memcached.start()
    mail_site.memcached.flush()
    mail_site.memcached.set(b"t:alice@example.com", b"alice@mail.example.com")
    ask = ("-q", "alice@example.com", mail_site.service.map("aliases"))
    wait_until(lambda: mail_site.postfix.postmap(*ask).returncode == 0, "memcached is found again")
    return mail_site


@pytest.fixture
def down(mail_site: MailSite) -> MailSite:
    """Memcached is dead."""
    mail_site.memcached.stop()
    return mail_site


@needs_root
class TestSmtpd:
    @pytest.mark.parametrize("chrooted", [False, True], ids=["not-chrooted", "chrooted"])
    def test_up(self, up: MailSite, chrooted: bool) -> None:
        """A known address is accepted and an unknown one rejected for good, chrooted or not, by one line of main.cf."""
        known, unknown = replies(up.chrooted_port if chrooted else up.postfix.port, KNOWN, UNKNOWN)
        assert known.code == 250, known
        assert unknown.code == 550, unknown
        assert "User unknown in virtual alias table" in unknown.text

    @pytest.mark.parametrize("chrooted", [False, True], ids=["not-chrooted", "chrooted"])
    def test_down(self, down: MailSite, chrooted: bool) -> None:
        """With memcached down and no backup, every address is put off and none is rejected for good."""
        for reply in replies(down.chrooted_port if chrooted else down.postfix.port, KNOWN, UNKNOWN):
            assert reply.code == 451, reply
            assert "Temporary lookup failure" in reply.text

    def test_backup_up(self, up: MailSite) -> None:
        """What the cache has not is asked of the backup."""
        assert [reply.code for reply in replies(up.backed_port, KNOWN, BACKED, UNKNOWN)] == [250, 250, 550]
        wait_until(
            lambda: up.memcached.get(b"t:carol@example.com") == b"c@backup.example", "the backup's value is cached"
        )

    def test_backup_down(self, down: MailSite) -> None:
        """With memcached down, the backup accepts and rejects."""
        assert [reply.code for reply in replies(down.backed_port, KNOWN, BACKED, UNKNOWN)] == [250, 250, 550]

    def test_service_down(self, up: MailSite) -> None:
        """With the service itself stopped, every address is put off; smtpd goes on when it is back."""
        port = up.postfix.port
        up.service.stop()
        try:
            assert [reply.code for reply in replies(port, KNOWN, UNKNOWN)] == [451, 451]
        finally:
            up.service.start()
        assert [reply.code for reply in replies(port, KNOWN, UNKNOWN)] == [250, 550]

    def test_delivery(self, up: MailSite) -> None:
        """An accepted mail goes where memcached says."""
        deliver(up.postfix.port, KNOWN, "Subject: test\r\n\r\ntest\r\n")
        wait_until(lambda: "to=<alice@mail.example.com>, orig_to=<Alice@Example.COM>" in up.postfix.maillog, "delivery")

    def test_restart_of_the_service(self, up: MailSite) -> None:
        """A restart of the service in the middle of an SMTP session is not seen in its replies."""
        with smtplib.SMTP("127.0.0.1", up.chrooted_port, "client.elsewhere.example", timeout=60) as session:
            session.ehlo()
            session.mail("sender@elsewhere.example")
            assert session.rcpt(KNOWN)[0] == 250
            up.service.stop()
            up.service.start()
            assert session.rcpt("Alice@example.com")[0] == 250
            assert session.rcpt(UNKNOWN)[0] == 550


@needs_root
class TestRelativePath:
    def test_postmap(self, up: MailSite, monkeypatch: pytest.MonkeyPatch) -> None:
        """The relative path of main.cf serves postmap when that is run in the queue directory."""
        monkeypatch.chdir(up.postfix.postconf("-h", "queue_directory"))
        answer = up.postfix.postmap("-q", KNOWN, up.postfix.postconf("-h", "virtual_alias_maps"))
        assert (answer.returncode, answer.stdout) == (0, b"alice@mail.example.com\n")
