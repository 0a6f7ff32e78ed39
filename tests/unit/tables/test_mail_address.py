from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketmap_memcache.tables.mail_address import add_extension, quote, split_extension, unquote


@pytest.mark.parametrize(
    "internal,external",
    [
        (b"user", b"user"),
        (b"a.b+c-d/e=f", b"a.b+c-d/e=f"),
        ("\u00fcser".encode(), "\u00fcser".encode()),
        (b"", b'""'),
        (b"a b", b'"a b"'),
        (b"a..b", b'"a..b"'),
        (b".a", b'".a"'),
        (b"a.", b'"a."'),
        (b"a@b", b'"a@b"'),
        (b"a,b", b'"a,b"'),
        (b"a(b)", b'"a(b)"'),
        (b'a"b', b'"a\\"b"'),
        (b"a\\b", b'"a\\\\b"'),
        (b"a\rb", b'"a\\\rb"'),
        (b"a\x7fb", b'"a\x7fb"'),
    ],
)
def test_quotes(internal: bytes, external: bytes) -> None:
    """A local part that is no row of atoms with dots between them is in quotes."""
    assert quote(internal) == external
    assert unquote(external) == internal


@given(st.binary())
def test_there_and_back(local: bytes) -> None:
    """Whatever is quoted can be unquoted."""
    assert unquote(quote(local)) == local or quote(local) == local


@pytest.mark.parametrize("local", [b'a"b"', b'"a"b', b'"', b'"a\\"', b'"a" "b"'])
def test_not_quoted(local: bytes) -> None:
    """What is not in quotes as a whole is taken as it is."""
    assert unquote(local) == local


@pytest.mark.parametrize(
    "local,delimiters,user,extension",
    [
        (b"user+ext", b"+", b"user", b"+ext"),
        (b"user+", b"+", b"user", b"+"),
        (b"user+a+b", b"+", b"user", b"+a+b"),
        (b"user-a+b", b"+-", b"user", b"-a+b"),
        (b"user-a+b", b"+", b"user-a", b"+b"),
        (b"user+ext", b"", b"user+ext", b""),
        (b"user", b"+", b"user", b""),
        (b"", b"+", b"", b""),
        (b"+user", b"+", b"+user", b""),
        (b"++user+x", b"+", b"++user+x", b""),
        (b"Postmaster", b"t", b"Postmaster", b""),
        (b"MAILER-daemon", b"-", b"MAILER-daemon", b""),
        (b"double-bounce", b"-", b"double-bounce", b""),
        (b"postmaster+x", b"+", b"postmaster", b"+x"),
        (b"Owner-list+x", b"+-", b"Owner-list+x", b""),
        (b"Owner-list+x", b"+", b"Owner-list", b"+x"),
        (b"list+x-Request", b"+-", b"list+x-Request", b""),
        (b"list+x-request", b"+", b"list", b"+x-request"),
        (b"-request", b"-", b"-request", b""),
        (b"l-request", b"-", b"l-request", b""),
    ],
)
def test_split_extension(local: bytes, delimiters: bytes, user: bytes, extension: bytes) -> None:
    """The first delimiter begins the extension, but at the begin of the name, and in the names that have none."""
    assert split_extension(local, delimiters) == (user, extension)


@pytest.mark.parametrize(
    "before,after",
    [
        (b"user@example.com", b"user+x@example.com"),
        (b"user", b"user+x"),
        (b"a@example.com,b , c@example.net", b"a+x@example.com, b+x, c+x@example.net"),
        (b'"a b"@example.com', b'"a b+x"@example.com'),
        (b'"a,b"@example.com, "c@d"', b'"a,b+x"@example.com, "c@d+x"'),
        (b'"a\\"b"@example.com', b'"a\\"b+x"@example.com'),
        (b'"plain"@example.com', b"plain+x@example.com"),
        (b"Some One <user@example.com>", b"user+x@example.com"),
        (b"<user>", b"user+x"),
        (b",, ,", b""),
        (b"", b""),
    ],
)
def test_add_extension(before: bytes, after: bytes) -> None:
    """An extension is added to each address of a list, in its quotes, and with quotes only where they are needed."""
    assert add_extension(before, b"+x") == after


def test_extension_to_quote() -> None:
    """An extension that needs quotes brings them."""
    assert add_extension(b"user@example.com", b"+a b") == b'"user+a b"@example.com'


@given(st.binary(), st.binary(), st.binary())
def test_total(local: bytes, other: bytes, delimiters: bytes) -> None:
    """Any bytes can be taken apart and put together again."""
    user, extension = split_extension(local, delimiters)
    assert user + extension == local
    add_extension(other, extension)


def test_unbalanced() -> None:
    """A long list with a quote that has no partner does not take long."""
    began = time.perf_counter()
    add_extension(b'"' + b'\\"' * 50_000, b"+x")
    assert time.perf_counter() - began < 2
