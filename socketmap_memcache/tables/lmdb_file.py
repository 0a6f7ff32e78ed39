"""LMDB files that other processes use too: Postfix's locks, the growth of the map, one opening in each process.

Postfix opens such a file without LMDB's own lock file. Instead whoever reads holds a shared fcntl(2) lock on the data
file, and whoever writes an exclusive one, from before the transaction until after it. These locks belong to the
process, not to the descriptor: they are lost when the process closes any descriptor of the file, as LMDB does when it
opens it. So a file is opened once, however many tables use it, and never under a lock; and threads take turns.
"""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import TypeAlias, TypeVar

import lmdb

from socketmap_memcache.errors import ConfigurationError, PermanentError, Problem, TemporaryError

#: Where the keys and values are that somebody works with.
Transaction: TypeAlias = "lmdb.Transaction[bytes]"

#: Bytes that a new file may grow to before its map has to grow: Postfix's default for ``lmdb_map_size``.
MAP_SIZE = 16 * 1024 * 1024

_T = TypeVar("_T")
_NOT_FOR_WRITING = (errno.EACCES, errno.EPERM, errno.EROFS)
_PAUSE = 0.001


class ReplacedError(Exception):
    """The file has no name any more; another one may have taken its place."""


class LmdbFile:
    """An open file. It is shared: get it from :func:`acquire`, and give it back with :func:`release`.

    :ivar identity: what tells it from other files, whatever their names.
    :ivar writable: whether this process may write to it.
    :ivar users: how many have acquired it.
    """

    def __init__(self, path: Path) -> None:
        """Open a file that exists.

        :raises OSError: it cannot be opened.
        :raises lmdb.Error: it is not what LMDB makes.
        :raises ReplacedError: another one has just taken its place.
        """
        self.users = 0
        self._path = path
        self._turn = Lock()
        self._descriptor, self.writable = _open(path)  # only for locks; LMDB has its own
        status = os.fstat(self._descriptor)
        self.identity = (status.st_dev, status.st_ino)
        self._size = 0  # when it was last looked at
        self._environment: lmdb.Environment | None = None
        try:
            self._environment = self._open_environment()
        except (OSError, lmdb.Error, ReplacedError):
            os.close(self._descriptor)
            raise

    def transact(self, work: Callable[[Transaction], _T], write: bool) -> _T:
        """Do something in a transaction, and wait as long as it takes for the others who use the file.

        :param work: may be called more than once, each time with a new transaction.
        :return: what ``work`` returns. What it wrote is on the disk then.
        :raises ReplacedError: the file must be acquired anew.
        :raises TemporaryError: something went wrong with the file; nothing was written.
        :raises PermanentError: this process may not write to the file.
        """
        if write and not self.writable:
            raise PermanentError(f"{self._path}: this service has no permission to write to it")
        with self._turn:
            try:
                environment = self._environment
                if environment is None:
                    environment = self._environment = self._open_environment()
                with self._lock(fcntl.LOCK_EX if write else fcntl.LOCK_SH):
                    self._check()
                    return self._transact(work, write, environment)
            except (OSError, lmdb.Error) as error:
                # After a failed write to the disk LMDB may refuse all the rest: next time with a new environment.
                self._close_environment()
                raise TemporaryError(f"{self._path}: {error}") from error

    def has_name(self, path: Path) -> bool:
        """Say whether a name is, maybe among others, the file's.

        :raises OSError: that cannot be known.
        """
        try:
            status = path.stat()
        except FileNotFoundError:
            return False
        return (status.st_dev, status.st_ino) == self.identity

    def close(self) -> None:
        """Close it, when nobody uses it."""
        self._close_environment()
        os.close(self._descriptor)

    def _transact(self, work: Callable[[Transaction], _T], write: bool, environment: lmdb.Environment) -> _T:
        while True:
            try:
                with environment.begin(write=write) as transaction:
                    return work(transaction)
            except lmdb.MapFullError:
                # As Postfix does. It ends, at the latest, where the address space does.
                environment.set_mapsize(2 * environment.info()["map_size"])
            except lmdb.MapResizedError:
                environment.set_mapsize(0)  # what another process made it

    @contextmanager
    def _lock(self, kind: int) -> Iterator[None]:
        while True:
            try:
                fcntl.lockf(self._descriptor, kind)
                break
            except OSError as error:
                if error.errno != errno.EDEADLK:
                    raise TemporaryError(f"{self._path}: cannot be locked: {error.strerror}") from error
                # The kernel sees processes, each with a lock that another waits for, but not that these are locks of
                # different threads. Whoever has one here waits for nothing else, and gives it back soon.
                time.sleep(_PAUSE)
        try:
            yield
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN)

    def _check(self) -> None:
        """See whether the file still is what was opened."""
        status = os.fstat(self._descriptor)
        if status.st_nlink == 0:
            raise ReplacedError
        if status.st_size < self._size:
            # The file is mapped into memory: to read what was cut off would kill the process.
            raise lmdb.CorruptedError("the file has become smaller; was another one copied over it?")
        self._size = status.st_size

    def _check_identity(self) -> None:
        """See whether the file still has its name, by which LMDB opens it."""
        if not self.has_name(self._path):
            raise ReplacedError

    def _open_environment(self) -> lmdb.Environment:
        """Open the file in LMDB. Locks on it are lost by that."""
        self._check_identity()
        if os.fstat(self._descriptor).st_size == 0:
            raise lmdb.InvalidError("the file is empty")  # LMDB would make a table of it
        environment = lmdb.open(
            os.fspath(self._path), map_size=0, subdir=False, readonly=not self.writable, lock=False, create=False
        )
        try:
            self._check_identity()
            used = environment.stat()
            pages = 2 + used["branch_pages"] + used["leaf_pages"] + used["overflow_pages"]
            self._size = os.fstat(self._descriptor).st_size  # after that: somebody may be writing
            if self._size < pages * used["psize"]:
                raise lmdb.InvalidError("the file has lost its end")
        except (OSError, lmdb.Error, ReplacedError):
            environment.close()
            raise
        return environment

    def _close_environment(self) -> None:
        if self._environment is not None:
            self._environment.close()
            self._environment = None


_files: dict[tuple[int, int], LmdbFile] = {}
_files_lock = Lock()


def acquire(path: Path, create: bool = False) -> LmdbFile:
    """Open a file, or share what is open already.

    :param create: whether to make the file if it does not exist.
    :raises ConfigurationError: it does not exist, cannot be opened, or is not what LMDB makes.
    """
    try:
        with _files_lock:
            if create and not path.exists():
                _create(path)
            status = path.stat()
            file = _files.get((status.st_dev, status.st_ino))
            if file is None:
                file = LmdbFile(path)
                _files[file.identity] = file
            file.users += 1
            return file
    except OSError as error:
        hint = ""
        if isinstance(error, FileNotFoundError):
            command = f"make it with: postmap lmdb:{path.with_suffix('')}"
            hint = f" ({'its directory does not exist' if create else command})"
        raise ConfigurationError([Problem(f"cannot be opened: {error.strerror}{hint}", str(path))]) from error
    except ReplacedError:
        raise ConfigurationError([Problem("is being replaced", str(path))]) from None
    except lmdb.Error as error:
        raise ConfigurationError([Problem(f"is not a usable lmdb: file: {error}", str(path))]) from error


def release(file: LmdbFile) -> None:
    """Give back what :func:`acquire` gave; the last one closes the file."""
    with _files_lock:
        file.users -= 1
        if not file.users:
            del _files[file.identity]
            file.close()


def _open(path: Path) -> tuple[int, bool]:
    """Open a file for writing if that is permitted, else for reading, and say which."""
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC), True
    except OSError as error:
        if error.errno not in _NOT_FOR_WRITING:
            raise
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC), False


def _create(path: Path) -> None:
    """Make a file with nothing in it, all at once: nobody sees one that is half made, and nobody's is replaced."""
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as directory:
        new = Path(directory) / "new"
        with lmdb.open(os.fspath(new), map_size=MAP_SIZE, subdir=False, lock=False, mode=0o640) as environment:
            environment.sync(True)
        with suppress(FileExistsError):  # another process of the service was faster
            os.link(new, path)
    parent = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)
