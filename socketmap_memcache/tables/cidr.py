"""``cidr:/path``: results by network address, as cidr_table(5) describes it. The first rule that matches counts."""

from __future__ import annotations

import re
import socket
from heapq import merge

import attrs
from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from socketmap_memcache.errors import PermanentError, Problem
from socketmap_memcache.tables import rules
from socketmap_memcache.tables.folding import valid
from socketmap_memcache.tables.interface import ITable
from socketmap_memcache.tables.read_only import ReadOnlyTable
from socketmap_memcache.tables.registry import TableContext

#: The address of a host or a network: 32 or 128 bits (which tell IPv4 and IPv6 apart), and their value.
Address = tuple[int, int]

_BRACKETS = re.compile(rb"\[([^]]*)\](/.*)?", re.DOTALL)


def open_cidr(name: str, context: TableContext) -> CidrTable:
    """Open ``cidr:/path``. The file is read once; a reload of the service reads it again.

    :raises ConfigurationError: the file cannot be read. (A bad rule is a warning in the context, and is skipped.)
    """
    table = CidrTable(name, rules.load(name, CidrLanguage(), context.warnings))
    context.warnings += table.warnings()
    return table


@attrs.frozen
class Network:
    """What an address has to be in, or not to be in.

    :ivar bits: 32 or 128: an address of the other kind never matches, negated or not.
    :ivar shift: how many of the bits are the host's.
    :ivar prefix: the value of the others.
    :ivar inside: whether an address matches that is in this network, or one that is not.
    """

    bits: int
    shift: int
    prefix: int
    inside: bool

    def matches(self, address: Address) -> bool:
        """Say whether an address matches."""
        bits, value = address
        return bits == self.bits and (value >> self.shift == self.prefix) is self.inside


CidrRule = rules.Rule[Network, bytes]


class CidrLanguage(rules.Language[Network, bytes]):
    """How the rules of cidr_table(5) are written: ``[!]address[/length] result``."""

    kind = "cidr"

    def condition(self, text: bytes, warnings: list[str]) -> Network:
        """Read what follows ``if``; see :class:`rules.Language`."""
        inside, pattern = rules.negations(text)
        return _network(pattern, inside)

    def end(self, text: bytes, nested: bool, warnings: list[str]) -> None:
        """Read what follows ``endif``; see :class:`rules.Language`."""
        if text.lstrip():
            raise ValueError("garbage after ENDIF")
        if not nested:
            raise ValueError("ENDIF without IF")

    def rule(self, text: bytes, warnings: list[str]) -> tuple[Network, bytes]:
        """Read a rule; see :class:`rules.Language`."""
        inside, rest = rules.negations(text)
        pattern, *result = rest.split(None, 1)[:2] or [b""]
        network = _network(pattern, inside)
        if not result:
            raise ValueError("no lookup result")
        return network, result[0]


def parse_address(text: bytes) -> Address | None:
    """Read an address as inet_pton(3) does; ``None`` for anything else."""
    family, bits = (socket.AF_INET6, 128) if b":" in text else (socket.AF_INET, 32)
    try:
        return bits, int.from_bytes(socket.inet_pton(family, text.decode("ascii")), "big")
    except (OSError, ValueError):
        return None


def _network(pattern: bytes, inside: bool) -> Network:
    """Read ``address``, ``address/length``, ``[address]``, ``[address]/length`` or ``[address/length]``."""
    if not pattern:
        raise ValueError("no address pattern")
    if pattern.startswith(b"["):
        match = _BRACKETS.fullmatch(pattern)
        if match is None:
            raise ValueError("missing ']'" if b"]" not in pattern else "garbage after ']'")
        text, slash, length = (match[1], b"/", match[2][1:]) if match[2] else match[1].partition(b"/")
    else:
        text, slash, length = pattern.partition(b"/")
    address = parse_address(text)
    if slash and not length.isdigit():
        raise ValueError("bad mask value")
    if address is None:
        raise ValueError("bad network value" if slash else "bad address pattern")
    bits, value = address
    shift = bits - int(length[:10]) if slash else 0
    if shift < 0:
        raise ValueError("bad mask length")
    prefix = value >> shift
    if prefix << shift != value:
        family = socket.AF_INET if bits == 32 else socket.AF_INET6
        better = socket.inet_ntop(family, (prefix << shift).to_bytes(bits // 8, "big"))
        raise ValueError(f"non-null host address bits; perhaps you should use {better}/{bits - shift}")
    return Network(bits, shift, prefix, inside)


@implementer(ITable)
class CidrTable(ReadOnlyTable):
    """Has every address that a rule matches; a key that is no address is missing.

    For each length of a network there is a dictionary, so a look-up takes time by the lengths and the negated rules,
    not by the rules.
    """

    def __init__(self, path: str, parsed: list[CidrRule]) -> None:
        """Serve rules that were read before."""
        self.name = f"cidr:{path}"
        self._path = path
        self._rules = parsed
        # By bits, then by shift, then by prefix: the numbers of the rules for a network, the lowest first.
        self._networks: dict[int, dict[int, dict[int, list[int]]]] = {32: {}, 128: {}}
        self._negated: dict[int, list[int]] = {32: [], 128: []}
        for number, rule in enumerate(parsed):
            if rule.result is not None:
                self._add(number, rule)

    def _add(self, number: int, rule: CidrRule) -> None:
        network = rule.condition
        if not network.inside:
            self._negated[network.bits].append(number)
            return
        numbers = self._networks[network.bits].setdefault(network.shift, {}).setdefault(network.prefix, [])
        # Behind a rule that always holds no other rule for the same network has a chance.
        if not numbers or self._rules[numbers[-1]].inside is not None:
            numbers.append(number)

    def warnings(self) -> list[Problem]:
        """Return what Postfix would notice at a look-up only."""
        return [
            Problem("the result is not UTF-8: each look-up that gets here will fail", self._path, rule.line)
            for rule in self._rules
            if rule.result is not None and not valid(rule.result)
        ]

    def lookup(self, key: bytes) -> Deferred[bytes | None]:
        """See :class:`ITable`."""
        address = parse_address(key)
        rule = None if address is None else self._first(address)
        if rule is None:
            return succeed(None)
        if not valid(rule.result or b""):
            return fail(PermanentError(f"{self.name}, line {rule.line}: the result is not UTF-8"))
        return succeed(rule.result)

    def close(self) -> None:
        """See :class:`ITable`."""

    def _first(self, address: Address) -> CidrRule | None:
        bits, value = address
        candidates = [self._negated[bits]]
        for shift, networks in self._networks[bits].items():
            numbers = networks.get(value >> shift)
            if numbers is not None:
                candidates.append(numbers)
        for number in merge(*candidates):
            rule = self._rules[number]
            if rule.condition.matches(address) and _reached(rule, address):
                return rule
        return None


def _reached(rule: CidrRule, address: Address) -> bool:
    """Say whether every ``if`` around a rule lets an address in."""
    around = rule.inside
    while around is not None:
        if not around.condition.matches(address):
            return False
        around = around.inside
    return True
