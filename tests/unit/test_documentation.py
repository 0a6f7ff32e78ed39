"""What administrators read is what the code does: parameters and their defaults."""

from __future__ import annotations

import re
from pathlib import Path

from socketmap_memcache.config.service import DEFAULTS
from socketmap_memcache.errors import Problem
from socketmap_memcache.policies.greylist.settings import PARAMETERS
from socketmap_memcache.policies.greylist.whitelist_syntax import parse_clients, parse_senders
from socketmap_memcache.tables.registry import _OPENERS

ROOT = Path(__file__).parents[2]
_ENTRY = re.compile(r"^``(\w+)`` \(default: (.*)\)$", re.MULTILINE)


def section(file: str, title: str, underline: str) -> str:
    """Return the text below a title, up to the next title of its kind."""
    text = (ROOT / file).read_text().split(f"\n{title}\n{underline * len(title)}\n")[1]
    return re.split(rf"\n\n.+\n{underline}{underline}+\n", text)[0]


def documented(file: str, title: str, underline: str) -> list[tuple[str, str]]:
    """Return the parameters of a section, and their defaults as they would be written in main.cf; sorted."""
    entries = _ENTRY.findall(section(file, title, underline))
    return sorted((name, re.sub("^empty$", "", default.strip("`"))) for name, default in entries)


def test_service() -> None:
    """README.rst and three other documents have each parameter of the service once, with its default."""
    found = documented("README.rst", "Parameters of the service", "=")
    for file in ("docs/limits.rst", "docs/speed.rst", "docs/workers.rst"):
        found += documented(file, "Parameters", "-")
    assert sorted(found) == sorted(DEFAULTS.items())


def test_limits() -> None:
    """The lines of main.cf that docs/limits.rst shows set parameters that exist."""
    shown = re.findall(r"^    (\w+) = \d+$", (ROOT / "docs/limits.rst").read_text(), re.MULTILINE)
    assert shown == ["client_limit", "request_limit"]
    assert DEFAULTS.keys() >= set(shown)


def test_greylisting() -> None:
    """docs/greylisting.rst has each parameter of greylisting once, with its default."""
    assert documented("docs/greylisting.rst", "Parameters", "-") == sorted(PARAMETERS.items())


def test_options_of_postgrey() -> None:
    """The parameters that stand for postgrey's options in docs/greylisting.rst exist."""
    named = set(re.findall(r"``((?:greylist|policy)_\w+)", (ROOT / "docs/greylisting.rst").read_text()))
    assert named - PARAMETERS.keys() - DEFAULTS.keys() == {"policy_test_time"}  # which is an attribute of requests


def test_whitelists() -> None:
    """The entries that docs/greylisting.rst has as examples for lists can be used."""
    of_clients, of_mail = section("docs/greylisting.rst", "Whitelists", "-").split("For **recipients**")
    problems: list[Problem] = []
    for text, parse in ((of_clients, parse_clients), (of_mail, parse_senders)):
        rows = re.findall(r"^``(.*?)``(?=  )", text, re.MULTILINE)
        examples = [example for row in rows for example in row.split("``, ``")]
        assert len(examples) > 6
        parse("\n".join(examples).encode(), "example", problems)
    assert problems == []


def test_shared_table() -> None:
    """With the files shown for a shared greylist, memcached keeps records as long as they matter, and not an hour."""
    for file in ("README.rst", "docs/greylisting.rst"):
        (shown,) = re.findall(r"memcache = inet:memcached.*\n(?: +.*\n)+", (ROOT / file).read_text())
        assert re.search(r"^ +ttl = 0$", shown, re.MULTILINE), file


def test_types() -> None:
    """README.rst and docs/tables.rst name each type of table."""
    _, _, rest = (ROOT / "README.rst").read_text().partition("\nServed tables, backups and ")
    rows = re.findall("^``.*", (ROOT / "docs/tables.rst").read_text().split("\nOther packages")[0], re.MULTILINE)
    for text in (rest.partition("docs/")[0], "".join(rows)):
        assert set(re.findall("``([a-z]+):", text)) == set(_OPENERS)


def test_all_documents() -> None:
    """README.rst names each document, and none that does not exist."""
    named = set(re.findall(r"``(docs/[\w-]+\.rst)``", (ROOT / "README.rst").read_text()))
    assert named == {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.rst")}
