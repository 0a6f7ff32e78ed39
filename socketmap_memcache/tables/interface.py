"""What a lookup table is to the rest of the service."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from zope.interface import Attribute, Interface

from socketmap_memcache.asker import Asker
from socketmap_memcache.errors import PermanentError
from socketmap_memcache.tables.folding import normalize, valid


class ICursor(Interface):
    """A walk through all entries of a table, first/next.

    Updates and deletes during the walk, also of the entry that came last, do it no harm: every entry that is there all
    the time comes once, one that is added or deleted meanwhile may come or not. (Postfix's cache clean-up deletes an
    entry after it has asked for the next.) A value may be that of a second ago, but not one from before an update or
    delete by the same table that came between the two ``next``.
    """

    def next() -> Deferred[tuple[bytes, bytes] | None]:
        """Fire with the next key and value, beginning with the first; at the end, and ever after, with ``None``."""


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

    def update(key: bytes, value: bytes, ttl: int | None = None) -> Deferred[bool]:
        """Store a value, in place of the one that is there.

        :param key: UTF-8, not empty; folded as for a look-up.
        :param value: UTF-8 without NUL and newline.
        :param ttl: seconds after which the entry does not exist any more, at least 1; ``None`` for the table's default,
            which is for ever in a persistent table. A table that cannot keep it says so in its documentation.
        :return: fires when the value is stored, in a persistent table: on the disk, with ``True``; with ``False`` where
            the table does not take such a key (as memcache: with a ``domain``) and nothing has been stored. Fails with
            :class:`ReadOnlyError`, with :class:`RefusedError` for a key or value that cannot be, or with another
            ``TableError``: then it is not known what is stored, the old or the new value.
        """

    def delete(key: bytes) -> Deferred[bool]:
        """Delete an entry.

        :return: fires with whether it was there; fails as :meth:`update` does.
        """

    def cursor() -> ICursor:
        """Begin a walk through all entries. A table that has no order to walk in fails each ``next``."""

    def close() -> None:
        """Give back what the table holds (connections, files, timers). Operations under way still get their answers.

        Idempotent. No operation is begun after it.
        """


class IAskedTable(ITable):
    """A table that can be asked without a Deferred, which takes half of the time of a look-up in memcached."""

    def lookup_for(key: bytes, asker: Asker, token: Any) -> None:
        """Tell the asker, now or later, what :meth:`lookup` would fire with. It never raises."""

    def update_for(key: bytes, value: bytes, ttl: int | None, asker: Asker, token: Any) -> None:
        """Tell the asker, now or later, what :meth:`update` would fire with. It never raises."""


class ISweptTable(ITable):
    """A table for which an exact walk would hold up its other users."""

    def sweep() -> ICursor:
        """Begin a walk in small steps. It may miss entries, or give some twice, where others change the table."""


def sweep(table: ITable) -> ICursor:
    """Begin a walk through a table that holds up nobody: exact if it can be, else as :class:`ISweptTable` says."""
    cursor: ICursor = table.sweep() if ISweptTable.providedBy(table) else table.cursor()
    return cursor


class IBatchTable(ITable):
    """A table that looks up several keys with less effort than one after the other."""

    def lookup_first(keys: Sequence[bytes]) -> Deferred[tuple[int, bytes] | None]:
        """Look up several keys, of which the first that exists counts.

        :return: fires with the place of that key in ``keys`` and its value, or with ``None`` when none exists; fails
            when the look-up of a key before that one fails.
        """


class IRefusing(Interface):
    """A table that can say, before anything is changed, that it is not to be changed."""

    def refusal(operation: str) -> ReadOnlyError | None:
        """Give the error that this operation, ``update``, ``delete`` or ``sequence``, is sure to fail with."""


class IBulkTable(ITable):
    """A table that looks up hundreds of keys with much less effort than one after the other."""

    def lookup_all(keys: Sequence[bytes]) -> Deferred[list[bytes | Failure | None]]:
        """Look up many keys at the same time.

        :return: fires with what :meth:`lookup` would fire or fail with for each key, in their order; never fails.
        """


class ReadOnlyError(PermanentError):
    """The type of the table does not support the operation."""


class NoBackupError(PermanentError):
    """A cache cannot be walked through, and there is no backup whose entries could come in place of its own."""


class RefusedError(PermanentError):
    """A key or value cannot be stored in the table."""


def check_entry(table: str, key: bytes, value: bytes, ttl: int | None, fold_keys: bool) -> bytes:
    """Return the key as a table keeps it, of an entry that a table can store.

    :raises RefusedError: the key is empty, or not UTF-8; a Postfix program could not read the value back whole, because
        it is not UTF-8, or has a NUL or a newline; the time to live is below one second.
    """
    normalized = key.lower() if fold_keys and key.isascii() else normalize(key, fold_keys)
    if not normalized:
        raise RefusedError(f"{table}: a key that is empty or not UTF-8 cannot be stored")
    if b"\0" in value or b"\n" in value or not (value.isascii() or valid(value)):
        raise RefusedError(f"{table}: a value with NUL, newline, or text that is not UTF-8 cannot be stored")
    if ttl is not None and ttl < 1:
        raise RefusedError(f"{table}: a time to live of {ttl} s is not possible")
    return normalized
