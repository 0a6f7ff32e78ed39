"""What administrators read is what the code does: parameters and their defaults."""

from __future__ import annotations

import re
from pathlib import Path

from socketmap_memcache.config.service import DEFAULTS
from socketmap_memcache.policies.greylist.settings import PARAMETERS

ROOT = Path(__file__).parents[2]
_ENTRY = re.compile(r"^``(\w+)`` \(default: (.*)\)$", re.MULTILINE)


def documented(file: str, title: str, underline: str) -> list[tuple[str, str]]:
    """Return the parameters of a section, and their defaults as they would be written in main.cf; sorted."""
    text = (ROOT / file).read_text()
    section = text.split(f"\n{title}\n{underline * len(title)}\n")[1]
    section = re.split(rf"\n\n.+\n{underline}{underline}+\n", section)[0]
    return sorted((name, re.sub("^empty$", "", default.strip("`"))) for name, default in _ENTRY.findall(section))


def test_service() -> None:
    """README.rst has each parameter of the service once, with its default."""
    assert documented("README.rst", "Parameters of the service", "=") == sorted(DEFAULTS.items())


def test_greylisting() -> None:
    """docs/greylisting.rst has each parameter of greylisting once, with its default."""
    assert documented("docs/greylisting.rst", "Parameters", "-") == sorted(PARAMETERS.items())


def test_options_of_postgrey() -> None:
    """The parameters that stand for postgrey's options in docs/greylisting.rst exist."""
    named = set(re.findall(r"``((?:greylist|policy)_\w+)", (ROOT / "docs/greylisting.rst").read_text()))
    assert named - PARAMETERS.keys() - DEFAULTS.keys() == {"policy_test_time"}  # which is an attribute of requests
