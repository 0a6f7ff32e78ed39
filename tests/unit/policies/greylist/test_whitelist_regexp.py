"""Perl's regular expressions are searched as Perl does it, or refused."""

from __future__ import annotations

import re

import pytest

from socketmap_memcache.policies.greylist.whitelist_regexp import translate


def found(expression: bytes, subject: bytes) -> bool:
    return re.search(translate(expression).text, subject, re.IGNORECASE) is not None


@pytest.mark.parametrize(
    "expression, yes, no",
    [
        (rb"^ms-smtp.*\.rr\.com$", b"MS-SMTP-01.texas.rr.com", b"ms-smtp.rr.com.example"),
        (rb"^s[cv]\d+pub\.verizon\.net$", b"sv17pub.verizon.net", b"sx17pub.verizon.net"),
        (rb"^(?:smtp\w*|postfix)[0-9]+-g[0-9]+\.free\.fr$", b"postfix3-g21.free.fr", b"postfix-g21.free.fr"),
        (rb"\A[[:alpha:]_]+[[:digit:]]\z", b"mail_a1", b"mail11"),
        (rb"^[]a^-]+\Z", b"a]^-", b"b"),
        (rb"^[^]a]$", b"b", b"]"),
        (rb"[[]1[\]]", b"[1]", b"(1)"),
        (rb"^[\w\h&&|~.]+$", b"a|b&c~.", b"a,b"),
        (rb"^[+--]{2}$", b",-", b"./"),
        (rb"^[--/]{3}$", b"-./", b",,,"),
        (rb"^[[:blank:]-z]$", b"-", b"a"),
        (rb"^[[:blank:]--a]$", b"a", b"."),
        (rb"^\x61\x{2e}[\x{62}\x63]$", b"a.c", b"a.a"),
        (rb"^a\hb\Hc$", b"a bxc", b"a bx"),
        (rb"^(\w+)\.\1$", b"ab.ab", b"ab.ac"),
        (rb"^(?<x>\w)(?'y'\w)(?P<z>\w)\k<x>\k'y'\k{z}(?P=z)$", b"abcabcc", b"abcabcd"),
        (rb"^(?i)a(?s)b(?msix:.)$", b"AB.", b"AB"),
        (rb"^(?-i:Mail)$", b"Mail", b"mail"),
        (rb"^a(?=b)(?!c)b(?<=b)(?<!a)$", b"ab", b"ac"),
        (rb"^foo\/bar$", b"foo/bar", b"foobar"),
        ("^tés".encode(), "tést".encode(), b"test"),
    ],
)
def test_meaning(expression: bytes, yes: bytes, no: bytes) -> None:
    """What Perl finds is found, and nothing else; case does not count."""
    assert found(expression, yes)
    assert not found(expression, no)


@pytest.mark.parametrize(
    "expression, reason",
    [
        (rb"\p{L}", r"\p is not supported"),
        (rb"\Qa.b\E", r"\Q is not supported"),
        (rb"a\Kb", r"\K is not supported"),
        (rb"[\pL]", r"\p is not supported"),
        (rb"\xg", r"\x is not supported"),
        (rb"[[:^alpha:]]", "[:^alpha:] is not supported"),
        (rb"[[:letter:]]", "[:letter:] is not supported"),
        (rb"(?{die})", "(?{ is not supported"),
        (rb"(?(1)a|b)", "(?( is not supported"),
        (rb"(?|a|b)", "(?| is not supported"),
        (rb"(?^:a)", "(?^ is not supported"),
        (rb"a(?", "(? is not supported"),
        (b"a\\", "\\ is not supported"),
        (rb"*.example.com", "bad regular expression: nothing to repeat"),
        (rb"(a", "bad regular expression: missing )"),
        (rb"[a", "bad regular expression: unterminated character set"),
        (rb"[0--9]", "bad regular expression: bad character range"),
        (rb"[[:alp", "bad regular expression: unterminated character set"),
        (rb"(?<=a*)b", "bad regular expression: look-behind requires fixed-width pattern"),
        (rb"a{999999999999}", "bad regular expression: the repetition number is too large"),
    ],
)
def test_refused(expression: bytes, reason: str) -> None:
    """What cannot be searched as Perl does it is refused, with the reason."""
    with pytest.raises(ValueError, match=re.escape(reason)):
        translate(expression)


@pytest.mark.parametrize(
    "expression, joinable",
    [
        (rb"^(a|b)(?:c)(?<=c)(?<!d)\.\d$", True),
        (rb"(?-i:a)(?i)b", True),
        (rb"(.)\1", False),
        (rb"(?<x>.)", False),
        (rb"(?P<x>.)(?P=x)", False),
        (rb"(?'x'.)", False),
    ],
)
def test_joinable(expression: bytes, joinable: bool) -> None:
    """An expression can be one of several alternatives unless it has a group with a name, or refers to a group."""
    assert translate(expression).joinable is joinable


@pytest.mark.parametrize(
    "expression, quick",
    [
        (b"^mail\\d+\\.example\\.com$", True),
        (b"^a.*b[0-9]+-c\\w*\\.d$", True),
        (b"a.*b+c", True),
        (b"^(?:a.*|b)c+-d+$", True),
        (b"^((?i)a|b)c+-d+(?=e|f)$", True),
        (b"a.*b+c?", False),
        (b"^a|b.*c+d*", False),
        (b"^(a|b)c?|d.*e+", False),
        (b"^a.*b.*c.*d.*e", False),
        (b"^(?:mx|mail|smtp)\\d+\\.example$", True),
        (b"^(?:a|aa)(?:a|aa)(?:a|aa)(?:a|aa)(?:a|aa)(?:a|aa)(?:a|aa)(?:a|aa)b", False),
        (b"a.*b.*c.*d", False),
        (b"^(?:a|aa)+$", False),
        (b"^(a)\\1$", False),
    ],
)
def test_quick(expression: bytes, quick: bool) -> None:
    """Few repeats, none of them of a group, are not worth a time limit: a search for them in a short name is short."""
    assert translate(expression).quick is quick
