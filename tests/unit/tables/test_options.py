from __future__ import annotations

import tempfile
from pathlib import Path

from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from socketmap_memcache.errors import ConfigurationError, LookupTimeout
from socketmap_memcache.memcache.pool import ClientPool
from socketmap_memcache.tables.memcache import MemcacheTable
from socketmap_memcache.tables.options import open_with_options
from socketmap_memcache.tables.partial_keys import KINDS, PartialKeys, PartialKeysTable
from socketmap_memcache.tables.registry import TableContext


class OptionTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory(prefix="cf-")
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name, "x.cf")
        self.context = TableContext(ClientPool(MemoryReactorClock()))

    def partial_keys(self, options: str) -> PartialKeys:
        table = open_with_options(f"{{static:x, {options}}}", self.context)
        assert isinstance(table, PartialKeysTable)
        return table._partial_keys

    def errors(self, spec: str) -> list[str]:
        caught = self.assertRaises(ConfigurationError, open_with_options, spec, self.context)
        return [str(problem) for problem in caught.problems]

    def test_none(self) -> None:
        """Without options, and without partial_keys among them, a table is opened as it is."""
        for spec in (
            "static:x",
            "{static:x}",
            "{ static:x , partial_keys=none }",
            "{static:x,recipient_delimiter=+}",
        ):
            assert not isinstance(open_with_options(spec, self.context), PartialKeysTable), spec

    def test_look_up(self) -> None:
        """A table with partial_keys tries them."""
        table = open_with_options("{inline:{a@x=b}, partial_keys=address, recipient_delimiter=+-}", self.context)
        assert self.successResultOf(table.lookup(b"A-e@x")) == b"b-e"
        assert table.name == "inline:{a@x=b}"
        table.close()

    def test_kinds(self) -> None:
        """Each kind has Postfix's own default of parent_domain_matches_subdomains."""
        for kind, subdomains_match in KINDS.items():
            assert self.partial_keys(f"partial_keys={kind}") == PartialKeys(kind, subdomains_match=subdomains_match)

    def test_all(self) -> None:
        """Every option is used."""
        partial_keys = self.partial_keys(
            "partial_keys=access recipient_delimiter=+- parent_domain_matches_subdomains=no "
            "propagate_unmatched_extensions=no, { local_domains = a.example, B.example }"
        )
        assert partial_keys.delimiters == b"+-"
        assert (partial_keys.subdomains_match, partial_keys.propagate) == (False, False)
        assert partial_keys.local_domains is not None
        assert [partial_keys.local_domains.match(name) for name in (b"a.Example", b"b.example", b"c")] == [
            True,
            True,
            False,
        ]

    def test_timeout(self) -> None:
        """An operation on a table that hangs fails when the table's own time is over; 10 seconds without an option."""
        clock = self.context.reactor
        for spec, seconds in (("{socketmap:unix:/x:m, timeout=3}", 3), ("socketmap:unix:/x:m", 10)):
            done = open_with_options(spec, self.context).lookup(b"k")
            clock.advance(seconds - 0.1)
            self.assertNoResult(done)
            clock.advance(0.1)
            self.failureResultOf(done, LookupTimeout)
        assert self.context.timeout == 10

    def test_timeout_of_backup(self) -> None:
        """The backup of a memcache: table has options, too."""
        self.path.write_text("memcache = memory:\nbackup = { socketmap:unix:/x:m, timeout=3s }\n")
        done = open_with_options(f"memcache:{self.path}", self.context).lookup(b"k")
        self.assertNoResult(done)
        self.context.reactor.advance(3)
        self.failureResultOf(done, LookupTimeout)

    def test_no_timeout(self) -> None:
        """There is no waiting for ever."""
        assert self.errors("{static:x, timeout=0}") == ["timeout = 0: a time limit is needed"]

    def test_errors(self) -> None:
        """What is wrong with the options, or with the table, is said; nothing stays open."""
        assert self.errors("{static:x") == ["missing '}' in '{static:x'"]
        assert "syntax error" in self.errors("{static:x}y")[0]
        for option in ("x", "=x", "{ = x }", "{x}"):
            assert self.errors(f"{{static:x, {option}}}") == [f"{option!r}: write name=value, or {{ name = value }}"]
        kinds = "none, address, transport, access, domain, client"
        assert self.errors("{static:x, partial_keys=x}") == [f"partial_keys = x: write one of {kinds}"]
        assert self.errors("{static:x, partial_key=address}") == [
            "unknown parameter 'partial_key'; did you mean 'partial_keys'?"
        ]
        assert "yes or no" in self.errors("{static:x, propagate_unmatched_extensions=canonical}")[0]
        assert "unknown table type" in self.errors("{bogus:x, partial_keys=address}")[0]
        assert "unknown table type" in self.errors("{bogus:x}")[0]
        assert "write type:name" in self.errors("{}")[0]
        assert self.errors("{static:x, partial_keys=address, local_domains=!}") == ["no pattern after '!'"]

    def test_closed_after_an_error(self) -> None:
        """Tables in local_domains are closed where the options, or the table, turn out to be wrong."""
        self.path.write_text("")
        domains = f"local_domains=memcache:{self.path}"
        for options in ("partial_keys=bogus", "partial_keys=address x=y", "partial_keys=address recipient_delimiter"):
            self.errors(f"{{static:x, {domains} {options}}}")
        self.errors(f"{{bogus:x, {domains} partial_keys=address}}")
        assert self.context.clients._clients == {}

    def test_in_a_file(self) -> None:
        """The file of a ``memcache:`` table may have them as well; what is wrong has its line."""
        self.path.write_text("memcache = memory:\npartial_keys = address\nbackup = inline:{@x=b}\n")
        table = self.context.open_table(f"memcache:{self.path}")
        assert isinstance(table, PartialKeysTable)
        assert isinstance(table._table, MemcacheTable)
        assert self.successResultOf(table.lookup(b"a@x")) == b"b"
        table.close()
        self.path.write_text("\npartial_keys = all\nlocal_domains = !\nmax_try = 0\n")
        lines = [error.partition(":")[2] for error in self.errors(f"memcache:{self.path}")]
        assert [line.partition(":")[0] for line in lines] == ["2", "3", "4"]
        self.path.write_text("partial_keys = address\nlocal_domains = static:x\nmax_try = 0\n")
        assert len(self.errors(f"memcache:{self.path}")) == 1
