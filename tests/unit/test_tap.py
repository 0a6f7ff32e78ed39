from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from twisted.application.service import IService
from twisted.python.usage import UsageError

from socketmap_memcache import tap
from socketmap_memcache.tap import Options, makeService
from twisted.plugins import socketmap_memcache_plugin


def test_defaults() -> None:
    """Without options the file is the one in /etc, and nothing is replaced."""
    options = Options()
    options.parseOptions([])
    assert options["config"] == "/etc/socketmap-memcache/main.cf"
    assert options["set"] == []


def test_options() -> None:
    """A file can be named, and parameters be replaced, any number of them."""
    options = Options()
    options.parseOptions(["--config", "x", "--set", "a=1", "--set=b=2"])
    assert options["config"] == "x"
    assert options["set"] == ["a=1", "b=2"]


def test_unknown_option() -> None:
    """An unknown option is refused."""
    with pytest.raises(UsageError):
        Options().parseOptions(["--bogus"])


def test_service() -> None:
    """The options make a service."""
    with tempfile.TemporaryDirectory(prefix="tap-") as directory:
        config = Path(directory, "main.cf")
        config.write_text("tables = a=static:x\n")
        options = Options()
        options.parseOptions(["--config", str(config), "--set", "socketmap_listen="])
        assert IService.providedBy(makeService(options))


def test_relative_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is named from where twistd is started is the same after --rundir, for a reload and for workers."""
    with tempfile.TemporaryDirectory(prefix="tap-") as directory:
        config = Path(directory, "main.cf")
        monkeypatch.chdir(directory)
        for workers in ("1", "2"):
            config.write_text(f"tables = a=static:x\nworkers = {workers}\n")
            options = Options()
            options.parseOptions(["--config", "main.cf", "--set", "socketmap_listen="])
            assert makeService(options)._path == str(config)  # type: ignore[attr-defined] # (of either class)


def test_errors() -> None:
    """With a configuration that has errors the process ends, and shows all of them."""
    with tempfile.TemporaryDirectory(prefix="tap-") as directory:
        config = Path(directory, "main.cf")
        config.write_text("bogus = 1\ntables = a\n")
        options = Options()
        options.parseOptions(["--config", str(config)])
        with pytest.raises(SystemExit) as caught:
            makeService(options)
    assert f"{config}:1: unknown parameter 'bogus'" in str(caught.value)
    assert f"{config}:2: tables: 'a'" in str(caught.value)


def test_plugin() -> None:
    """The plugin names the module that makes the service."""
    assert socketmap_memcache_plugin.serviceMaker.tapname == "socketmap-memcache"
    assert socketmap_memcache_plugin.serviceMaker.module == tap.__name__
