"""Greylisting as those who send mail see it: a real Postfix asks the service, and is asked over SMTP."""

from __future__ import annotations

import re
import smtplib
import ssl
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs
import pytest

from .harness.postfix import Postfix, needs_root
from .harness.processes import accepts, free_port, scratch_directory, wait_until, write_config
from .harness.service import Service
from .harness.smtp import Reply

pytestmark = needs_root

#: A key and a certificate that has signed itself each; the Postfix here trusts the one called known.
CERTIFICATES = Path(__file__).with_name("certificates")

DELAY = 1.0
TEXT = "Greylisted, see http://postgrey.schweikert.ch/help/example.org.html"

CONFIG = """\
policies = greylist
greylist_table = lmdb:{directory}/{name}
greylist_delay = 1s
greylist_hostname = mx.example.org
greylist_client_whitelist = {directory}/clients
greylist_sender_whitelist = {directory}/senders
greylist_recipient_access = texthash:{directory}/recipients
greylist_training_mode = {training}
"""

FILES = {
    "clients": "good.example\n198.51.100.0/25\n2001:db8:1::/48\n",
    "senders": "friend@example.com\n",
    "recipients": "postmaster@ skip\nsales@example.org skip\nopen.example.net skip\nslow@example.org delay=1h\n",
}


@attrs.frozen
class MailSite:
    """A Postfix that asks after each recipient, or before the data, or a service in training."""

    service: Service
    training: Service
    postfix: Postfix
    data_port: int
    training_port: int
    tls_port: int


@pytest.fixture(scope="module")
def site() -> Iterator[MailSite]:
    with ExitStack() as stack:
        directory = stack.enter_context(scratch_directory())
        for name, text in FILES.items():
            write_config(directory / name, text)

        def serve(name: str, training: str) -> Service:
            place = directory / name
            place.mkdir()
            config = CONFIG.format(directory=directory, name=name, training=training)
            return stack.enter_context(Service(place, config, policy_listen=[f"inet:127.0.0.1:{free_port()}"]))

        service, trained = serve("service", "no"), serve("training", "yes")
        ask = "check_policy_service {{ {}, default_action=DUNNO }}".format
        main_cf = {
            "relay_domains": "example.org example.net",
            "smtpd_recipient_restrictions": ask(service.policy_addresses[0]),
            "ask_before_data": ask(service.policy_addresses[0]),
            "ask_in_training": ask(trained.policy_addresses[0]),
            "smtpd_end_of_data_restrictions": "check_client_access static:HOLD",  # so that it stays to be seen
            "smtpd_tls_cert_file": str(CERTIFICATES / "known.pem"),
            "smtpd_tls_CAfile": str(CERTIFICATES / "known.pem"),
            "inet_protocols": "all",  # a client may say that it has an IPv6 address
            "smtpd_authorized_xclient_hosts": "127.0.0.1",
        }
        postfix = Postfix(directory, main_cf)
        data_port, training_port, tls_port = free_port(), free_port(), free_port()
        master_cf = postfix.config_directory / "master.cf"
        before_data = "-o smtpd_recipient_restrictions= -o smtpd_data_restrictions=$ask_before_data"
        in_training = "-o smtpd_recipient_restrictions=$ask_in_training"
        with_tls = "-o smtpd_tls_security_level=may -o smtpd_tls_ask_ccert=yes"
        services = (
            f"{data_port} inet n - n - - smtpd {before_data}\n"
            f"{training_port} inet n - n - - smtpd {in_training}\n"
            f"{tls_port} inet n - n - - smtpd {with_tls}\n"
            "tlsmgr unix - - n 1000? 1 tlsmgr\n"
        )
        write_config(master_cf, master_cf.read_text() + services)
        stack.enter_context(postfix)
        for port in (data_port, training_port, tls_port):
            wait_until(lambda port=port: accepts(f"inet:127.0.0.1:{port}"), "all smtpd listen")  # type: ignore[misc]
        yield MailSite(service, trained, postfix, data_port, training_port, tls_port)


class Session:
    """A client at the door."""

    def __init__(self, smtp: smtplib.SMTP, postfix: Postfix) -> None:
        self._smtp = smtp
        self._smtp.command_encoding = "utf-8"
        self._postfix = postfix

    def ask(self, sender: str, *recipients: str, options: Sequence[str] = ()) -> list[Reply]:
        """Begin a mail, in place of one that is not finished, and return the replies to its recipients."""
        self._smtp.docmd("RSET")
        reply = _reply(self._smtp.docmd(" ".join([f"MAIL FROM:<{sender}>", *options])))
        assert reply.code == 250, reply
        return [_reply(self._smtp.docmd(f"RCPT TO:<{recipient}>")) for recipient in recipients]

    def data(self) -> Reply:
        """Return the reply to DATA, and after 354 that to the mail."""
        if (reply := _reply(self._smtp.docmd("DATA"))).code != 354:
            return reply
        self._smtp.send(b"Subject: test\r\n\r\ntest\r\n.\r\n")
        return _reply(self._smtp.getreply())

    def end(self) -> str:
        """End the mail, which must be accepted, and return it as it is in the queue."""
        reply = self.data()
        match = re.search(r"queued as (\w+)", reply.text)
        assert match, reply
        return self._postfix.message(match[1])


def _reply(answer: tuple[int, bytes]) -> Reply:
    return Reply(answer[0], answer[1].decode())


@contextmanager
def session(
    site: MailSite, address: str, name: str = "[UNAVAILABLE]", *, port: int = 0, login: str = ""
) -> Iterator[Session]:
    """Connect as another client, which has perhaps logged in."""
    family = "IPV6:" if ":" in address else ""
    with smtplib.SMTP("127.0.0.1", port or site.postfix.port, "client.example", timeout=60) as smtp:
        smtp.ehlo()
        code, text = smtp.docmd("XCLIENT", f"NAME={name} ADDR={family}{address}" + (f" LOGIN={login}" if login else ""))
        assert code == 220, text
        smtp.ehlo()
        yield Session(smtp, site.postfix)


def wait_out() -> None:
    """Let the delay pass."""
    time.sleep(DELAY + 0.05)


def assert_deferred(reply: Reply) -> None:
    """It is a reply that puts off because of greylisting."""
    assert reply.code == 450
    assert "Greylisted" in reply.text


def headers(message: str) -> list[str]:
    return [line for line in message.splitlines() if line.startswith("X-Greylist:")]


def assert_logged(service: Service, *lines: str) -> None:
    """Wait for lines in the log, in any order."""
    for line in lines:
        wait_until(lambda line=line: line in service.log, f"in the log: {line}", 5)  # type: ignore[misc]


class TestRecipients:
    def test_delay(self, site: MailSite) -> None:
        """A new triplet gets 450 with the text, after the delay 250 and the header, and from then on nothing."""
        with session(site, "192.0.2.7", "mx.example.com") as client:
            text = f"4.2.0 <Bob@example.org>: Recipient address rejected: {TEXT}"
            assert client.ask("alice@example.com", "Bob@example.org") == [Reply(450, text)]
        wait_out()
        with session(site, "192.0.2.99", "mx2.example.com") as client:  # of the same network
            assert client.ask("alice+tag@example.com", "bob@example.org") == [Reply(250, "2.1.5 Ok")]
            (header,) = headers(client.end())
            pattern = (
                r"X-Greylist: delayed \d+ seconds by socketmap-memcache-[\w.]+ at mx\.example\.org; \w+, .* \d{4} "
            )
            assert re.match(pattern, header)
            assert client.ask("alice@example.com", "bob@example.org")[0].code == 250
            assert headers(client.end()) == []
        who = (
            "client_name=mx.example.com, client_address=192.0.2.7, sender=alice@example.com, recipient=Bob@example.org"
        )
        assert_logged(site.service, f"action=greylist, reason=new, {who}", "action=pass, reason=triplet found, delay=")

    def test_early(self, site: MailSite) -> None:
        """A retry before the delay is over gets 450; the delay is the one of the recipient."""
        with session(site, "192.0.2.7") as client:
            assert_deferred(client.ask("alice@example.com", "slow@example.org")[0])
        wait_out()
        with session(site, "192.0.2.7") as client:
            assert_deferred(client.ask("alice@example.com", "slow@example.org")[0])
        assert_logged(site.service, "action=greylist, reason=early-retry (35")

    def test_two_recipients(self, site: MailSite) -> None:
        """Each recipient of a mail is deferred for itself; a mail to several has one header."""
        with session(site, "192.0.2.7") as client:
            for reply in client.ask("two@example.com", "bob@example.org", "carol@example.org"):
                assert_deferred(reply)
        wait_out()
        with session(site, "192.0.2.7") as client:
            replies = client.ask("two@example.com", "bob@example.org", "dave@example.org", "carol@example.org")
            assert [reply.code for reply in replies] == [250, 450, 250]
            assert len(headers(client.end())) == 1

    def test_addresses(self, site: MailSite) -> None:
        """Bounces, and mail from and to unusual addresses, are deferred, and pass after the delay."""
        mails = [
            ("", "null@example.org"),
            ('"a b"@example.com', '"c  d"@example.org'),
            ("jürgen@exämple.com", "bücher@example.org"),
            ("s" * 64 + "@" + "d" * 60 + ".example.com", "r" * 64 + "@" + "e" * 60 + ".example.org"),
            ("a/b=c%d@example.com", '"x\\"y"@example.org'),
        ]
        with session(site, "2001:db8:2::7") as client:
            for mail in mails:
                assert_deferred(client.ask(*mail, options=["SMTPUTF8"])[0])
            wait_out()
            for mail in mails:
                assert client.ask(*mail, options=["SMTPUTF8"])[0].code == 250, mail
                assert len(headers(client.end())) == 1


class TestExempt:
    @pytest.mark.parametrize(
        "address, name",
        [
            ("203.0.113.1", "mx.good.example"),
            ("198.51.100.127", "[UNAVAILABLE]"),
            ("2001:db8:1::5", "[UNAVAILABLE]"),
        ],
    )
    def test_client(self, site: MailSite, address: str, name: str) -> None:
        """A client in the whitelist, by its name or by its address, is served at once."""
        with session(site, address, name) as client:
            assert client.ask("alice@example.com", "bob@example.org")[0].code == 250
            assert headers(client.end()) == []
        assert_logged(site.service, "action=pass, reason=client whitelist")

    def test_other_client(self, site: MailSite) -> None:
        """One whose name only looks similar, or beside the network, is not."""
        for address, name in (("203.0.113.1", "notgood.example"), ("198.51.100.128", "[UNAVAILABLE]")):
            with session(site, address, name) as client:
                assert_deferred(client.ask(f"{name}@example.com", "bob@example.org")[0])

    def test_sender(self, site: MailSite) -> None:
        """So is a sender in the whitelist."""
        with session(site, "203.0.113.1") as client:
            assert client.ask("Friend@example.com", "bob@example.org")[0].code == 250
        assert_logged(site.service, "action=pass, reason=sender whitelist")

    def test_recipients(self, site: MailSite) -> None:
        """Recipients and domains that want no greylisting have none, beside others in the same mail."""
        recipients = ["sales@example.org", "bob@example.org", "postmaster@example.org", "x@open.example.net"]
        with session(site, "203.0.113.1") as client:
            replies = client.ask("optout@example.com", *recipients)
            assert [reply.code for reply in replies] == [250, 450, 250, 250]
            assert headers(client.end()) == []
        assert_logged(site.service, "action=pass, reason=recipient access")

    def test_login(self, site: MailSite) -> None:
        """A client that has logged in is not greylisted."""
        with session(site, "203.0.113.1", login="alice") as client:
            assert client.ask("login@example.com", "bob@example.org")[0].code == 250
        assert_logged(site.service, "action=pass, reason=authenticated client")

    def test_certificate(self, site: MailSite) -> None:
        """Nor is one with a certificate that Postfix could verify; with any other it is."""
        for name, code in (("known", 250), ("stranger", 450)):
            context = ssl.create_default_context(cafile=CERTIFICATES / "known.pem")
            context.load_cert_chain(CERTIFICATES / f"{name}.pem")
            with smtplib.SMTP("localhost", site.tls_port, "client.example", timeout=60) as smtp:
                smtp._host = "known.example"  # type: ignore[attr-defined] # to be found in the certificate
                smtp.starttls(context=context)
                (reply,) = Session(smtp, site.postfix).ask(f"{name}@example.com", "bob@example.org")
                assert reply.code == code
        who = "client_name=unknown, client_address=127.0.0.1, sender=known@example.com"
        assert_logged(site.service, f"action=pass, reason=authenticated client, {who}")


class TestData:
    def test_one_recipient(self, site: MailSite) -> None:
        """Asked before the data of a mail, the service defers and lets pass all the same."""
        with session(site, "192.0.2.7", port=site.data_port) as client:
            assert client.ask("data@example.com", "bob@example.org")[0].code == 250
            assert_deferred(client.data())
            wait_out()
            client.ask("data@example.com", "bob@example.org")
            assert len(headers(client.end())) == 1

    def test_same_triplet(self, site: MailSite) -> None:
        """What has passed at one state is known at the other."""
        with session(site, "192.0.2.7") as client:
            assert_deferred(client.ask("states@example.com", "bob@example.org")[0])
            wait_out()
            assert client.ask("states@example.com", "bob@example.org")[0].code == 250
        with session(site, "192.0.2.7", port=site.data_port) as client:
            client.ask("states@example.com", "bob@example.org")
            assert headers(client.end()) == []

    def test_two_recipients(self, site: MailSite) -> None:
        """With several recipients Postfix names none, and the mail is deferred as a whole."""
        with session(site, "192.0.2.7", port=site.data_port) as client:
            client.ask("", "bob@example.org", "carol@example.org")
            assert_deferred(client.data())
            wait_out()
            client.ask("", "bob@example.org", "carol@example.org")
            assert len(headers(client.end())) == 1


class TestTraining:
    def test_passes(self, site: MailSite) -> None:
        """In training mode mail passes at once, and the log says what would have been."""
        with session(site, "192.0.2.7", port=site.training_port) as client:
            assert client.ask("alice@example.com", "bob@example.org")[0].code == 250
            client.end()
        line = "client_address=192.0.2.7, sender=alice@example.com, recipient=bob@example.org, training=yes"
        assert_logged(site.training, f"action=greylist, reason=new, client_name=unknown, {line}")


class TestService:
    def test_away(self, site: MailSite) -> None:
        """While the service is away mail flows, also in a session that is open; when it is back, it greylists."""
        with session(site, "192.0.2.7") as client:
            assert_deferred(client.ask("before@example.com", "bob@example.org")[0])
            site.service.stop()
            try:
                assert client.ask("away@example.com", "bob@example.org")[0].code == 250
                client.end()
            finally:
                site.service.start()
            assert_deferred(client.ask("after@example.com", "bob@example.org")[0])
        with session(site, "192.0.2.7") as client:
            assert client.ask("before@example.com", "bob@example.org")[0].code == 250
