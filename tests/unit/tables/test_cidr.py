from __future__ import annotations

import ipaddress
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, cast

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from socketmap_memcache.errors import ConfigurationError, PermanentError, Problem
from socketmap_memcache.tables import rules
from socketmap_memcache.tables.cidr import CidrLanguage, CidrTable, parse_address
from socketmap_memcache.tables.interface import ITable, ReadOnlyError
from socketmap_memcache.tables.registry import TableContext
from tests.unit.deferreds import result_of

if TYPE_CHECKING:
    from socketmap_memcache.memcache.pool import ClientPool


def parsed(text: str | bytes) -> tuple[CidrTable, list[str]]:
    """Give the table that a text makes, and its warnings."""
    warnings: list[Problem] = []
    encoded = text if isinstance(text, bytes) else text.encode()
    table = CidrTable("f", rules.parse(encoded, "f", CidrLanguage(), warnings))
    return table, [str(warning) for warning in warnings]


class CidrTests(SynchronousTestCase):
    def lookups(self, text: str, *keys: str) -> list[str | None]:
        table, warnings = parsed(text)
        assert warnings == []
        values = [self.successResultOf(table.lookup(key.encode())) for key in keys]
        return [None if value is None else value.decode() for value in values]

    def test_first_match(self) -> None:
        """The first rule that matches counts, not the narrowest."""
        text = "10.0.0.1 one\n10.0.0.0/8 eight\n10.1.0.0/16 never\n0.0.0.0/0 all\n"
        assert self.lookups(text, "10.0.0.1", "10.1.0.1", "11.0.0.0", "::1") == ["one", "eight", "all", None]

    def test_versions(self) -> None:
        """IPv4 and IPv6 addresses are different, and what is no address is missing."""
        text = "::/0 six\n0.0.0.0/0 four\n"
        assert self.lookups(text, "::ffff:1.2.3.4", "1.2.3.4", "1.2.3", "", "a", "\u00e9", "1.2.3.4\0") == [
            "six", "four", None, None, None, None, None,
        ]  # fmt: skip

    def test_negated(self) -> None:
        """A negated rule matches every other address of its kind; two negations are none."""
        text = "! 10.0.0.0/8 other\n!!10.0.0.1 one\n!::/1 high\n"
        assert self.lookups(text, "11.0.0.0", "10.0.0.1", "10.0.0.2", "8000::", "::1") == [
            "other", "one", None, "high", None,
        ]  # fmt: skip

    def test_brackets(self) -> None:
        """Addresses may be in brackets, with the length inside or outside."""
        text = "[10.0.0.0/8] in\n[11.0.0.0]/8 out\n[::1] one\n"
        assert self.lookups(text, "10.1.1.1", "11.1.1.1", "::1") == ["in", "out", "one"]

    def test_result(self) -> None:
        """A result keeps the blanks in it, and goes on in lines that begin with one."""
        assert self.lookups("1.2.3.4\t a  b \n  c \n", "1.2.3.4") == ["a  b   c"]

    def test_blocks(self) -> None:
        """The rules of a block count for those that all of its conditions let in."""
        text = (
            "if 10.0.0.0/8\nIF !10.1.0.0/16\n10.0.0.0/8 outer\nendif\n10.1.0.0/16 inner\nEndIf\n"
            "if !10.0.0.0/8\n0.0.0.0/0 other\n::/0 never\nendif\n::/0 six\n0.0.0.0/0 last\n"
        )
        assert self.lookups(text, "10.2.0.0", "10.1.0.0", "11.0.0.0", "::1") == ["outer", "inner", "other", "six"]

    def test_same_network(self) -> None:
        """Of rules for the same network a later one counts where conditions keep the first from it."""
        text = "if 10.0.0.0/24\n10.0.0.0/8 a\nendif\nif 10.0.1.0/24\n10.0.0.0/8 b\nendif\n10.0.0.0/8 c\n10.0.0.0/8 d\n"
        assert self.lookups(text, "10.0.0.1", "10.0.1.1", "10.0.2.1") == ["a", "b", "c"]

    def test_no_endif(self) -> None:
        """A block without an end goes to the end of the file, with a warning; one inside may have its end."""
        table, warnings = parsed("0.0.0.0/1 low\nif 192.0.0.0/8\nif 192.1.0.0/16\nendif\n192.1.0.1 x\n0.0.0.0/0 y\n")
        assert warnings == ["f:2: IF has no matching ENDIF"]
        results = [self.successResultOf(table.lookup(key)) for key in (b"192.1.0.1", b"192.2.2.2", b"200.1.1.1")]
        assert results == [b"x", b"y", None]

    def test_not_utf8(self) -> None:
        """A result that is not UTF-8 fails; a key that is not is missing."""
        table, _ = parsed(b"1.2.3.4 \xff\n")
        self.failureResultOf(table.lookup(b"1.2.3.4"), PermanentError)
        assert self.successResultOf(table.lookup(b"\xff")) is None
        assert [str(warning) for warning in table.warnings()] == [
            "f:1: the result is not UTF-8: each look-up that gets here will fail"
        ]

    def test_open(self) -> None:
        """The table is opened by its path, with its warnings; it is read-only; a file that cannot be read is named."""
        context = TableContext(clients=cast("ClientPool", None))
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "t")
            path.write_bytes(b"1.2.3.4 a\nx y\n1.2.3.5 \xff\n")
            table = context.open_table(f"cidr:{path}")
        verifyObject(ITable, table)
        assert [warning.line for warning in context.warnings] == [2, 3]
        assert self.successResultOf(table.lookup(b"1.2.3.4")) == b"a"
        self.failureResultOf(table.update(b"1.2.3.4", b"x"), ReadOnlyError)
        table.close()
        for name, reason in {
            "/nonexistent": "/nonexistent: cannot be read: No such file",
            "": "needs the path",
        }.items():
            error = self.assertRaises(ConfigurationError, context.open_table, f"cidr:{name}")
            assert reason in str(error)


@pytest.mark.parametrize(
    "line, reason",
    [
        ("1.2.3.4", "no lookup result"),
        ("!", "no address pattern"),
        ("if", "no address pattern"),
        ("if !", "no address pattern"),
        ("endif", "ENDIF without IF"),
        ("endif x", "garbage after ENDIF"),
        ("1.2.3 x", "bad address pattern"),
        ("iffy x", "bad address pattern"),
        ("1.2.3/24 x", "bad network value"),
        ("[1.2.3.0/24]/24 x", "bad network value"),
        ("1.2.3.4/ x", "bad mask value"),
        ("1.2.3.4/a x", "bad mask value"),
        ("if 1.2.3.0/24 x", "bad mask value"),
        ("1.2.3.4/33 x", "bad mask length"),
        ("::/129 x", "bad mask length"),
        ("1.2.3.4/99999999999999999999 x", "bad mask length"),
        ("[1.2.3.4 x", "missing ']'"),
        ("[1.2.3.4]5 x", "garbage after ']'"),
        ("1.2.3.4/24 x", "non-null host address bits; perhaps you should use 1.2.3.0/24"),
        ("::1/64 x", "non-null host address bits; perhaps you should use ::/64"),
    ],
)
def test_bad_rule(line: str, reason: str) -> None:
    """A bad rule is skipped, with a warning that says where and why; the others count."""
    table, warnings = parsed(f"9.9.9.9 a\n{line}\n0.0.0.0/0 b\n")
    assert warnings == [f'f:2: {reason}; skipped: "{line}"']
    assert [result_of(table.lookup(key)) for key in (b"9.9.9.9", b"1.2.3.4")] == [b"a", b"b"]


@attrs.frozen
class NaiveRule:
    word: str
    negated: bool
    network: ipaddress.IPv4Network | ipaddress.IPv6Network | None = None
    result: str = ""

    @property
    def line(self) -> str:
        return f"{self.word} {'!' * self.negated}{self.network or ''} {self.result}".strip()

    def matches(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
        assert self.network is not None
        return address.version == self.network.version and (address in self.network) is not self.negated


ADDRESSES = st.integers(0, 7).map(lambda n: ipaddress.ip_address(n << 29)) | st.integers(0, 3).map(
    lambda n: ipaddress.ip_address((n << 126) + 1)
)


@st.composite
def naive_rules(draw: st.DrawFn) -> list[NaiveRule]:
    lines = []
    for number in range(draw(st.integers(0, 12))):
        word = draw(st.sampled_from(["", "", "", "if", "endif"]))
        if word == "endif":
            lines.append(NaiveRule(word, negated=False))
            continue
        length = draw(st.integers(0, 3))
        network = ipaddress.ip_network(f"{draw(ADDRESSES)}/{length}", strict=False)
        lines.append(NaiveRule(word, draw(st.booleans()), network, "" if word else str(number)))
    return lines


def scan(lines: list[NaiveRule], address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str | None:
    """Do as cidr_table(5) says, rule by rule."""
    blocks: list[bool] = []
    for rule in lines:
        if rule.word == "if":
            blocks.append(rule.matches(address))
        elif rule.word == "endif":
            blocks = blocks[:-1]
        elif all(blocks) and rule.matches(address):
            return rule.result
    return None


@given(naive_rules(), st.lists(ADDRESSES))
def test_naive(lines: list[NaiveRule], addresses: list[ipaddress.IPv4Address | ipaddress.IPv6Address]) -> None:
    """Every table gives what a scan of its rules gives."""
    table, _ = parsed("".join(f"{rule.line}\n" for rule in lines))
    for address in addresses:
        results: list[bytes | None] = []
        table.lookup(str(address).encode()).addCallback(results.append)
        expected = scan(lines, address)
        assert results == [None if expected is None else expected.encode()]


@given(st.binary(max_size=20))
def test_any_text(text: bytes) -> None:
    """Any bytes make a table, and any key has an answer."""
    table, _ = parsed(text)
    assert parse_address(text) is None or table is not None
