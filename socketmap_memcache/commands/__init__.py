"""The ``socketmap-memcache`` command; each subcommand is a module here."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    :param arguments: without the program's name; by default, the process' own.
    :return: the exit status.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    # What is imported is what is needed: a map command may be over in less time than all the imports take.
    if arguments[:1] == ["map"]:
        gc.disable()  # nothing of what is imported is garbage, and to look for it takes time again and again
        from socketmap_memcache.commands import map as map_command

        gc.freeze()
        gc.enable()
        return map_command.main(arguments[1:])

    import argparse

    from socketmap_memcache import __version__
    from socketmap_memcache.commands import check, greylist

    parser = argparse.ArgumentParser("socketmap-memcache", description="Administers the socketmap-memcache service.")
    parser.add_argument("--version", action="version", version=__version__)
    subcommands = parser.add_subparsers(metavar="command", required=True)
    check.add_to(subcommands)
    greylist.add_to(subcommands)
    # Only for --help: its options are postmap's, which argparse cannot read.
    subcommands.add_parser("map", help="look up, list and change entries of tables, as postmap does", add_help=False)
    options = parser.parse_args(arguments)
    status: int = options.run(options)
    return status
