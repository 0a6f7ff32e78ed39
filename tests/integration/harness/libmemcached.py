"""libmemcached itself, as ketama_weighted has it: where it looks for keys, and a client of servers that are there."""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Iterable, Sequence
from functools import partial
from importlib import import_module
from typing import Any

from socketmap_memcache.memcache.server_list import WeightedServer

_KETAMA_WEIGHTED = 16  # MEMCACHED_BEHAVIOR_KETAMA_WEIGHTED, in types/behavior.h
_SUCCESS, _NOT_FOUND = 0, 16  # in types/return.h


def _load() -> ctypes.CDLL:
    """Load the library: pylibmc brings it along, where there is a wheel for this Python."""
    try:
        name = import_module("_pylibmc").__file__
    except ImportError:
        name = ctypes.util.find_library("memcached")
    if name is None:
        raise RuntimeError("libmemcached is not installed; run: tests/install-packages libmemcached")
    library = ctypes.CDLL(name)
    pointer, text, size, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint32
    library.memcached_create.argtypes = [pointer]
    library.memcached_create.restype = pointer
    library.memcached_free.argtypes = [pointer]
    library.memcached_behavior_set.argtypes = [pointer, ctypes.c_int, ctypes.c_uint64]
    library.memcached_server_add_with_weight.argtypes = [pointer, text, ctypes.c_uint16, number]
    library.memcached_server_add_unix_socket_with_weight.argtypes = [pointer, text, number]
    library.memcached_generate_hash.argtypes = [pointer, text, size]
    library.memcached_generate_hash.restype = number
    library.memcached_set.argtypes = [pointer, text, size, text, size, ctypes.c_long, number]
    library.memcached_get.argtypes = [pointer, text, size, *[ctypes.c_void_p] * 3]
    library.memcached_get.restype = pointer
    return library


class Libmemcached:
    """A client of weighted servers. It connects when it first needs to."""

    def __init__(self, servers: Iterable[WeightedServer]) -> None:
        self._library = _load()
        self._client: Any = self._library.memcached_create(None)
        self._check(self._library.memcached_behavior_set(self._client, _KETAMA_WEIGHTED, 1))
        for entry in servers:
            server, weight = entry.server, entry.weight
            if server.path:
                add = partial(self._library.memcached_server_add_unix_socket_with_weight, self._client)
                self._check(add(server.path.encode(), weight))
            else:
                add = partial(self._library.memcached_server_add_with_weight, self._client)
                self._check(add(server.host.encode(), server.port, weight))

    def places(self, keys: Sequence[bytes]) -> list[int]:
        """Return the number of the server of each key."""
        client, place = self._client, self._library.memcached_generate_hash
        return [place(client, key, len(key)) for key in keys]

    def set(self, key: bytes, value: bytes) -> None:
        """Store a value."""
        self._check(self._library.memcached_set(self._client, key, len(key), value, len(value), 0, 0))

    def get(self, key: bytes) -> bytes | None:
        """Return the value, or ``None`` where there is none."""
        size, flags, status = ctypes.c_size_t(), ctypes.c_uint32(), ctypes.c_int()
        results = map(ctypes.byref, (size, flags, status))
        value = self._library.memcached_get(self._client, key, len(key), *results)
        if status.value == _NOT_FOUND:
            return None
        self._check(status.value)
        return ctypes.string_at(value, size.value)  # a few of them may leak

    def close(self) -> None:
        self._library.memcached_free(self._client)

    def _check(self, status: int) -> None:
        if status != _SUCCESS:
            raise RuntimeError(f"libmemcached: status {status}")
