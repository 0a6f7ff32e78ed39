"""The options of the subcommands that read the service's configuration."""

from __future__ import annotations

import argparse

from socketmap_memcache.config.service import DEFAULT_PATH


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--config FILE`` and ``--set NAME=VALUE``, which end up as ``config`` and ``set``."""
    parser.add_argument("--config", default=DEFAULT_PATH, metavar="FILE", help="the configuration file (%(default)s)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="replace a parameter; may be given many times"
    )
