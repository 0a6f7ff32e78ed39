"""``socketmap-memcache greylist``: shows and changes what greylisting remembers, while the service runs.

Here is what the command line looks like; each operation has a module, imported when it is asked for.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from socketmap_memcache.commands.config_options import add_config_options

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from socketmap_memcache.commands.greylist_session import Session

#: What does an operation: fires with the exit status.
Operate = Callable[["Session", argparse.Namespace], "Deferred[int]"]

_CLIENT = "the client's IP address"
_SENDER = "the envelope sender; '' or '<>' is the null sender"
_RECIPIENT = "the envelope recipient"


def add_to(subcommands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand to the command's parser."""
    parser = subcommands.add_parser(
        "greylist",
        help="show and change what greylisting remembers",
        description="Shows and changes what greylisting remembers, while the service runs: it reads and updates "
        "greylist_table of the configuration. The exit status is 1 after an error.",
    )
    operations = parser.add_subparsers(metavar="operation", required=True)

    listing = _add(operations, "list", "greylist_list:list_records", "print triplets and clients")
    listing.add_argument(
        "--client", type=os.fsencode, metavar="X", help="of this IP address, or network as 192.0.2.0/23"
    )
    for name in ("sender", "recipient"):
        text = f"with this {name}; @DOMAIN is a whole domain, and a pattern may have * and ?"
        listing.add_argument(f"--{name}", type=os.fsencode, metavar="X", help=text)
    listing.add_argument("--json", action="store_true", help="a JSON object on each line")

    show = _add(operations, "show", "greylist_show:show", "print a triplet, and what would happen to it now")
    _add_triplet(show)

    text = "let a mail in: its next attempt passes"
    release = _add(operations, "release", "greylist_change:release", text, changes=True)
    _add_triplet(release)

    forget = _add(
        operations,
        "forget",
        "greylist_change:forget",
        "delete a triplet, or all of a client's, and the client's auto-whitelisting",
        changes=True,
    )
    forget.add_argument("client", type=os.fsencode, metavar="CLIENT", help=_CLIENT)
    forget.add_argument("sender", type=os.fsencode, nargs="?", metavar="SENDER", help=_SENDER)
    forget.add_argument("recipient", type=os.fsencode, nargs="?", metavar="RECIPIENT", help=_RECIPIENT)

    stats = _add(operations, "stats", "greylist_list:print_statistics", "count triplets and clients")
    stats.add_argument("--json", action="store_true", help="as one JSON object")

    text = "take over postgrey's database"
    importing = _add(operations, "import-postgrey", "greylist_import:import_postgrey", text, changes=True)
    importing.add_argument("directory", metavar="DIR", help="postgrey's --dbdir, on Debian /var/lib/postgrey")

    _add(
        operations,
        "test",
        "greylist_test:test",
        "say what a request would get, and why",
        "Reads a request of Postfix's policy protocol from standard input, lines of name=value up to an empty line or "
        "the end, and prints the decision and how it comes about. Nothing is stored. policy_test_time=SECONDS sets the "
        "time of the decision.",
    )


def _add(
    operations: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    operate: str,
    text: str,
    description: str = "",
    changes: bool = False,
) -> argparse.ArgumentParser:
    parser = operations.add_parser(name, help=text, description=description or f"{text[0].upper()}{text[1:]}.")
    add_config_options(parser)
    parser.set_defaults(run=_run, operate=operate, changes=changes)
    return parser


def _add_triplet(parser: argparse.ArgumentParser) -> None:
    for name, text in (("client", _CLIENT), ("sender", _SENDER), ("recipient", _RECIPIENT)):
        parser.add_argument(name, type=os.fsencode, metavar=name.upper(), help=text)


def _run(options: argparse.Namespace) -> int:
    from socketmap_memcache.commands.greylist_session import run

    module, _, function = options.operate.partition(":")
    operate: Operate = getattr(import_module(f"socketmap_memcache.commands.{module}"), function)
    return run(options, operate)
