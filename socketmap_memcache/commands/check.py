"""``socketmap-memcache check``: says what is wrong with a configuration, all of it at once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable

from socketmap_memcache.commands.config_options import add_config_options
from socketmap_memcache.config.service import load
from socketmap_memcache.errors import ConfigurationError, Problem
from socketmap_memcache.memcache.pool import ClientPool
from socketmap_memcache.tables.registry import TableContext


def add_to(subcommands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand to the command's parser."""
    parser = subcommands.add_parser(
        "check",
        help="check the configuration and the files of its tables",
        description="Checks the configuration and the files of its tables and policies. Prints every error and warning "
        "with its file and line. The exit status is 1 where there are errors. Nothing listens, no server is asked, "
        "and no file is made.",
    )
    add_config_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Check, print, and give the exit status."""
    from twisted.internet import reactor

    context = TableContext(ClientPool(reactor), creates=False)
    try:
        config = load(options.config, options.set, context, reactor)
    except ConfigurationError as error:
        _print("error", error.problems)
        _print("warning", context.warnings)
        return 1
    _print("warning", context.warnings)
    for name, table in config.tables.items():
        print(f"{name} = {table.name}".encode(errors="backslashreplace").decode())
    for policy in config.policies.policies:
        print(f"policy {policy.name}")
    config.close()
    print(f"{options.config}: no errors")
    return 0


def _print(severity: str, problems: Iterable[Problem]) -> None:
    for problem in problems:
        print(f"{severity}: {problem}", file=sys.stderr)
