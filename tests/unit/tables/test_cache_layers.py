from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from socketmap_memcache.config.parameters import Parameters
from socketmap_memcache.config.syntax import parse
from socketmap_memcache.errors import ConfigurationError, Problem
from socketmap_memcache.memcache.interface import ICache, Limits
from socketmap_memcache.memcache.local import LocalCache
from socketmap_memcache.memcache.memory import MemoryCache
from socketmap_memcache.memcache.pool import ClientPool
from socketmap_memcache.memcache.signature import Signature
from socketmap_memcache.memcache.signed import SignedCache
from socketmap_memcache.memcache.signing_keys import SigningKey
from socketmap_memcache.tables.cache_layers import read_layers

KEY = b"k" * 32
NAME = "/etc/postfix/x.cf"


class LayersTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory(prefix="layers-")
        self.addCleanup(directory.cleanup)
        self.keys = Path(directory.name, "keys")
        self.keys.touch(0o600)
        self.keys.write_text(KEY.hex())
        self.clock = Clock()
        self.clock.advance(1_790_000_000)
        self.pool = ClientPool(self.clock)
        self.memory = MemoryCache("memory:", 10_000, self.clock)
        self.warnings: list[Problem] = []

    def open(self, text: str, name: str = NAME) -> Any:
        """Give what the lines make of the memory; ``KEYS`` is the file of keys."""
        parameters = Parameters(parse(text.replace("KEYS", str(self.keys)).encode(), name))
        layers = read_layers(parameters, name, self.pool)
        parameters.unknown(fatal=True)
        parameters.finish(self.warnings)
        return layers.keep(layers.sign(self.memory))

    def errors(self, text: str) -> list[str]:
        return [str(problem) for problem in self.assertRaises(ConfigurationError, self.open, text).problems]

    def set(self, cache: ICache) -> bytes | None:
        """Store a value, and give what is in the memory then."""
        cache.set(b"k", b"v", 0, 0, Limits())
        return self.memory.peek(b"k")

    def signed(self, table: bytes) -> bytes:
        return Signature([SigningKey.of(KEY)], table, self.clock.seconds).sign(b"k", b"v", 0)

    def test_nothing(self) -> None:
        """Where nothing is configured, there is nothing in front of the cache."""
        for text in ("", "local_ttl = 0\n", "signing_key_file =\n"):
            assert self.open(text) is self.memory
        assert self.warnings == []

    def test_signed(self) -> None:
        """With a file of keys, values are signed for the table, which is named by the whole path of its file."""
        cache = self.open("signing_key_file = KEYS\n")
        assert isinstance(cache, SignedCache)
        assert self.set(cache) == self.signed(b"memcache:/etc/postfix/x.cf")

    def test_relative_name(self) -> None:
        """However the path of the file is written, it is the same table."""
        inside = os.path.relpath(NAME, ".")
        for name in (f"./{inside}", "/etc/./postfix/../postfix/x.cf"):
            assert self.set(self.open("signing_key_file = KEYS\n", name)) == self.signed(b"memcache:/etc/postfix/x.cf")

    def test_signing_name(self) -> None:
        """A table may have another name in signatures."""
        cache = self.open("signing_key_file = KEYS\nsigning_name = aliases\n")
        assert self.set(cache) == self.signed(b"aliases")

    def test_signing_name_alone(self) -> None:
        """A name without keys is hardly what was meant."""
        assert self.open("\nsigning_name = x\n") is self.memory
        assert [str(problem) for problem in self.warnings] == [
            f"{NAME}:2: signing_name means nothing without signing_key_file"
        ]

    def test_bad_keys(self) -> None:
        """What is wrong with the keys is told with the place where it is."""
        self.keys.write_text("\nx\n")
        assert self.errors("signing_key_file = KEYS\n") == [
            f"{self.keys}:2: not a key: write what `openssl rand -hex 32` prints"
        ]

    def test_local(self) -> None:
        """Values are kept in the process for the time that is set, within the bytes that are set."""
        cache = self.open("local_ttl = 1m\nlocal_size_limit = 1000\n")
        assert isinstance(cache, LocalCache)
        assert (cache._ttl, cache._kept._size_limit) == (60, 1000)
        default = self.open("local_ttl = 5\n")
        assert isinstance(default, LocalCache)
        assert (default._ttl, default._kept._size_limit) == (5, 16 * 1024 * 1024)
        assert self.warnings == []

    def test_bad_local(self) -> None:
        """A time that is none, or too long, and a size that is none, are errors."""
        assert self.errors("local_ttl = 31d\nlocal_size_limit = 0\n") == [
            f"{NAME}:1: local_ttl = 2678400 s is more than 30 days",
            f"{NAME}:2: invalid local_size_limit parameter value 0 < 1",
        ]
        (error,) = self.errors("local_ttl = x\n")
        assert error.startswith(f"{NAME}:1: bad time value or unit: local_ttl = x")

    def test_size_alone(self) -> None:
        """A size without a time is hardly what was meant."""
        assert self.open("local_size_limit = 5\n") is self.memory
        assert [str(problem) for problem in self.warnings] == [
            f"{NAME}:1: local_size_limit means nothing without local_ttl"
        ]

    def test_both(self) -> None:
        """Values in the process are those that have been verified: they need no signature."""
        cache = self.open("signing_key_file = KEYS\nlocal_ttl = 5\n")
        assert isinstance(cache, LocalCache)
        assert isinstance(cache._cache, SignedCache)
        self.set(cache)
        assert self.successResultOf(cache.get(b"k", Limits())) == b"v"
        assert cache._kept.peek(b"k") == b"v"
        cache.close()
        assert self.memory.keys() == []
