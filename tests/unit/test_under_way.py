from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from socketmap_memcache.under_way import UnderWay


class TestUnderWay(SynchronousTestCase):
    def setUp(self) -> None:
        self.let_go = 0
        self.under_way = UnderWay(self.count)

    def count(self) -> None:
        self.let_go += 1

    def test_nothing(self) -> None:
        """Where nothing is under way it lets go at once, and only once."""
        self.under_way.close()
        self.under_way.close()
        assert self.let_go == 1

    def test_under_way(self) -> None:
        """What is under way comes to its end first, and what it begins."""
        self.under_way.count += 1
        self.under_way.close()
        self.under_way.count += 1
        assert self.under_way.done("first") == "first"
        assert self.let_go == 0
        self.under_way.done(None)
        assert self.let_go == 1

    def test_open(self) -> None:
        """What ends before the closing lets nothing go."""
        self.under_way.count += 1
        self.under_way.done(None)
        assert self.let_go == 0
