"""What the ``.cf`` file of a ``memcache:`` table sets, beside the cache and the backup."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from socketmap_memcache.memcache.interface import Limits
from socketmap_memcache.tables.key_format import KeyFormat

if TYPE_CHECKING:
    from socketmap_memcache.tables.match_list import MatchList


@attrs.frozen
class LeaseSettings:
    """How the backup is spared.

    :ivar lease: whether, of all hosts, one at a time asks the backup for a key that the cache does not have.
    :ivar lease_timeout: seconds that the others wait for it, and after which another one may do it instead.
    :ivar stale_ttl: seconds for which the old value is served when its ttl is over, while one asks the backup.
    :ivar negative_ttl: seconds for which the cache knows that the backup does not have a key; 0 for no such knowledge.
    """

    lease: bool = False
    lease_timeout: int = 3
    stale_ttl: int = 0
    negative_ttl: int = 0


@attrs.frozen
class Settings:
    """All that is set for one table.

    :ivar flags: sent with each update, as they are.
    :ivar ttl: sent with each update that has no ttl of its own, as it is: memcached's rules.
    :ivar key_format: makes the key that the cache is asked for.
    :ivar key_digest: a name of :mod:`hashlib`'s; that key's digest takes its place. Empty for none.
    :ivar domain: the domains that are looked up at all, or ``None`` for all keys.
    :ivar fold_keys: whether keys are folded to lower case. Postfix does that for memcache:, not for socketmap:.
    :ivar leases: of use with a backup only.
    """

    flags: int
    ttl: int
    key_format: KeyFormat
    key_digest: str
    domain: MatchList | None
    fold_keys: bool
    limits: Limits
    leases: LeaseSettings = LeaseSettings()
