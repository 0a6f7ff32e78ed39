from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from socketmap_memcache.errors import PermanentError, TemporaryError
from socketmap_memcache.tables.interface import ITable
from socketmap_memcache.tables.match_list import MatchList
from socketmap_memcache.tables.partial_keys import KINDS, PartialKeys, PartialKeysTable
from tests.unit.tables.fakes import FakeTable, answer


def keys(kind: str, key: bytes, is_local: bool = False, delimiters: bytes = b"+", **options: Any) -> list[bytes]:
    partial_keys = PartialKeys(kind, delimiters, subdomains_match=options.pop("subdomains_match", KINDS[kind]))
    return list(partial_keys.candidates(key, is_local))


class TestAddress:
    """virtual(5), canonical(5)."""

    def test_order(self) -> None:
        """Address, address without extension, and the domain; for local domains users before that."""
        full = [b"loc+e@loc.test", b"loc@loc.test"]
        assert keys("address", b"loc+e@loc.test") == [*full, b"@loc.test"]
        assert keys("address", b"loc+e@loc.test", is_local=True) == [*full, b"loc+e", b"loc", b"@loc.test"]
        assert keys("address", b"loc@loc.test", is_local=True) == [b"loc@loc.test", b"loc", b"@loc.test"]

    def test_no_delimiter(self) -> None:
        """Without a delimiter there is no extension."""
        assert keys("address", b"loc+e@loc.test", delimiters=b"") == [b"loc+e@loc.test", b"@loc.test"]

    def test_bare(self) -> None:
        """A user without a domain is tried with and without extension, once each."""
        for is_local in (True, False):
            assert keys("address", b"loc+e", is_local) == [b"loc+e", b"loc"]

    def test_quoted(self) -> None:
        """An address in quotes is tried in quotes, where it needs them, like those of canonical and virtual tables."""
        assert keys("address", b'"a,b+e"@loc.test', is_local=True) == [
            b'"a,b+e"@loc.test',
            b'"a,b"@loc.test',
            b'"a,b+e"',
            b'"a,b"',
            b"@loc.test",
        ]
        assert keys("address", b'"a+b,c"@loc.test') == [b'"a+b,c"@loc.test', b"a@loc.test", b"@loc.test"]

    def test_not_quoted(self) -> None:
        """An address that should have quotes is one that Postfix asks for after the one with quotes."""
        for key in (b"a,b+e@loc.test", b'"a,b+e"@loc.test'):
            found = keys("address", key)
            assert found[0] == b'"a,b+e"@loc.test'
        assert keys("address", b"a,b+e@d") == [b'"a,b+e"@d', b"a,b+e@d", b'"a,b"@d', b"a,b@d", b"@d"]
        assert keys("address", b'"a"@d') == [b"a@d", b"@d"]

    def test_two_at_signs(self) -> None:
        """The domain is what is after the last @."""
        assert keys("address", b'"a@b+e"@loc.test') == [b'"a@b+e"@loc.test', b'"a@b"@loc.test', b"@loc.test"]

    def test_domain_alone(self) -> None:
        """A key that is a domain is tried as such, and no empty key ever is."""
        assert keys("address", b"@loc.test", is_local=True) == [b'""@loc.test', b"@loc.test", b'""']
        assert keys("address", b"") == [b'""']
        assert keys("address", b"user@") == [b"user@", b"@"]


class TestTransport:
    """transport(5)."""

    def test_order(self) -> None:
        """Address, address without extension, domain, and ``.domain`` of the parents."""
        assert keys("transport", b"user+ext@sub.example.com") == [
            b"user+ext@sub.example.com",
            b"user@sub.example.com",
            b"sub.example.com",
            b".example.com",
            b".com",
        ]

    def test_subdomains_match(self) -> None:
        """With parent_domain_matches_subdomains the parents are tried without the dot."""
        found = keys("transport", b"u@a.b.c", subdomains_match=True)
        assert found == [b"u@a.b.c", b"a.b.c", b"b.c", b"c"]

    def test_wildcard(self) -> None:
        """What is no address is tried as it is."""
        assert keys("transport", b"*") == [b"*"]

    def test_quotes(self) -> None:
        """Both forms of an address are tried, the one with quotes first, whichever is asked for."""
        for key in (b'"a,b+e"@d', b"a,b+e@d"):
            assert keys("transport", key) == [b'"a,b+e"@d', b"a,b+e@d", b'"a,b"@d', b"a,b@d", b"d"]


class TestAccess:
    """access(5)."""

    def test_order(self) -> None:
        """Address, domain and parents, and then ``user@``."""
        assert keys("access", b"user+ext@sub.example.com") == [
            b"user+ext@sub.example.com",
            b"user@sub.example.com",
            b"sub.example.com",
            b"example.com",
            b"com",
            b"user+ext@",
            b"user@",
        ]

    def test_dots(self) -> None:
        """Without parent_domain_matches_subdomains the parents are tried with a dot."""
        found = keys("access", b"u@a.b.c", subdomains_match=False)
        assert found == [b"u@a.b.c", b"a.b.c", b".b.c", b".c", b"u@"]

    def test_null_sender(self) -> None:
        """The sender of bounces is tried as it is."""
        assert keys("access", b"<>") == [b"<>"]

    @pytest.mark.parametrize("domain", [b".", b"..", b"a.", b"a..b", b".a"])
    def test_odd_domains(self, domain: bytes) -> None:
        """Domains with dots too many come to an end, without empty keys."""
        for subdomains_match in (True, False):
            found = keys("access", b"u@" + domain, subdomains_match=subdomains_match)
            assert found[:2] == [b"u@" + domain, domain]
            assert b"" not in found


class TestHosts:
    """check_helo_access, check_client_access."""

    def test_domain(self) -> None:
        """A host name and its parents, down to the top-level domain; with dots where parents do not match."""
        for kind in ("domain", "client"):
            assert keys(kind, b"mx.example.com") == [b"mx.example.com", b"example.com", b"com"]
            found = keys(kind, b"mx.example.com", subdomains_match=False)
            assert found == [b"mx.example.com", b".example.com", b".com"]

    def test_networks(self) -> None:
        """A client's address and its networks."""
        assert keys("client", b"127.0.0.1") == [b"127.0.0.1", b"127.0.0", b"127.0", b"127"]
        found = keys("client", b"2001:db8::1")
        assert found == [b"2001:db8::1", b"2001:db8:", b"2001:db8", b"2001"]
        assert keys("client", b"::1") == [b"::1", b":"]

    @pytest.mark.parametrize("address", [b"10.1.2.3", b"0.0.0.0", b"010.1.2.3", b"::1", b"2001:db8::5"])
    def test_address_as_name(self, address: bytes) -> None:
        """An address in place of a host name has no parents."""
        assert keys("domain", address) == [address]

    @pytest.mark.parametrize(
        "name", [b"1.2.3", b"300.1.2.3", b"0.1.2.3", b"1.2.3.x", b"[10.1.2.3]", b"::1%eth.0", b"x:.y"]
    )
    def test_no_address(self, name: bytes) -> None:
        """What is not quite an address is a name, and has parents."""
        assert keys("domain", name)[1:2] == [name.partition(b".")[2]]
        assert keys("domain", b"1.2.3.%b" % (b"9" * 5000))[1].startswith(b"2.3.")


@given(
    st.sampled_from(sorted(KINDS)),
    st.one_of(st.binary(), st.text(alphabet='a+-@."\\, :1\0').map(str.encode)),
    st.booleans(),
    st.booleans(),
    st.sampled_from([b"", b"+", b"+-", b"."]),
)
def test_total(kind: str, key: bytes, is_local: bool, subdomains_match: bool, delimiters: bytes) -> None:
    """Any bytes give keys, no empty one and none twice; a plain key comes first."""
    partial_keys = PartialKeys(kind, delimiters, subdomains_match=subdomains_match)
    candidates = partial_keys.candidates(key, is_local)
    found = list(candidates)
    assert b"" not in found
    assert len(set(found)) == len(found)
    if key.isalnum():
        assert found[0] == key
    for name in candidates.values():
        partial_keys.value(key, name)


def value(key: bytes, found: bytes, value: bytes, **options: Any) -> bytes:
    """Give what a key is answered when a partial key of it has a value."""
    partial_keys = PartialKeys(options.pop("kind", "address"), b"+", **options)
    return partial_keys.value(value, partial_keys.candidates(key, True)[found])


def test_long_key() -> None:
    """A key that is longer than any in mail fails, and is not taken apart into its thousands of parents."""
    table = PartialKeysTable(Mock(name="t"), PartialKeys("domain"))
    failed: list[Failure] = []
    table.lookup(b"a." * 1025).addErrback(failed.append)
    assert [type(failure.value) for failure in failed] == [PermanentError]


class TestValue:
    def test_propagated(self) -> None:
        """The extension that the found key lacks is added to the addresses in its value."""
        assert value(b"u+e@d", b"u@d", b"v@x, w") == b"v+e@x, w+e"
        assert value(b"u+e@d", b"u", b"v@x") == b"v+e@x"

    def test_not_propagated(self) -> None:
        """Nothing is added where the key has the extension, is only a domain, or propagation is switched off."""
        assert value(b"u+e@d", b"u+e@d", b"v@x") == b"v@x"
        assert value(b"u+e@d", b"@d", b"v@x") == b"v@x"
        assert value(b"u@d", b"u@d", b"v@x,  w") == b"v@x,  w"
        assert value(b"u+e@d", b"u@d", b"v@x", propagate=False) == b"v@x"

    def test_other_kinds(self) -> None:
        """The values of transport and access tables are no addresses."""
        for kind in ("transport", "access"):
            assert value(b"u+e@d", b"u@d", b"smtp:x", kind=kind) == b"smtp:x"

    def test_same_user(self) -> None:
        """``@domain`` as a value is the same user in another domain, without an extension that is not propagated."""
        assert value(b"u+e@d", b"u@d", b"@x") == b"u+e@x"
        assert value(b"u+e@d", b"u@d", b"@x", propagate=False) == b"u@x"
        assert value(b'"a,b+e"@d', b'"a,b"@d', b"@x", propagate=False) == b'"a,b"@x'
        assert value(b"u+e@d", b"@d", b"@x") == b"@x"  # Postfix does it itself

    def test_quoted(self) -> None:
        """Quotes are where they are needed."""
        assert value(b'"u+a b"@d', b"u@d", b"v@x") == b'"v+a b"@x'


class Domains(MatchList):
    """A list of local domains that answers as told."""

    def __init__(self, trace: list[str], matches: bool | Deferred[bool]) -> None:
        super().__init__([])
        self.trace = trace
        self.matches = matches

    def match(self, name: bytes) -> bool | Deferred[bool]:
        self.trace.append(f"local {name!r}")
        return self.matches

    def close(self) -> None:
        self.trace.append("close local")


class TestTable(SynchronousTestCase):
    def setUp(self) -> None:
        self.trace: list[str] = []
        self.known: dict[bytes, Any] = {}
        self.backup = FakeTable(self.trace, name="table")
        self.patch(self.backup, "lookup", self.ask)

    def ask(self, key: bytes) -> Deferred[bytes | None]:
        self.trace.append(f"ask {key!r}")
        return answer(self.known.get(key))

    def table(self, local_domains: MatchList | None = None) -> PartialKeysTable:
        return PartialKeysTable(self.backup, PartialKeys("address", b"+", local_domains))

    def test_interface(self) -> None:
        """It is a table with the name of the one that it asks."""
        verifyObject(ITable, self.table())
        assert self.table().name == "table"

    def test_first_counts(self) -> None:
        """The first key that exists counts."""
        self.known = {b"u@d": b"v@x", b"@d": b"domain"}
        assert self.successResultOf(self.table().lookup(b"u+e@d")) == b"v+e@x"
        assert self.successResultOf(self.table().lookup(b"other@d")) == b"domain"
        assert self.successResultOf(self.table().lookup(b"other@else")) is None

    def test_failures(self) -> None:
        """A failure before the first key that exists is the answer, one after it is not."""
        self.known = {b"u+e@d": TemporaryError("down"), b"u@d": b"v", b"@d": TemporaryError("down")}
        self.failureResultOf(self.table().lookup(b"u+e@d"), TemporaryError)
        assert self.successResultOf(self.table().lookup(b"u@d")) == b"v"

    def test_local(self) -> None:
        """Users by name alone are asked for where the domain is local; the list may take its time."""
        self.known = {b"u": b"v"}
        for later in (False, True):
            for is_local in (False, True):
                matched: Deferred[bool] = Deferred()
                done = self.table(Domains(self.trace, matched if later else is_local)).lookup(b"u@D")
                if later:
                    assert self.trace == ["local b'D'"]
                    matched.callback(is_local)
                assert self.successResultOf(done) == (b"v" if is_local else None)
                assert ("ask b'u'" in self.trace) is is_local
                self.trace.clear()

    def test_local_fails(self) -> None:
        """When the list of local domains fails, so does the look-up."""
        domains = Domains(self.trace, fail(TemporaryError("down")))
        self.failureResultOf(self.table(domains).lookup(b"u@d"), TemporaryError)
        assert self.trace == ["local b'd'"]

    def test_changes(self) -> None:
        """Updates, deletes and walks are those of the table, with full keys."""
        table = self.table()
        assert self.successResultOf(table.update(b"u+e@d", b"v", 7)) is True
        assert self.successResultOf(table.delete(b"u+e@d")) is True
        assert self.trace == ["table update b'u+e@d' b'v' 7", "table delete b'u+e@d'"]
        assert self.successResultOf(table.cursor().next()) == (b"k", b"kept")

    def test_close(self) -> None:
        """Closing closes the table and the list, but not before the look-ups that wait for the list are done."""
        self.table().close()
        assert self.trace == ["close table"]
        self.trace.clear()
        matched: Deferred[bool] = Deferred()
        table = self.table(Domains(self.trace, matched))
        done = table.lookup(b"u@d")
        table.close()
        assert self.trace == ["local b'd'"]
        matched.callback(True)
        assert self.successResultOf(done) is None
        assert self.trace == ["local b'd'", "ask b'u@d'", "ask b'u'", "ask b'@d'", "close table", "close local"]
