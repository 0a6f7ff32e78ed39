from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from socketmap_memcache import __version__
from socketmap_memcache.commands import main
from socketmap_memcache.policies.interface import IPolicyType
from tests.unit.policies.fakes import ScriptedType


@pytest.fixture
def config() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="commands-") as directory:
        yield Path(directory, "main.cf")


def test_check_good(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The check of a good configuration shows the tables, and its exit status is 0."""
    config.write_text("tables = a=static:x b=fail:y\n")
    assert main(["check", "--config", str(config)]) == 0
    output = capsys.readouterr()
    assert output.out == f"a = static:x\nb = fail:y\n{config}: no errors\n"
    assert output.err == ""


def test_check_policies(config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The check shows the policies, too."""
    plugins = [ScriptedType("one", {})]
    monkeypatch.setattr("twisted.plugin.getPlugins", lambda interface: plugins if interface is IPolicyType else [])
    config.write_text("policies = one\n")
    assert main(["check", "--config", str(config)]) == 0
    assert capsys.readouterr().out == f"policy one\n{config}: no errors\n"


def test_check_makes_no_file(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that the service would make is not made by a check, which would make it for another user: it says so."""
    table = config.with_name("greylist")
    config.write_text(f"policies = greylist\ngreylist_table = lmdb:{table}\n")
    assert main(["check", "--config", str(config)]) == 0
    not_yet = f"{table}.lmdb does not exist yet: the service makes it when it starts"
    assert f"warning: table lmdb:{table}: {not_yet}\n" in capsys.readouterr().err
    assert list(config.parent.iterdir()) == [config]
    assert main(["check", "--config", str(config), "--set", f"greylist_table=lmdb:{table}/in/it"]) == 0
    assert "when it starts, in a directory that has to be made before\n" in capsys.readouterr().err


def test_check_bad(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The check of a bad configuration shows every error and warning with its place, and its exit status is 1."""
    cf = config.with_name("x.cf")
    cf.write_text("ttls = 1\n")
    config.write_text(f"tables = a=memcache:{cf}\nbogus = 1\nmore\n")
    assert main(["check", "--config", str(config)]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines() == [
        f"error: {config}:2: unknown parameter 'bogus'",
        f"error: {config}:3: missing '=' after attribute name: \"more\"",
        f"warning: {cf}:1: unknown parameter 'ttls'; did you mean 'ttl'?",
    ]


def test_check_warning(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A warning alone does not fail the check."""
    cf = config.with_name("x.cf")
    cf.write_text("ttls = 1\n")
    config.write_text(f"tables = a=memcache:{cf}\n")
    assert main(["check", "--config", str(config)]) == 0
    assert capsys.readouterr().err.startswith(f"warning: {cf}:1: unknown parameter 'ttls'")


def test_check_set(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Parameters can be replaced for a check, any number of them."""
    config.write_text("tables = a\n")
    assert main(["check", "--config", str(config), "--set", "tables=b=static:x", "--set", "shutdown_timeout=1"]) == 0
    assert capsys.readouterr().out.startswith("b = static:x\n")


def test_check_not_utf8(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names that are not UTF-8 can be shown, in some way."""
    config.write_bytes(b"tables = a=fail:\xff\n")
    assert main(["check", "--config", str(config)]) == 0
    assert "a = fail:" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """The command tells its version."""
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"{__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["bogus"], ["check", "--bogus"]])
def test_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong command line is refused, with how to write it."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: socketmap-memcache" in capsys.readouterr().err
