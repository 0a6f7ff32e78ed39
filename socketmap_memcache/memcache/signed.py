"""A cache whose values are signed, for those who do not trust all that can reach their memcached."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, cast

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import alsoProvides, implementer

from socketmap_memcache.asker import FIRING, Asker
from socketmap_memcache.log_limit import LogLimit
from socketmap_memcache.memcache.interface import IBatchCache, ICache, ILeaseCache, IMember, Leased, Limits
from socketmap_memcache.memcache.pool import ClientPool
from socketmap_memcache.memcache.signature import HEADER_SIZE, BadSignatureError, Signature


@implementer(ICache)
class SignedCache:
    """Signs what is stored, and takes what is found but not signed as if memcached had evicted it.

    An empty value, which no signed one is, stands for none: it is the mark of somebody's lease.

    It provides :class:`IBatchCache`, :class:`ILeaseCache` and :class:`IMember` where the cache that it uses does. In
    front of one server of a cluster, what that has without a signature does not hide what another one has.

    :ivar name: of that cache.
    :ivar rejected: how many values were not accepted.
    """

    _log = Logger()

    def __init__(self, cache: ICache, signature: Signature, table: str, pool: ClientPool) -> None:
        """Use a cache, which goes back to the pool in the end.

        :param table: for the log.
        """
        self.name = cache.name
        self.rejected = 0
        self._cache: Any = cache
        self._signature = signature
        self._verifying = _Verifying(signature, self._reject)
        self._table = table
        self._pool = pool
        self._log_limit = LogLimit(pool.reactor)
        self._limits: Limits | None = None  # the last that were given,
        self._raised = Limits()  # and what became of them
        self._all_raised: dict[Limits, Limits] = {}
        for interface in (IBatchCache, ILeaseCache, IMember):
            if interface.providedBy(cache):
                alsoProvides(self, interface)

    @property
    def usable(self) -> bool:
        """Whether it is worth while to send something new; see :class:`IMember`."""
        return cast(bool, self._cache.usable)

    @property
    def up_since(self) -> float:
        """When the server was found to be up again; see :class:`IMember`."""
        return cast(float, self._cache.up_since)

    def owe(self, key: bytes) -> None:
        """See to it that the server does not serve what it has of a key; see :class:`IMember`."""
        self._cache.owe(key)

    def get(self, key: bytes, limits: Limits) -> Deferred[bytes | None]:
        """Ask for a value; see :class:`ICache`."""
        answer: Deferred[bytes | None] = Deferred()
        self.get_for(key, limits, FIRING, answer)
        return answer

    def get_for(self, key: bytes, limits: Limits, asker: Asker, token: Any) -> None:
        """Ask for a value; see :class:`ICache`."""
        raised = self._raised if limits is self._limits else self._raise(limits)
        self._cache.get_for(key, raised, self._verifying, (key, asker, token))

    def get_many(self, keys: Collection[bytes], limits: Limits) -> Deferred[dict[bytes, bytes | None]]:
        """Ask for several values; see :class:`IBatchCache`."""
        answer: Deferred[dict[bytes, bytes | None]] = self._cache.get_many(keys, self._raise(limits))
        return answer.addCallback(self._verify_many)

    def set(self, key: bytes, value: bytes, flags: int, ttl: int, limits: Limits) -> Deferred[bool]:
        """Store a value; see :class:`ICache`."""
        answer: Deferred[bool] = Deferred()
        self.set_for(key, value, flags, ttl, limits, FIRING, answer)
        return answer

    def set_for(self, key: bytes, value: bytes, flags: int, ttl: int, limits: Limits, asker: Asker, token: Any) -> None:
        """Store a value; see :class:`ICache`."""
        signed = self._signature.sign(key, value, ttl)
        self._cache.set_for(key, signed, flags, ttl, self._raise(limits), asker, token)

    def delete(self, key: bytes, limits: Limits) -> Deferred[bool]:
        """Delete a key; see :class:`ICache`."""
        return cast("Deferred[bool]", self._cache.delete(key, limits))

    def get_leased(self, key: bytes, limits: Limits, lease_ttl: int, stale_ttl: int) -> Deferred[Leased]:
        """Ask for a value or a lease; see :class:`ILeaseCache`.

        Whoever finds a value that is not accepted is to refill it: memcached gives no lease for what it has.
        """
        answer: Deferred[Leased] = self._cache.get_leased(key, self._raise(limits), lease_ttl, stale_ttl)
        return answer.addCallback(self._verify_leased, key)

    def refill(self, key: bytes, value: bytes, flags: int, ttl: int, cas: bytes, limits: Limits) -> Deferred[bool]:
        """Use a lease; see :class:`ILeaseCache`."""
        signed = self._signature.sign(key, value, ttl)
        return cast("Deferred[bool]", self._cache.refill(key, signed, flags, ttl, cas, self._raise(limits)))

    def give_up(self, key: bytes, cas: bytes, limits: Limits) -> Deferred[bool]:
        """Do not use a lease; see :class:`ILeaseCache`."""
        return cast("Deferred[bool]", self._cache.give_up(key, cas, limits))

    def close(self) -> None:
        """Give the cache back; see :class:`ICache`."""
        self._pool.release(self._cache)

    def _raise(self, limits: Limits) -> Limits:
        """Give the limits for values with a signature: always the same object, or requests would not be shared."""
        if limits is not self._limits:
            if limits not in self._all_raised:
                size = limits.data_size_limit + HEADER_SIZE
                self._all_raised[limits] = attrs.evolve(limits, data_size_limit=size)
            self._limits, self._raised = limits, self._all_raised[limits]
        return self._raised

    def _verify(self, key: bytes, stored: bytes) -> bytes | None:
        if not stored:
            return None
        try:
            return self._signature.verify(key, stored)
        except BadSignatureError as error:
            self._reject(key, error)
            return None

    def _verify_many(self, found: dict[bytes, bytes | None]) -> dict[bytes, bytes | None]:
        values: dict[bytes, bytes | None] = {}
        for key, stored in found.items():
            value = None if stored is None else self._verify(key, stored)
            if value is not None or stored is None:  # where it is too long, that is to be said
                values[key] = value
        return values

    def _verify_leased(self, leased: Leased, key: bytes) -> Leased:
        if leased.value is None:
            return leased
        value = self._verify(key, leased.value)
        if value is None:
            return Leased(None, leased.won or leased.fresh, False, leased.cas)
        return attrs.evolve(leased, value=value)

    def _reject(self, key: bytes, error: BadSignatureError) -> None:
        self.rejected += 1
        if error.suspicious and self._log_limit.due():
            self._log.warn(
                "{table}: what {cache} has for key {key!r} {reason}: not used; {count} such values until now",
                table=self._table,
                cache=self.name,
                key=key[:100],
                reason=str(error),
                count=self.rejected,
            )


class _Verifying:
    """Hears what was found, and hands on what is signed."""

    __slots__ = ("_reject", "_verify")

    def __init__(self, signature: Signature, reject: Callable[[bytes, BadSignatureError], None]) -> None:
        self._verify = signature.verify
        self._reject = reject

    def answered(self, stored: bytes | None, token: tuple[bytes, Asker, Any]) -> None:
        key, asker, asker_token = token
        value = None
        if stored:
            try:  # as in SignedCache._verify, but not by it: this is done for each look-up
                value = self._verify(key, stored)
            except BadSignatureError as error:
                self._reject(key, error)
        asker.answered(value, asker_token)

    def failed(self, failure: Failure, token: tuple[bytes, Asker, Any]) -> None:
        _, asker, asker_token = token
        asker.failed(failure, asker_token)
