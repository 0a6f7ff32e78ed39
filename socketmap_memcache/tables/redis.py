"""``redis:/file.cf``: keys and values in Redis or Valkey, for look-ups and changes, shared by many hosts.

A key of the table is a string in Redis, whose key has a prefix before it; its time to live is Redis' own. An update or
delete that is acknowledged has been answered by the server: what Redis itself promises of it depends on its
configuration (``appendfsync``, replicas).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks, succeed
from twisted.python.failure import Failure
from zope.interface import implementer

from socketmap_memcache.asker import FIRING, Asker, tell
from socketmap_memcache.errors import TableError, TemporaryError
from socketmap_memcache.protocols.redis import glob_escape
from socketmap_memcache.tables import redis_command
from socketmap_memcache.tables.domain_check import DomainCheck
from socketmap_memcache.tables.folding import normalize, valid
from socketmap_memcache.tables.interface import IAskedTable, ICursor, RefusedError, check_entry
from socketmap_memcache.tables.match_list import MatchList
from socketmap_memcache.tables.redis_client import RedisClient
from socketmap_memcache.tables.redis_command import VALUE_LIMIT, Command
from socketmap_memcache.under_way import UnderWay

#: Keys that Redis looks at for one step of a walk, and whose values are read at once.
STEP = 500
READ_AHEAD = 100

#: Seconds after which a walk reads again what it has read ahead: other hosts may have changed it.
READ_AHEAD_TIME = 1.0

#: Keys that a walk remembers, so that each comes once; about 100 bytes of memory for each.
WALK_LIMIT = 5_000_000

#: Seconds; more would overflow in Redis. It is 300 years.
_LONGEST_TTL = 10**10

Entry = tuple[bytes, bytes]


@implementer(IAskedTable)
class RedisTable:
    """A table of strings. What is asked for in one reactor turn leaves in one write.

    A key that is not UTF-8, or not in ``domain``, is missing and is not asked for.
    """

    def __init__(
        self,
        name: str,
        client: RedisClient,
        seconds: Callable[[], float],
        prefix: bytes,
        ttl: int | None = None,
        domain: MatchList | None = None,
        fold_keys: bool = True,
    ) -> None:
        """Make a table; client and domain list are closed with it.

        :param seconds: the time.
        :param prefix: comes before each key.
        :param ttl: of an update without one; ``None`` for ever.
        """
        self.name = name
        self.client = client
        self.prefix = prefix
        #: How many updates and deletes there have been: each makes old what a walk has read ahead.
        self.changes = 0
        self._seconds = seconds
        self._ttl = ttl
        self._domain = domain
        self._fold_keys = fold_keys
        self._under_way = UnderWay(self._let_go)
        self._check = DomainCheck(domain, self._under_way)

    def lookup(self, key: bytes) -> Deferred[bytes | None]:
        """See :class:`ITable`."""
        answer: Deferred[bytes | None] = Deferred()
        self.lookup_for(key, FIRING, answer)
        return answer

    def lookup_for(self, key: bytes, asker: Asker, token: Any) -> None:
        """See :class:`IAskedTable`."""
        folded = normalize(key, self._fold_keys)
        if not folded:
            asker.answered(None, token)
        elif self._domain is None:
            self.client.send(redis_command.get(self.prefix + folded, asker, token))
        else:
            tell(self._in_domain(folded, None, lambda *to: redis_command.get(self.prefix + folded, *to)), asker, token)

    def update(self, key: bytes, value: bytes, ttl: int | None = None) -> Deferred[bool]:
        """See :class:`ITable`."""
        answer: Deferred[bool] = Deferred()
        self.update_for(key, value, ttl, FIRING, answer)
        return answer

    def update_for(self, key: bytes, value: bytes, ttl: int | None, asker: Asker, token: Any) -> None:
        """See :class:`IAskedTable`."""
        try:
            folded = check_entry(self.name, key, value, ttl, self._fold_keys)
            if len(value) > VALUE_LIMIT:
                raise RefusedError(f"{self.name}: a value of {len(value)} bytes cannot be stored, only {VALUE_LIMIT}")
        except TableError:
            asker.failed(Failure(), token)
            return
        ttl = self._ttl if ttl is None else min(ttl, _LONGEST_TTL)
        self.changes += 1
        if self._domain is None:
            self.client.send(redis_command.set_(self.prefix + folded, value, ttl, asker, token))
        else:
            stored = self.prefix + folded
            tell(self._in_domain(folded, False, lambda *to: redis_command.set_(stored, value, ttl, *to)), asker, token)

    def delete(self, key: bytes) -> Deferred[bool]:
        """See :class:`ITable`."""
        folded = normalize(key, self._fold_keys)
        if not folded:
            return succeed(False)
        self.changes += 1
        return self._in_domain(folded, False, lambda *to: redis_command.delete(self.prefix + folded, *to))

    def cursor(self) -> ICursor:
        """See :class:`ITable`."""
        return RedisCursor(self, self._seconds)

    def close(self) -> None:
        """See :class:`ITable`."""
        self._under_way.close()

    def _let_go(self) -> None:
        self.client.close()
        if self._domain is not None:
            self._domain.close()

    def _in_domain(self, key: bytes, skipped: object, make: Callable[[Asker, Deferred[Any]], Command]) -> Deferred[Any]:
        """Do what is to be done for a key if it is in ``domain``.

        :param skipped: the result if it is not.
        """
        return self._check.if_in_domain(key, lambda _: self.run(make), skipped)

    def run(self, make: Callable[[Asker, Deferred[Any]], Command]) -> Deferred[Any]:
        """Have a command done, and fire with its result."""
        answer: Deferred[Any] = Deferred()
        self.client.send(make(FIRING, answer))
        return answer


@implementer(ICursor)
class RedisCursor:
    """Walks through the keys with the prefix, by SCAN, which may give a key more than once.

    Where SCAN has got to is known only to the server that it was asked of. So the walk begins anew when the connection
    is another one, and passes over what it has had.
    """

    def __init__(self, table: RedisTable, seconds: Callable[[], float]) -> None:
        """Begin before the first entry.

        :param seconds: the time.
        """
        self._table = table
        self._seconds = seconds
        self._pattern = glob_escape(table.prefix) + b"*"
        self._position = b"0"
        self._connection = -1  # the number of the one that the position is of
        self._at_end = False
        self._seen: set[int] = set()  # 64 bits of each key, keyed: two keys in millions do not have the same
        self._keys: deque[bytes] = deque()  # those that are to come next
        self._values: deque[bytes | None] = deque()  # of the first of them
        self._changes = 0  # of the table, when they were asked for
        self._until = 0.0  # when they are too old

    @inlineCallbacks
    def next(self) -> Generator[Deferred[Any], Any, Entry | None]:
        """See :class:`ICursor`."""
        while True:
            while not self._keys:
                if self._at_end:
                    return None
                yield self._step()
            if not self._values or self._changes != self._table.changes or self._seconds() >= self._until:
                yield self._read_ahead()
            key, value = self._keys.popleft(), self._values.popleft()
            if value is not None:  # else it has gone since, or is no string
                return key[len(self._table.prefix) :], value

    @inlineCallbacks
    def _step(self) -> Generator[Deferred[Any], Any, None]:
        client = self._table.client
        asked_on = self._connection
        self._position, keys = yield self._table.run(
            lambda *to: redis_command.scan(self._position, self._pattern, STEP, *to)
        )
        self._connection = client.connections
        for key in keys:
            name = key[len(self._table.prefix) :]
            if not name or not valid(name) or hash(key) in self._seen:
                continue
            self._seen.add(hash(key))
            self._keys.append(key)
        if len(self._seen) > WALK_LIMIT:
            raise TemporaryError(f"{self._table.name}: a walk is limited to {WALK_LIMIT} entries")
        if asked_on not in {-1, self._connection}:
            self._position = b"0"
        elif self._position == b"0":
            self._at_end = True

    @inlineCallbacks
    def _read_ahead(self) -> Generator[Deferred[Any], Any, None]:
        self._changes = self._table.changes
        self._until = self._seconds() + READ_AHEAD_TIME
        self._values.clear()
        keys = [self._keys[place] for place in range(min(READ_AHEAD, len(self._keys)))]
        values: list[bytes | None] = yield self._table.run(lambda *to: redis_command.get_many(keys, *to))
        self._values = deque(values)
