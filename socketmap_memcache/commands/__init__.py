"""The ``socketmap-memcache`` command; each subcommand is a module here."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from socketmap_memcache import __version__
from socketmap_memcache.commands import check


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    :param arguments: without the program's name; by default, the process' own.
    :return: the exit status.
    """
    parser = argparse.ArgumentParser("socketmap-memcache", description="Administers the socketmap-memcache service.")
    parser.add_argument("--version", action="version", version=__version__)
    subcommands = parser.add_subparsers(metavar="command", required=True)
    check.add_to(subcommands)
    options = parser.parse_args(arguments)
    status: int = options.run(options)
    return status
