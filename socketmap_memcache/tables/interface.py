"""What a lookup table is to the rest of the service."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface


class ITable(Interface):
    """A lookup table: keys and values are ``bytes``, and an answer is one of three.

    *Found* is the value, *missing* is ``None``, *failed* is an errback with a
    :class:`~socketmap_memcache.errors.TableError`. A failure is never reported as missing: Postfix bounces mail for
    addresses that do not exist.
    """

    name: str = Attribute("The full name as Postfix writes it, ``type:name``; used in log lines and errors.")

    def lookup(key: bytes) -> Deferred[bytes | None]:
        """Look up a key.

        :param key: as it came from Postfix: any bytes, any length, any case. A table of fixed strings folds it to
            lower case as Postfix's own does; a key that is not UTF-8 is missing.
        :return: fires with the value, or with ``None`` when the key does not exist; fails with
            :class:`~socketmap_memcache.errors.TableError` when that cannot be known. It never raises instead.
        """

    def close() -> None:
        """Give back what the table holds (connections, files, timers). Look-ups under way still get their answers.

        Idempotent. No look-up is made after it.
        """
