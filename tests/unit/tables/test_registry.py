from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from twisted.internet.testing import MemoryReactorClock
from twisted.plugin import getPlugins
from zope.interface import implementer
from zope.interface.verify import verifyObject

from socketmap_memcache.errors import ConfigurationError
from socketmap_memcache.memcache.pool import ClientPool
from socketmap_memcache.tables.interface import ITable
from socketmap_memcache.tables.registry import _OPENERS, ITableType, TableContext


def context() -> TableContext:
    return TableContext(ClientPool(MemoryReactorClock()))


def errors(spec: str) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        context().open_table(spec)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize("spec", ["static:a:b", "fail:x", "inline:{a=b}"])
def test_open(spec: str) -> None:
    """A table is opened by its type and name, and has both for a name; the name may have colons."""
    assert context().open_table(spec).name == spec


@pytest.mark.parametrize("kind", [kind for kind in _OPENERS if find_spec(_OPENERS[kind].partition(":")[0])])
def test_every_type(kind: str) -> None:
    """Every type that is known can be imported, and refuses an empty name, except where names say nothing."""
    if kind == "memory":
        assert context().open_table("memory:").name == "memory:"
    else:
        assert errors(f"{kind}:")


def test_not_a_table() -> None:
    """What has no colon is no table."""
    assert errors("x") == ["table 'x': write type:name, for example memcache:/etc/postfix/aliases.cf"]
    assert "write type:name" in errors("")[0]


def test_unknown_type() -> None:
    """An unknown type is refused, with those that are known."""
    known = ", ".join(sorted(_OPENERS))
    assert errors("bogus:x") == [f"table 'bogus:x': unknown table type 'bogus' (known: {known})"]
    assert "unknown table type ''" in errors(":x")[0]


def test_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another package may bring a type, as a plugin; it is named among those that are known."""

    @implementer(ITableType)
    class Plugin:
        kind = "theirs"

        def open(self, name: str, context: TableContext) -> ITable:
            return context.open_table(f"static:{name}")

    monkeypatch.setattr("twisted.plugin.getPlugins", lambda interface: [Plugin()] if interface is ITableType else [])
    verifyObject(ITableType, Plugin())
    assert context().open_table("theirs:x:y").name == "static:x:y"
    assert "texthash, theirs)" in errors("bogus:x")[0]


def test_plugins_of_this_package() -> None:
    """Without any plugin there is no other type."""
    assert list(getPlugins(ITableType)) == []


def test_loops() -> None:
    """Tables that refer to each other in a circle are refused; the same table may be used twice side by side."""
    with tempfile.TemporaryDirectory(prefix="cf-") as directory:
        one, two = Path(directory, "one.cf"), Path(directory, "two.cf")
        one.write_text(f"backup = memcache:{two}\n")
        two.write_text(f"\nbackup = memcache:{one}\n")
        assert errors(f"memcache:{one}") == [f"{two}:2: table 'memcache:{one}' refers to itself"]
        two.write_text("")
        tables = context()
        for _ in range(2):
            tables.open_table(f"memcache:{one}")


@pytest.mark.parametrize("kind", ["lmdb", "hash"])
def test_unreachable(kind: str) -> None:
    """A file to be made where nothing can be looked up is an error with the reason, also where none is made."""
    if kind == "hash":
        pytest.importorskip("berkeleydb")
    checked = TableContext(ClientPool(MemoryReactorClock()), creates=False)
    with pytest.raises(ConfigurationError, match="cannot be opened: File name too long"):
        checked.open_table(f"{kind}:/tmp/{'x' * 300}", create=True)
    assert checked.warnings == []
