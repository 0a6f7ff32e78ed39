"""What the lines of whitelists mean, and which are refused."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketmap_memcache.errors import Problem
from socketmap_memcache.policies.greylist.whitelist_regexp import Expression
from socketmap_memcache.policies.greylist.whitelist_syntax import (
    Domain,
    Mailbox,
    Network,
    parse_clients,
    parse_recipients,
    parse_senders,
)


def client(line: bytes) -> object:
    problems: list[Problem] = []
    (entry,) = parse_clients(line, "list", problems)
    assert problems == []
    return entry


def network(text: str) -> Network:
    made = ip_network(text)
    return Network(made.max_prefixlen, int(made[0]), int(made[-1]))


def sender(line: bytes) -> object:
    problems: list[Problem] = []
    (entry,) = parse_senders(line, "list", problems)
    assert problems == []
    return entry


def test_lines() -> None:
    """Comments, blank lines and white space around an entry do not count, whatever a line ends in."""
    problems: list[Problem] = []
    text = b"# all\r\n\n \t\n  a.example # one\r\nb.example\t\n/c/#d/\nlast.example"
    entries = parse_clients(text, "list", problems)
    assert entries == [
        Domain(b"a.example"),
        Domain(b"b.example"),
        Expression(b"c", True, True),
        Domain(b"last.example"),
    ]
    assert problems == []


@pytest.mark.parametrize(
    "line, entry",
    [
        (b"Example.COM", Domain(b"example.com")),
        (b"unknown", Domain(b"unknown")),
        (b"mail_1-a.example", Domain(b"mail_1-a.example")),
        (b".example.com", Domain(b"example.com", itself=False)),
        (b"*.example.com", Domain(b"example.com", itself=False)),
        (b"/^a/b$/", Expression(b"^a/b$", True, True)),
        (b"192.0.2.1", network("192.0.2.1/32")),
        (b"192.0.2", network("192.0.2.0/24")),
        (b"192.168", network("192.168.0.0/16")),
        (b"10", network("10.0.0.0/8")),
        (b"192.0.2.64/26", network("192.0.2.64/26")),
        (b"192.0.2.77/26", network("192.0.2.64/26")),
        (b"0.0.0.0/0", network("0.0.0.0/0")),
        (b"2001:db8::1", network("2001:db8::1/128")),
        (b"2A01:4180:4051:0800::/64", network("2a01:4180:4051:800::/64")),
        (b"::/0", network("::/0")),
        (b"::ffff:192.0.2.7", network("192.0.2.7/32")),
        (b"::ffff:192.0.2.7/120", network("192.0.2.0/24")),
        (b"::ffff:0:0/96", network("0.0.0.0/0")),
        (b"::ffff:0:0/95", network("::fffe:0:0/95")),
    ],
)
def test_clients(line: bytes, entry: object) -> None:
    """A list of clients has hosts and domains, addresses and networks, and regular expressions."""
    assert client(line) == entry


@pytest.mark.parametrize(
    "line, entry",
    [
        (b"User@Example.com", Mailbox(b"user@example.com")),
        (b"user+ext@example.com", Mailbox(b"user+ext@example.com")),
        (b"postmaster@", Mailbox(b"postmaster@")),
        (b"user@[192.0.2.1]", Mailbox(b"user@[192.0.2.1]")),
        (b'"a@b"@example.com', Mailbox(b'"a@b"@example.com')),
        (b"Example.com", Domain(b"example.com")),
        ("bücher.example".encode(), Domain("bücher.example".encode())),
        (b"@example.com", Domain(b"example.com", below=False)),
        (b".example.com", Domain(b"example.com", itself=False)),
        (b"*.example.com", Domain(b"example.com", itself=False)),
        (b"/^$/", Expression(b"^$", True, True)),
    ],
)
def test_mail_addresses(line: bytes, entry: object) -> None:
    """Lists of recipients and of senders have users, domains and regular expressions."""
    assert sender(line) == entry
    assert parse_recipients(line, "list", []) == [entry]


def test_null_sender() -> None:
    """The null sender is written as in SMTP, in a list of senders only."""
    assert sender(b"<>") == Mailbox(b"")
    problems: list[Problem] = []
    assert parse_recipients(b"<>", "list", problems) == []
    assert len(problems) == 1


@pytest.mark.parametrize(
    "line, reason",
    [
        (b"user@example.com", "an e-mail address in a list of clients"),
        (b"@example.com", "an e-mail address in a list of clients"),
        (b"192.0.2.0/33", "the length of such a network, behind the /, is 0 to 32"),
        (b"192.0.2.0/", "the length of such a network, behind the /, is 0 to 32"),
        (b"2001:db8::/129", "the length of such a network, behind the /, is 0 to 128"),
        (b"::1/" + b"9" * 5000, "the length of such a network, behind the /, is 0 to 128"),
        (b"192.0.2.0/255.255.255.0", "the length of such a network, behind the /, is 0 to 32"),
        (b"192.0.2/24", "neither an IP address nor a network"),
        (b"192.0.2.256", "neither an IP address nor a network"),
        (b"192.0.2.", "neither an IP address nor a network"),
        (b"192.0.2.1-9", "neither an IP address nor a network"),
        (b"300.1", "neither an IP address nor a network"),
        (b"fe80::1%eth0", "neither an IP address nor a network"),
        (b"2001:db8", "neither an IP address nor a network"),
        (b"mail*.example.com", "neither a host name or domain, nor"),
        (b"example.com.", "neither a host name or domain, nor"),
        (b"example..com", "neither a host name or domain, nor"),
        (b"..example.com", "neither a host name or domain, nor"),
        (b"\xef\xbb\xbfexample.com", "neither a host name or domain, nor"),
        (b"a.example b.example", "one entry a line"),
        (b"a.example\x00", "one entry a line"),
        (b"/a b/", r"in a regular expression write \s"),
        (b"/a/i", "a regular expression is written /expression/"),
        (b"/a", "a regular expression is written /expression/"),
        (b"//", "a regular expression is written /expression/"),
        (b"/a#b/", r"for # write \x23"),
        (b"/(a/", "bad regular expression"),
    ],
)
def test_bad_clients(line: bytes, reason: str) -> None:
    """A line that cannot be used is reported with file and line; the others are used."""
    problems: list[Problem] = []
    entries = parse_clients(b"one.example\n" + line + b"\ntwo.example\n", "list", problems)
    assert entries == [Domain(b"one.example"), Domain(b"two.example")]
    (problem,) = problems
    assert (problem.path, problem.line) == ("list", 2)
    assert reason in problem.text


@pytest.mark.parametrize(
    "line, reason",
    [
        (b"192.0.2.1", "an IP address in a list of e-mail addresses"),
        (b"192.0.2", "an IP address in a list of e-mail addresses"),
        (b"2001:db8::/32", "an IP address in a list of e-mail addresses"),
        (b"<user@example.com>", "without < and >"),
        (b"*@example.com", "write @example.com"),
        (b"@", "what is behind the @"),
        (b"user@.example.com", "what is behind the @"),
        (b"@*.example.com", "what is behind the @"),
        (b"exa*mple.com", "neither a domain nor an e-mail address"),
        (b"user name@example.com", "one entry a line"),
    ],
)
def test_bad_addresses(line: bytes, reason: str) -> None:
    """So is one in a list of recipients or senders."""
    for parse in (parse_recipients, parse_senders):
        problems: list[Problem] = []
        assert parse(line, "list", problems) == []
        assert reason in problems[0].text


@given(st.binary())
def test_any_bytes(text: bytes) -> None:
    """Whatever is in a file, each line is an entry, a problem or nothing."""
    for parse in (parse_clients, parse_recipients, parse_senders):
        problems: list[Problem] = []
        entries = parse(text, "list", problems)
        lines = [line.split(b"#")[0].strip() for line in text.split(b"\n")]
        assert len(entries) + len(problems) == len([line for line in lines if line])
