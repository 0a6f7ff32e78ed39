from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import cast

from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from socketmap_memcache.errors import ConfigurationError
from socketmap_memcache.memcache.client import PATIENCE, MemcacheClient
from socketmap_memcache.memcache.interface import Limits
from socketmap_memcache.memcache.memory import MemoryCache
from socketmap_memcache.memcache.pool import ClientPool
from socketmap_memcache.tables.memcache import MemcacheTable
from socketmap_memcache.tables.memcache_settings import Settings
from socketmap_memcache.tables.registry import TableContext


class OpenMemcacheTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory(prefix="cf-")
        self.addCleanup(directory.cleanup)
        self.directory = directory.name
        self.path = str(Path(self.directory, "x.cf"))
        self.reactor = MemoryReactorClock()
        self.pool = ClientPool(self.reactor)
        self.context = TableContext(self.pool)

    def open(self, text: str) -> MemcacheTable:
        Path(self.path).write_text(text)
        table = self.context.open_table(f"memcache:{self.path}")
        assert isinstance(table, MemcacheTable)
        return table

    def settings(self, text: str) -> Settings:
        return self.open(text)._settings

    def errors(self, text: str) -> list[str]:
        """Give the errors of a file, without its path."""
        caught = self.assertRaises(ConfigurationError, self.open, text)
        return [str(problem).removeprefix(f"{self.path}:") for problem in caught.problems]

    def warnings(self, text: str) -> list[str]:
        self.open(text)
        return [str(problem).removeprefix(f"{self.path}:") for problem in self.context.warnings]

    def test_defaults(self) -> None:
        """An empty file means Postfix's defaults."""
        table = self.open("")
        settings = table._settings
        assert table.name == f"memcache:{self.path}"
        assert (settings.flags, settings.ttl, settings.key_format.template) == (0, 3600, b"%s")
        assert (settings.key_digest, settings.domain, settings.fold_keys) == ("", None, True)
        assert settings.limits == Limits(2, 2, 1, 1024, 10240, fenced=True)
        assert isinstance(table._cache, MemcacheClient)
        assert table._cache.name == "inet:localhost:11211"
        assert table._backup is None
        assert self.context.warnings == []
        assert self.reactor.getDelayedCalls() == []
        table.close()

    def test_create(self) -> None:
        """Whoever wants a table to be made if there is none gets a backup that is made, options or not."""
        for backup in (f"lmdb:{self.directory}/a", f"{{ lmdb:{self.directory}/b, timeout=1s }}"):
            Path(self.path).write_text(f"backup = {backup}\n")
            self.context.open_table(f"memcache:{self.path}", create=True).close()
        assert sorted(path.name for path in Path(self.directory).glob("*.lmdb")) == ["a.lmdb", "b.lmdb"]

    def test_all(self) -> None:
        """Every parameter of memcache_table(5) is honoured."""
        table = self.open(
            "memcache = unix:/run/mc\nbackup = static:x\nflags = 7\nttl = -5\nkey_format = a:%u\nkey_digest = MD5\n"
            "domain = example.com\ndata_size_limit = 1\nline_size_limit = 2\nmax_try = 3\nretry_pause = 4\n"
            "timeout = 5\nfold_keys = no\n"
        )
        settings = table._settings
        assert table._cache.name == "unix:/run/mc"
        assert table._backup is not None
        assert table._backup.name == "static:x"
        assert (settings.flags, settings.ttl, settings.key_format.template) == (7, -5, b"a:%u")
        assert (settings.key_digest, settings.fold_keys) == ("md5", False)
        assert settings.domain is not None
        assert settings.domain.match_address(b"a@example.com") is True
        assert settings.limits == Limits(5, 3, 4, 2, 1, backed=True)
        assert self.context.warnings == []

    def test_shared_client(self) -> None:
        """Two tables that name the same server share its client, until both are closed."""
        first, second = self.open("memcache = inet:h:1"), self.open("memcache = inet:h:1")
        assert first._cache is second._cache
        first.close()
        assert self.open("memcache = inet:h:1")._cache is second._cache

    def test_no_time_limit(self) -> None:
        """A timeout of 0 means none to Postfix; here it is as long as a look-up can take."""
        assert self.settings("timeout = 0").limits.timeout == PATIENCE

    def test_integers(self) -> None:
        """Numbers are read as Postfix reads them; those that it does not take are refused, with the line."""
        assert self.settings("ttl = +10").ttl == 10
        assert self.settings("ttl = 010").ttl == 10
        for name in ("flags", "ttl", "data_size_limit", "line_size_limit", "max_try", "retry_pause", "timeout"):
            for value in ("", "10s", "0x10", "1.5", "10 20", "2147483648", "-2147483649", "ten"):
                (error,) = self.errors(f"# comment\n{name} = {value}\n")
                assert error.startswith(f"2: bad numerical configuration: {name} ="), error

    def test_bounds(self) -> None:
        """Numbers below the least that Postfix takes are refused; so is a negative timeout, which aborts Postfix."""
        for name in ("data_size_limit", "line_size_limit", "max_try", "retry_pause", "memory_size_limit"):
            for value in ("0", "-1"):
                assert self.errors(f"{name} = {value}") == [f"1: invalid {name} parameter value {value} < 1"]
        assert self.errors("timeout = -1") == ["1: invalid timeout parameter value -1 < 0"]

    def test_negative_flags(self) -> None:
        """Flags below 0 are sent, as Postfix does; that memcached refuses them is a warning."""
        assert self.settings("flags = -1").flags == -1
        assert [problem.text for problem in self.context.warnings] == [
            "flags = -1: memcached refuses flags below 0, and takes the value for a command"
        ]

    def test_servers(self) -> None:
        """A server that cannot be one is refused, with the line, also an empty one."""
        for value in ("", "localhost:11211", "inet:", "inet:h:0", "inet:127.0.0.1", "tcp:h:1", "unix:", "memory"):
            (error,) = self.errors(f"\nmemcache = {value}\n")
            assert error.startswith("2: "), error
            assert repr(value) in error

    def test_backup(self) -> None:
        """A backup that cannot be opened is refused, with the line; an empty one is none."""
        assert self.open("backup =")._backup is None
        assert "write type:name" in self.errors("backup = x")[0]
        assert self.errors("\nbackup = fail:\n")[0].startswith("2: fail: needs a name")
        assert "unknown table type 'bogus'" in self.errors("backup = bogus:x")[0]
        missing = f"{self.directory}/missing"
        assert self.errors(f"backup = texthash:{missing}")[0].startswith(f"1: backup: {missing}: cannot be read")
        (error,) = self.errors(f"backup = memcache:{self.path}")
        assert error == f"1: table 'memcache:{self.path}' refers to itself"

    def test_key_format(self) -> None:
        """A key_format that Postfix refuses is refused; one that disables all look-ups is a warning."""
        for value in ("%", "%x", "a%0", "%-s"):
            (error,) = self.errors(f"key_format = {value}")
            assert error.startswith(f"1: invalid query template: {value}"), error
        assert self.warnings("key_format =") == ["1: an empty key_format disables all look-ups"]
        self.context.warnings.clear()
        assert self.warnings("key_format = %u at %d") == ["1: a key_format with white space disables all look-ups"]

    def test_key_format_with_space_and_digest(self) -> None:
        """White space in a key_format is no matter where the key is replaced by its digest."""
        assert self.warnings("key_format = %u at %d\nkey_digest = sha256") == []

    def test_key_digest(self) -> None:
        """A digest may be in any case; one that is not available is refused."""
        assert self.settings("key_digest = MD5").key_digest == "md5"
        assert self.settings("key_digest =").key_digest == ""
        for value in ("sha257", "shake_128", "null", "md5 sha1", "\udcff"):
            if value.isascii():
                (error,) = self.errors(f"key_digest = {value}")
                assert error == f"1: key digest {value} is not available (sha256 is, for example)"

    def test_domain(self) -> None:
        """A domain list that cannot be read is refused, with the line; an empty one is none."""
        assert self.settings("domain =").domain is None
        assert self.errors("\n\ndomain = a, !\n") == ["3: no pattern after '!'"]
        missing = f"{self.directory}/missing"
        assert self.errors(f"domain = {missing}")[0].startswith(f"1: domain: {missing}: cannot be read")
        assert "unknown table type" in self.errors("domain = bogus:x")[0]

    def test_fold_keys(self) -> None:
        """Only yes and no are answers to fold_keys."""
        assert self.settings("fold_keys = No").fold_keys is False
        assert self.errors("fold_keys = maybe") == [
            "1: bad boolean configuration: fold_keys = maybe (yes or no is needed)"
        ]

    def test_memory(self) -> None:
        """``memcache = memory:`` keeps the cache in the process, within memory_size_limit."""
        table = self.open("memcache = memory:\nmemory_size_limit = 1000\nbackup = inline:{k=v}\n")
        assert isinstance(table._cache, MemoryCache)
        for _ in range(2):
            assert self.successResultOf(table.lookup(b"k")) == b"v"
        assert self.successResultOf(table._cache.get(b"k", Limits())) == b"v"
        assert table._cache._size_limit == 1000
        assert self.successResultOf(table.lookup(b"missing")) is None
        assert cast(MemoryCache, self.open("memcache = memory:")._cache)._size_limit == 64 * 2**20
        assert table._cache is not self.open("memcache = memory:")._cache

    def test_several_errors(self) -> None:
        """All errors of a file are found at once, in the order of its lines; what had been opened is closed again."""
        errors = self.errors(
            "max_try = 0\nnonsense\nttl = x\nbackup = static:x\nmemcache = bogus\ndomain = a\nkey_format = %\n"
        )
        assert [error.partition(":")[0] for error in errors] == ["1", "2", "3", "5", "7"]
        assert self.pool._clients == {}

    def test_unknown_name(self) -> None:
        """A name that nobody knows is a warning with the nearest known name: Postfix takes no notice of it."""
        assert self.warnings("max_tries = 3\nttl = 1\n") == [
            "1: unknown parameter 'max_tries'; did you mean 'max_try'?"
        ]

    def test_unreadable(self) -> None:
        """A file that cannot be read is an error that names it."""
        for name, reason in ((f"{self.directory}/missing", "No such file"), (self.directory, "Is a directory")):
            caught = self.assertRaises(ConfigurationError, self.context.open_table, f"memcache:{name}")
            assert str(caught).startswith(f"{name}: cannot be read: {reason}")

    def test_parameters_in_main_cf(self) -> None:
        """A name that is no file's is refused: the parameters would be in Postfix's main.cf."""
        for name in ("", "mcx", "t/mc.cf"):
            caught = self.assertRaises(ConfigurationError, self.context.open_table, f"memcache:{name}")
            assert "write the name of a file" in str(caught)

    def test_relative(self) -> None:
        """A file may be named relative to the directory that the process is in."""
        Path(self.path).write_text("")
        before = Path.cwd()
        os.chdir(self.directory)
        self.addCleanup(os.chdir, before)
        assert self.context.open_table("memcache:./x.cf").name == "memcache:./x.cf"
