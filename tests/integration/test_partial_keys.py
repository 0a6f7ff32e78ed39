"""The same mail through ``memcache:`` tables and through ``socketmap:`` with ``partial_keys`` has the same fate.

Two real Postfix instances with the same main.cf but for the type of their tables, one memcached with the entries of
all tables, and one service. Postfix's own look-ups in its ``memcache:`` tables say what is right.
"""

from __future__ import annotations

import itertools
import random
import re
import smtplib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing

import attrs
import pytest

from .harness.memcached import Memcached
from .harness.postfix import Postfix, needs_root
from .harness.processes import scratch_directory, wait_until, write_config
from .harness.service import Service

SEED = 20240305

#: How each table is used, and the kind of its partial keys.
TABLES = {
    "recipient_canonical_maps": "address",
    "sender_canonical_maps": "address",
    "virtual_alias_maps": "address",
    "transport_maps": "transport",
    "check_sender_access": "access",
    "check_recipient_access": "access",
    "check_helo_access": "domain",
    "check_client_access": "client",
}
LOCAL = ("origin.example", "local.example", "[127.0.0.1]")

_COMMON = {
    "myorigin": "origin.example",
    "mydestination": "local.example",
    "local_recipient_maps": "",
    "smtpd_reject_unlisted_recipient": "no",
    "smtpd_reject_unlisted_sender": "no",
    "inet_protocols": "all",  # for clients' addresses; it listens on 127.0.0.1 only
    "mynetworks": "static:all",
    "smtpd_relay_restrictions": "permit_mynetworks, reject",
    "smtpd_authorized_xclient_hosts": "127.0.0.1",
    "smtpd_client_connection_rate_limit": "0",
}


@attrs.frozen
class Style:
    """A way to set what bears on partial keys, in main.cf and in the tables' files.

    :ivar tables: what all files have.
    :ivar subdomains: the kinds whose files have this in addition.
    """

    main_cf: Mapping[str, str]
    tables: str
    subdomains: Mapping[str, str]


STYLES = {
    "defaults": Style({"recipient_delimiter": "+"}, "recipient_delimiter = +\n", {}),
    "all-different": Style(
        {
            "recipient_delimiter": "+-",
            "propagate_unmatched_extensions": "",
            "parent_domain_matches_subdomains": "transport_maps",
        },
        "recipient_delimiter = +-\npropagate_unmatched_extensions = no\n",
        {
            kind: f"parent_domain_matches_subdomains = {'yes' if kind == 'transport' else 'no'}\n"
            for kind in TABLES.values()
        },
    ),
}


@attrs.frozen
class Pair:
    """Two Postfix instances that should do the same."""

    native: Postfix
    by_socketmap: Postfix

    def __iter__(self) -> Iterator[Postfix]:
        return iter((self.native, self.by_socketmap))


USERS = [
    "u",
    "U+Ext",
    "u+ext-more",
    "u-ext",
    "u-ext+more",
    "+u",
    "owner-list+ext",
    "list-request",
    "Postmaster+ext",
    '"a,b"',
    '"a,b+ext"',
    '"a:b+e,x-t"',
    '"q\\"t+ext"',
    '"x@y+ext"',
    '"u..v+ext"',
    "ü+ext",
]


def bare(user: str) -> list[str]:
    """Give users that may be found for one: without this and that extension, with and without quotes."""
    inner = user[1:-1] if user.startswith('"') else user
    shortened = {inner, inner.partition("+")[0], re.split("[+-]", inner, maxsplit=1)[0]} - {""}
    return [form for name in sorted(shortened) for form in (name, f'"{name}"', name.replace("\\", ""))]


def parents(domain: str) -> list[str]:
    labels = domain.lower().split(".")
    names = [".".join(labels[place:]) for place in range(len(labels))]
    return [name for parent in names for name in (parent, f".{parent}")]


def networks(address: str) -> list[str]:
    delimiter = ":" if ":" in address else "."
    parts = address.split(delimiter)
    return [delimiter.join(parts[:count]) for count in range(1, len(parts) + 1)]


def keys(asked: Sequence[str]) -> set[str]:
    """Give keys that may be tried when one of those is asked for, and some more."""
    found = set()
    for address in asked:
        user, at, domain = address.rpartition("@")
        if not at:
            found |= {*parents(address), *networks(address.lower())}
            continue
        found |= {f"{form}@{domain}" for form in bare(user)} | set(bare(user))
        found |= {f"{form}@" for form in bare(user)} | {f"@{domain}", *parents(domain)}
    return {key.lower() for key in found if " " not in key}


def fill(memcached: Memcached, style: str, asked: Mapping[str, Sequence[str]]) -> None:
    """Store entries for about a third of all keys that may be tried, chosen by chance but always the same."""
    chance = random.Random(f"{SEED} {style}")
    entries = {}
    for name, addresses in asked.items():
        for number, key in enumerate(sorted(keys(addresses))):
            if chance.random() < 0.3:
                entries[f"{style}:{name}:{key}".encode()] = value(name, number, chance).encode()
    entries[f"{style}:transport_maps:*".encode()] = b"discard:wildcard"
    memcached.set_many(entries)


def value(name: str, number: int, chance: random.Random) -> str:
    if name.startswith("check_"):
        return f"REJECT {name} {number}"
    if name == "transport_maps":
        return f"discard:hop{number}"
    several = name == "virtual_alias_maps"
    return chance.choice(
        [
            f"to{number}@final.example",
            f"to{number}@final.example",
            f"to{number}",
            f'"to,{number}"@final.example',
            "@other.example",
            f"to{number}@final.example, Name <second{number}@final.example>"
            if several
            else f"one{number}@final.example",
            f'"to, {number}"@final.example, plain{number}' if several else f"<one{number}@final.example>",
        ]
    )


def addresses(*domains: str) -> list[str]:
    return [f"{user}@{domain}" for domain in domains for user in USERS]


MAILS = {
    "recipient_canonical_maps": addresses("Canon.Example", "Local.Example")[::2],
    "virtual_alias_maps": addresses("Virt.Example", "Origin.Example", "[127.0.0.1]"),
    "transport_maps": addresses("a.B.Trans.Example", "trans.example"),
}
SENDERS = addresses("Sender.Example", "local.example")[::3]
HELOS = ["Helo.Sub.Example.COM", "sub.example.com", "10.1.2.3", "[10.1.2.3]", "300.1.2.3", "1.2.3", "com"]
CLIENTS = [
    ("Mx.Client.Example", "192.0.2.1"),
    ("[UNAVAILABLE]", "192.0.2.77"),
    ("client.example", "198.51.100.4"),
    ("v6.client.example", "IPV6:2001:db8:1::5"),
]
ACCESS_SENDERS = ["", *addresses("a.b.Access.Example", "Local.Example")[::2]]
ACCESS_RECIPIENTS = addresses("c.D.Access.Example", "local.example")
ASKED = {
    **MAILS,
    "sender_canonical_maps": SENDERS,
    "check_sender_access": [*ACCESS_SENDERS[1:], "<>"],
    "check_recipient_access": ACCESS_RECIPIENTS,
    "check_helo_access": HELOS,
    "check_client_access": [part.removeprefix("IPV6:") for client in CLIENTS for part in client],
}


@pytest.fixture(scope="module", params=STYLES)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    style = STYLES[request.param]
    with ExitStack() as stack:
        directory = stack.enter_context(scratch_directory())
        memcached = stack.enter_context(Memcached(directory))
        fill(memcached, request.param, ASKED)
        files = {}
        for name, kind in TABLES.items():
            text = f"memcache = {memcached.address}\nkey_format = {request.param}:{name}:%s\npartial_keys = {kind}\n"
            text += f"local_domains = {', '.join(LOCAL)}\n" if kind == "address" else ""
            files[name] = write_config(directory / f"{name}.cf", text + style.tables + style.subdomains.get(kind, ""))
        tables = " ".join(f"{name}=memcache:{path}" for name, path in files.items())
        service = stack.enter_context(Service(directory, f"tables = {tables}\n"))
        native = {name: f"memcache:{path}" for name, path in files.items()}
        by_socketmap = {name: service.map(name) for name in files}
        instances = []
        for name, maps in (("native", native), ("socketmap", by_socketmap)):
            (directory / name).mkdir()
            instances.append(stack.enter_context(Postfix(directory / name, main_cf(style, maps))))
        yield Pair(*instances)


def main_cf(style: Style, maps: Mapping[str, str]) -> dict[str, str]:
    restrictions = " ".join(f"{name} {table}" for name, table in maps.items() if name.startswith("check_"))
    return {
        **_COMMON,
        **style.main_cf,
        **{name: table for name, table in maps.items() if not name.startswith("check_")},
        "smtpd_recipient_restrictions": f"{restrictions} permit",
        "smtputf8_enable": "yes",
    }


def session(postfix: Postfix) -> smtplib.SMTP:
    return smtplib.SMTP("127.0.0.1", postfix.port, local_hostname="quiet", timeout=20)


def command(connection: smtplib.SMTP, text: str) -> tuple[int, str]:
    connection.send(f"{text}\r\n".encode())
    code, reply = connection.getreply()
    return code, reply.decode()


def fates(postfix: Postfix, mails: Sequence[tuple[str, str]]) -> list[object]:
    """Send a mail for each sender and recipient; give what became of the addresses, and the next hops."""
    sent: list[tuple[int, str]] = []
    with session(postfix) as connection:
        connection.ehlo()
        for sender, recipient in mails:
            replies = [
                command(connection, text)
                for text in (f"MAIL FROM:<{sender}> SMTPUTF8", f"RCPT TO:<{recipient}>", "DATA")
            ]
            if replies[-1][0] == 354:
                replies = [command(connection, "Subject: test\r\n\r\ntest\r\n.")]
            else:
                command(connection, "RSET")
            sent.append(replies[-1] if replies[-1][0] == 250 else (0, repr(replies)))
    ids = [text.rpartition(" ")[2] if code == 250 else "" for code, text in sent]
    wait_until(lambda: all(f"{mail}: removed" in postfix.maillog for mail in ids if mail), "all mails are delivered")
    log = postfix.maillog
    result: list[object] = []
    for mail, (_, text) in zip(ids, sent, strict=True):
        if not mail:
            result.append(text)
            continue
        senders = re.findall(rf"{mail}: from=<(.*)>, size", log)
        delivered = re.findall(rf"/discard\S* {mail}: to=<(.*?)>, .*status=sent \((.*)\)", log)
        result.append((senders[:1], sorted(delivered)))
    return result


def verdicts(
    postfix: Postfix, client: tuple[str, str], helo: str, sender: str, recipients: Sequence[str]
) -> list[object]:
    """Give the replies to recipients."""
    with closing(session(postfix)) as connection:
        assert command(connection, "EHLO first")[0] == 250
        # An IPv6 address is refused, by both, where there is no IPv6.
        replies: list[object] = [command(connection, f"XCLIENT NAME={client[0]} ADDR={client[1]}")]
        assert command(connection, f"EHLO {helo}")[0] == 250
        replies.append(command(connection, f"MAIL FROM:<{sender}> SMTPUTF8"))
        return replies + [command(connection, f"RCPT TO:<{recipient}>") for recipient in recipients]


def compare(asked: Sequence[object], native: Sequence[object], by_socketmap: Sequence[object]) -> None:
    assert len(native) == len(by_socketmap)
    differences = [
        (what, one, other) for what, one, other in zip(asked, native, by_socketmap, strict=True) if one != other
    ]
    assert differences == []


@needs_root
class TestMail:
    @pytest.mark.parametrize("name", MAILS)
    def test_recipients(self, pair: Pair, name: str) -> None:
        """Recipients are rewritten to the same addresses, and go the same way."""
        mails = [("sender@quiet.invalid", recipient) for recipient in MAILS[name]]
        native, by_socketmap = (fates(postfix, mails) for postfix in pair)
        print(*zip(mails, native, strict=True), sep="\n")
        compare(mails, native, by_socketmap)
        assert len({str(fate) for fate in native}) > len(mails) / 3  # the tables are not empty

    def test_senders(self, pair: Pair) -> None:
        """Senders are rewritten to the same addresses."""
        mails = [(sender, "recipient@quiet.invalid") for sender in SENDERS]
        native, by_socketmap = (fates(postfix, mails) for postfix in pair)
        compare(mails, native, by_socketmap)
        assert len({str(fate) for fate in native}) > len(mails) / 3


QUIET = (("[UNAVAILABLE]", "127.0.0.1"), "quiet", "sender@quiet.invalid")


@needs_root
class TestAccess:
    def test_recipients(self, pair: Pair) -> None:
        """check_recipient_access gives the same replies."""
        native, by_socketmap = (verdicts(postfix, *QUIET, ACCESS_RECIPIENTS) for postfix in pair)
        compare(["XCLIENT", "MAIL", *ACCESS_RECIPIENTS], native, by_socketmap)
        assert len(set(native)) > 10

    def test_others(self, pair: Pair) -> None:
        """check_client_access, check_helo_access and check_sender_access give the same replies."""
        client, helo, sender = QUIET
        asked = [
            *((tried, helo, sender) for tried in CLIENTS),
            *((client, tried, sender) for tried in HELOS),
            *((client, helo, tried) for tried in ACCESS_SENDERS),
        ]
        native, by_socketmap = (
            list(itertools.chain.from_iterable(verdicts(postfix, *each, ["recipient@quiet.invalid"]) for each in asked))
            for postfix in pair
        )
        compare([each for each in asked for _ in range(3)], native, by_socketmap)
        for name in ("check_client_access", "check_helo_access", "check_sender_access"):
            assert name in str(native)
