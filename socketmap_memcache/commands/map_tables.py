"""The tables that ``socketmap-memcache map`` was given."""

from __future__ import annotations

import subprocess

from socketmap_memcache.commands.map_console import Console, FatalError
from socketmap_memcache.errors import ConfigurationError, Problem
from socketmap_memcache.tables.interface import ITable
from socketmap_memcache.tables.registry import PROXYMAP_SOCKET, PROXYWRITE_SOCKET, TableContext

#: Operations that are under way at the same time, at most.
WINDOW = 1000


#: Where proxymap and proxywrite of the usual Postfix are.
DEFAULT_SOCKETS = (PROXYMAP_SOCKET, PROXYWRITE_SOCKET)


def proxy_sockets(config_directory: str) -> tuple[str, str]:
    """Ask Postfix where an instance has its proxymap and proxywrite.

    :param config_directory: the instance's; empty for the usual sockets.
    :raises FatalError: Postfix does not say.
    """
    if not config_directory:
        return DEFAULT_SOCKETS
    command = ["postconf", "-c", config_directory, "-xh", "queue_directory"]
    try:
        ran = subprocess.run(command, capture_output=True, check=True, text=True)  # noqa: S603
    except OSError as error:
        raise FatalError(f"option -c needs Postfix's postconf: {error.strerror}") from error
    except subprocess.CalledProcessError as error:
        raise FatalError(error.stderr) from error
    queue = ran.stdout.rstrip("\n")
    return f"{queue}/private/proxymap", f"{queue}/private/proxywrite"


class Tables:
    """Tables in their order, each opened when it is needed."""

    def __init__(self, names: list[str], context: TableContext, console: Console, create: bool = False) -> None:
        """Open nothing yet.

        :param names: as they were given, ``type:name``.
        :param create: whether a file that does not exist is made.
        """
        self.names = names
        self._context = context
        self._console = console
        self._create = create
        self._opened: dict[int, ITable] = {}

    def open(self, number: int) -> ITable:
        """Give a table, opened.

        :raises FatalError: it cannot be opened.
        """
        if number not in self._opened:
            try:
                self._opened[number] = self._context.open_table(self.names[number], create=self._create)
            except ConfigurationError as error:
                raise FatalError("\n".join(map(_shown, error.problems))) from error
            finally:
                for warning in self._context.warnings:
                    self._console.warn(_shown(warning))
                self._context.warnings.clear()
        return self._opened[number]

    def open_all(self) -> list[ITable]:
        """Give all tables.

        :raises FatalError: one cannot be opened.
        """
        return [self.open(number) for number in range(len(self.names))]

    def close(self) -> None:
        """Close those that were opened."""
        for table in self._opened.values():
            table.close()


def _shown(problem: Problem) -> str:
    """Name the place as Postfix does."""
    if problem.path is None or not problem.line:
        return str(problem)
    return f"{problem.path}, line {problem.line}: {problem.text}"
