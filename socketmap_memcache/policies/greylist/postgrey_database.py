"""postgrey's own database, for the import: ``postgrey.db`` and ``postgrey_clients.db``, Berkeley DB btrees.

postgrey may go on running. What it stores is in its log (``log.0000000001``...) at once, but in the files only later.
So they are copied as Berkeley DB's own db_hotbackup does it: first the databases, then the logs; and the copy is
recovered, which puts into it what the logs have. postgrey's directory is only read.

The package ``berkeleydb``, built against Berkeley DB 5.3 as the one that postgrey uses on Debian, is imported when a
database is opened.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attrs

from socketmap_memcache.errors import SocketmapMemcacheError
from socketmap_memcache.regular_file import open_regular

TRIPLETS = "postgrey.db"
CLIENTS = "postgrey_clients.db"

#: How often the copy is begun again because postgrey put an end to a log meanwhile, as it does once an hour.
_TRIES = 5

# The user without rights, where the files are root's.
_NOBODY = 65534

_HASHED = re.compile(rb"[0-9a-f]{40}")


class PostgreyDatabaseError(SocketmapMemcacheError):
    """There is no database of postgrey's in a directory, or none that can be read; the text says why."""


@attrs.frozen
class PostgreyDatabase:
    """A copy of a database.

    :ivar logs: how many files of its log have been read too.
    :ivar log_error: why the log could not be read, or empty. What postgrey stored in the last hour may be missing then.
    """

    logs: int
    log_error: str
    _directory: Path
    _library: Any

    def triplets(self) -> Iterator[tuple[bytes, bytes]]:
        """Give each key, ``NET/SENDER/RECIPIENT`` or hashed, and its value, ``first,last`` or ``first,last,host``.

        :raises PostgreyDatabaseError: the file cannot be read.
        """
        return self._entries(TRIPLETS)

    def clients(self) -> Iterator[tuple[bytes, bytes]]:
        """Give each client's address, or its hash, and its value, ``count,last``; none where there is no such file.

        :raises PostgreyDatabaseError: the file cannot be read.
        """
        return self._entries(CLIENTS) if (self._directory / CLIENTS).exists() else iter(())

    def _entries(self, name: str) -> Iterator[tuple[bytes, bytes]]:
        library = self._library
        path = str(self._directory / name)
        try:
            library.DB().verify(path)  # a page may have been written while it was copied
            database = library.DB()
            database.open(path, dbtype=library.DB_UNKNOWN, flags=library.DB_RDONLY)
            try:
                cursor = database.cursor()
                while (entry := cursor.next()) is not None:
                    yield entry
                cursor.close()
            finally:
                database.close()
        except library.DBError as error:
            text = f"{name} is damaged, or is no Berkeley DB file; if postgrey runs, stop it and try again"
            raise PostgreyDatabaseError(f"{text}: {_reason(error)}") from error


def is_hashed(key: bytes) -> bool:
    """Say whether a key is one of ``postgrey --privacy``: a SHA-1 in hexadecimal."""
    return _HASHED.fullmatch(key) is not None


@contextmanager
def opened(directory: Path) -> Iterator[PostgreyDatabase]:
    """Copy a database, to a temporary directory that exists as long as the context does.

    It blocks, for seconds where the database is large.

    :param directory: postgrey's ``--dbdir``.
    :raises PostgreyDatabaseError: there is none, it must not be read, or the package ``berkeleydb`` is not installed.
    """
    try:
        library: Any = import_module("berkeleydb.db")
    except ImportError as error:
        text = (
            f"reading postgrey's database needs the Python package berkeleydb ({error}); with the headers of "
            "Berkeley DB 5.3 (libdb5.3-dev on Debian): pip install 'socketmap-memcache[berkeleydb]'"
        )
        raise PostgreyDatabaseError(text) from error
    with TemporaryDirectory(prefix="postgrey-") as scratch:  # it is closed to other users
        copy = Path(scratch)
        try:
            logs = _copy(directory, copy)
            with _as_owner(directory, copy):
                log_error = _replay(copy, library) if logs else ""
        except OSError as error:
            raise PostgreyDatabaseError(f"{error.filename or directory}: {error.strerror}") from error
        yield PostgreyDatabase(logs, log_error, copy, library)


def _copy(directory: Path, copy: Path) -> int:
    """Copy the files, and return how many logs there are."""
    for _ in range(_TRIES):
        for stale in _logs(copy):
            (copy / stale).unlink()
        before = _logs(directory)
        _copy_file(directory / TRIPLETS, copy)
        if (directory / CLIENTS).exists():
            _copy_file(directory / CLIENTS, copy)
        try:
            for log in _logs(directory):
                _copy_file(directory / log, copy)
        except FileNotFoundError:
            continue
        # A log that has gone may have had something that the database did not have yet when it was copied.
        if set(before) <= set(_logs(directory)):
            return len(_logs(copy))
    raise PostgreyDatabaseError(f"{directory}: postgrey's log changes too fast; stop postgrey and try again")


def _copy_file(source: Path, copy: Path) -> None:
    with open_regular(source, follow=False) as file, (copy / source.name).open("wb") as target:
        shutil.copyfileobj(file, target)


@contextmanager
def _as_owner(directory: Path, copy: Path) -> Iterator[None]:
    """Be the user whose database it is, where it is root who imports it: the copy is that user's then.

    A log says which files have changed, and may name any file: replayed by root, it could overwrite any.
    """
    if os.geteuid():
        yield
        return
    status = (directory / TRIPLETS).lstat()
    user, group = (status.st_uid, status.st_gid) if status.st_uid else (_NOBODY, _NOBODY)
    for path in (copy, *copy.iterdir()):
        os.chown(path, user, group)
    own_group, own_groups = os.getegid(), os.getgroups()
    os.setgroups([])
    os.setegid(group)
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(own_group)
        os.setgroups(own_groups)


def _logs(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("log.[0-9]*"))


def _replay(copy: Path, library: Any) -> str:
    """Put into the databases what is in the logs, and return why that failed, or nothing."""
    environment = library.DBEnv()
    try:
        flags = library.DB_INIT_TXN | library.DB_INIT_MPOOL | library.DB_INIT_LOG | library.DB_PRIVATE
        environment.open(str(copy), library.DB_CREATE | library.DB_RECOVER_FATAL | flags)
    except library.DBError as error:
        return _reason(error)
    finally:
        environment.close()
    return ""


def _reason(error: Exception) -> str:
    """Give the library's own words, which the package puts after a number and its meaning."""
    return str(error.args[-1]).rpartition(" -- ")[2]
