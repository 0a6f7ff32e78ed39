from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from socketmap_memcache.errors import TemporaryError
from socketmap_memcache.tables.domain_check import DomainCheck
from socketmap_memcache.under_way import UnderWay
from tests.unit.tables.fakes import Domains


class TestDomainCheck(SynchronousTestCase):
    def setUp(self) -> None:
        self.trace: list[str] = []
        self.under_way = UnderWay(lambda: self.trace.append("let go"))

    def check(self, domain: Domains | None) -> Deferred[Any]:
        return DomainCheck(domain, self.under_way).if_in_domain(b"k@x", self.act, "skipped")

    def act(self, key: bytes) -> Deferred[str]:
        self.trace.append(f"act on {key!r}")
        return succeed("done")

    def test_no_list(self) -> None:
        """Without a list all keys are let through."""
        assert self.successResultOf(self.check(None)) == "done"

    def test_at_once(self) -> None:
        """Where names decide, nothing is waited for."""
        assert self.successResultOf(self.check(Domains([], False))) == "skipped"
        assert self.trace == []
        assert self.successResultOf(self.check(Domains([], True))) == "done"
        assert self.trace == ["act on b'k@x'"]

    def test_later(self) -> None:
        """What waits for a table in the list, and what it then does, is under way until it is done."""
        matches: Deferred[bool] = Deferred()
        checked = self.check(Domains([], matches))
        self.under_way.close()
        matches.callback(True)
        assert self.successResultOf(checked) == "done"
        assert self.trace == ["act on b'k@x'", "let go"]

    def test_failure(self) -> None:
        """Where the list fails nobody knows, and nothing is done."""
        matches: Deferred[bool] = Deferred()
        checked = self.check(Domains([], matches))
        matches.errback(TemporaryError("down"))
        self.failureResultOf(checked, TemporaryError)
        assert self.trace == []
        assert self.under_way.count == 0
