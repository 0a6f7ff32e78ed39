"""The package is laid out as CONTRIBUTING.rst says."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import socketmap_memcache

ROOT = Path(socketmap_memcache.__file__).parent
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))

#: Who may import whom, by top-level folder: those on the right, and the modules that all may use.
MAY_IMPORT = {
    "protocols": set[str](),
    "memcache": {"config", "protocols"},
    "config": {"listeners", "policies", "tables"},
    "tables": {"config", "memcache", "protocols", "tables"},
    "policies": {"config", "protocols", "tables"},
    "listeners": {"policies", "protocols", "tables"},
    "workers": {"config", "listeners", "memcache", "reloading", "service", "tables"},
    "commands": {"config", "memcache", "policies", "protocols", "service", "tables"},
}
FOR_ALL = {
    "asker",
    "busy_poll",
    "clock",
    "errors",
    "log_limit",
    "name_resolver",
    "pipelined_command",
    "pipelined_connection",
    "prompt_writer",
    "regular_file",
    "under_way",
}


def imports(module: str) -> Iterator[tuple[str, bool]]:
    """Give each name that a module imports, and whether it does so at the top level."""
    tree = ast.parse((ROOT / module).read_text())
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield f"{node.module}.{alias.name}", id(node) in top
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in top


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("protocols/")])
def test_codecs_do_no_io(module: str) -> None:
    """A codec imports neither Twisted nor sockets."""
    assert not [name for name, _ in imports(module) if name.split(".")[0] in {"twisted", "socket", "asyncio", "os"}]


@pytest.mark.parametrize("module", [module for module in MODULES if "/" in module])
def test_imports_go_one_way(module: str) -> None:
    """A folder imports only what is below it."""
    folder = module.split("/", maxsplit=1)[0]
    own = [name.split(".")[1] for name, _ in imports(module) if name.startswith("socketmap_memcache.")]
    assert set(own) - MAY_IMPORT[folder] - FOR_ALL - {folder, "__version__"} == set()


@pytest.mark.parametrize("module", MODULES)
def test_reactor_is_a_parameter(module: str) -> None:
    """The global reactor is imported only where the program starts, and not before it does."""
    found = [top for name, top in imports(module) if name == "twisted.internet.reactor"]
    starts = module in {"tap.py", "workers/worker.py"} or module.startswith("commands/")
    assert found == [] or (found == [False] and starts)
