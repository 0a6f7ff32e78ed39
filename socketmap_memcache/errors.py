"""What can go wrong. Every error that this package raises on purpose is one of these."""

from __future__ import annotations

from collections.abc import Iterable

import attrs


class SocketmapMemcacheError(Exception):
    """The root of the tree; never raised itself."""


class ProtocolError(SocketmapMemcacheError):
    """A peer sent bytes that its protocol does not allow. Each codec raises its own subclass and nothing else."""


class TableError(SocketmapMemcacheError):
    """An operation on a table failed, so that nobody knows whether the key exists.

    It is never an answer of "not found": the listeners turn it into the TEMP, TIMEOUT or PERM of their protocol.
    The text says which server or file, and why.
    """


class TemporaryError(TableError):
    """Trying again later may help (socketmap: TEMP)."""


class LookupTimeout(TemporaryError):
    """No answer within the time limit (socketmap: TIMEOUT)."""


class PermanentError(TableError):
    """Only an administrator can help (socketmap: PERM)."""


class CannotStart(SystemExit, SocketmapMemcacheError):
    """The service cannot listen. It ends the process, with its text and no traceback.

    It is an Exception as well, for which twistd removes its pid file, and tells who has started a daemon.
    """


@attrs.frozen
class Problem:
    """Something wrong in a configuration file.

    :ivar text: what is wrong and what to do, without the place.
    :ivar path: the file, or ``--set`` for the command line; ``None`` where there is none.
    :ivar line: the number, counted from 1, of the first line of the entry; 0 where the file as a whole is meant.
    """

    text: str
    path: str | None = None
    line: int = 0

    def __str__(self) -> str:
        if self.path is None:
            return self.text
        return f"{self.path}:{self.line}: {self.text}" if self.line else f"{self.path}: {self.text}"


class ConfigurationError(SocketmapMemcacheError):
    """A configuration that cannot be used, with every problem found, so that one run of ``check`` shows them all."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))
