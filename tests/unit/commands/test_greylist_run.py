"""What is around the operations of ``socketmap-memcache greylist``: configuration, messages, exit status, signals."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import twisted.internet
from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger

from socketmap_memcache.commands import greylist_session, main
from socketmap_memcache.commands.greylist_session import Session
from socketmap_memcache.errors import ConfigurationError, Problem

from .greylist_bench import reactor

STATS = "socketmap_memcache.commands.greylist_list.print_statistics"


@pytest.fixture
def config() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="commands-") as directory:
        yield Path(directory, "main.cf")


@pytest.fixture
def command(config: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs the command; the table of this configuration is a cache in memory, with a backup of the same kind."""
    monkeypatch.setattr(twisted.internet, "reactor", reactor(), raising=False)
    cf = config.with_name("x.cf")
    cf.write_text("memcache = memory:\nbackup = memory:b\n")
    config.write_text(f"policies = greylist\ngreylist_table = memcache:{cf}\n")

    def run(*arguments: str) -> int:
        return main(["greylist", *arguments, "--config", str(config)])

    return run


def errors(capfd: pytest.CaptureFixture[str]) -> list[str]:
    """Return what follows the command's name on the lines of standard error, but for the cache's warning."""
    lines = [line.removeprefix("socketmap-memcache greylist: ") for line in capfd.readouterr().err.splitlines()]
    return [line for line in lines if "a cache of its own" not in line]


def test_run(command: Callable[..., int], config: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The table of the configuration is opened; of a cache that only the service has, there is a warning."""
    assert command("stats") == 0
    output = capfd.readouterr()
    assert output.out.startswith("triplets              0\n")
    text = "the service has a cache of its own (memcache = memory:) and sees changes only when its ttl is over"
    table = f"greylist_table = memcache:{config.with_name('x.cf')}"
    assert output.err == f"socketmap-memcache greylist: warning: {table}: {text}\n"


def test_warnings(command: Callable[..., int], config: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Warnings about the configuration, and those that are logged, are shown."""
    with config.with_name("x.cf").open("a") as cf:
        cf.write("ttls = 1\n")
    assert command("stats") == 0
    assert errors(capfd) == [
        f"warning: {config.with_name('x.cf')}:3: unknown parameter 'ttls'; did you mean 'ttl'?",
    ]


def test_log(command: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """What a table logs as a warning is shown."""

    def warn(*_: object) -> Deferred[int]:
        Logger().warn("memcached is away")
        return succeed(0)

    monkeypatch.setattr(STATS, warn)
    assert command("stats") == 0
    assert errors(capfd) == ["warning: memcached is away"]


@pytest.mark.parametrize(
    "overrides,expected",
    [
        (["greylist_table=memory:x"], ["greylist_table = memory:x: it is in the memory of the service"]),
        (["greylist_table=nope:x"], ["greylist_table = nope:x: table 'nope:x': unknown table type 'nope'"]),
        (["greylist_delay=soon", "greylist_privacy=maybe"], ["bad time value", "bad boolean"]),
        (
            ["greylist_table=lmdb:/nope/x"],
            ["/nope/x.lmdb: cannot be opened: No such file or directory (the service makes it when it first starts)"],
        ),
    ],
)
def test_bad_configuration(
    overrides: list[str], expected: list[str], command: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    """A configuration that cannot be used is an error, in a line for each thing that is wrong."""
    options = [word for override in overrides for word in ("--set", override)]
    assert command("stats", *options) == 1
    lines = errors(capfd)
    assert len(lines) == len(expected)
    for line, text in zip(lines, expected, strict=True):
        assert line.startswith("error: ")
        assert text in line


def test_no_configuration(command: Callable[..., int], config: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A configuration file that does not exist is an error."""
    config.unlink()
    assert command("stats") == 1
    assert errors(capfd) == [f"error: {config}: cannot be read: No such file or directory"]


def test_error(command: Callable[..., int], capfd: pytest.CaptureFixture[str]) -> None:
    """An operation that cannot be done is one line and the status 1."""
    assert command("show", "mx\x1b", "a@b", "c@d") == 1
    assert errors(capfd) == ["error: mx\\x1b: not an IP address"]


def test_table_error(command: Callable[..., int], capfd: pytest.CaptureFixture[str]) -> None:
    """A table that fails is one line and the status 1."""
    assert command("show", "192.0.2.7", "a@b", "c@d", "--set", "greylist_table=fail:x") == 1
    assert len(lines := errors(capfd)) == 1
    assert lines[0].startswith("error: fail:x")


def test_late_configuration_error(
    command: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """An error of the configuration that an operation finds is a line for each thing that is wrong."""
    error = ConfigurationError([Problem("one", "file", 1), Problem("two")])
    monkeypatch.setattr(STATS, lambda *_: fail(error))
    assert command("stats") == 1
    assert errors(capfd) == ["error: file:1: one", "error: two"]


def test_fault(command: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of the program is shown with its traceback."""
    monkeypatch.setattr(STATS, lambda *_: fail(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        command("stats")


def test_broken_pipe(
    command: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """When nobody reads the output any more it ends quietly, with the status that a shell gives for SIGPIPE."""
    reading, writing = os.pipe()
    os.close(reading)
    monkeypatch.setattr(greylist_session, "STDOUT", writing)
    assert command("stats") == 141
    os.close(writing)
    assert errors(capfd) == []


def test_output_error(
    command: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """An output that cannot be written is told."""
    full = os.open("/dev/full", os.O_WRONLY)
    monkeypatch.setattr(greylist_session, "STDOUT", full)
    assert command("stats") == 1
    os.close(full)
    assert "No space left on device" in errors(capfd)[0]


def test_interrupted(command: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    """^C during changes stops them: what was begun is finished, the table closed, and the signal passed on."""
    seen: list[Any] = []

    def release(session: Session, *_: object) -> Deferred[int]:
        signal.raise_signal(signal.SIGINT)
        seen.append(session.stopped)
        seen.append(signal.getsignal(signal.SIGINT))
        return succeed(0)

    monkeypatch.setattr("socketmap_memcache.commands.greylist_change.release", release)
    monkeypatch.setattr(os, "kill", lambda _pid, number: seen.append(number))
    before = signal.getsignal(signal.SIGINT)
    command("release", "192.0.2.7", "a@b", "c@d")
    assert seen == [True, signal.SIG_DFL, signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is before


def test_interrupted_reading(command: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    """^C while nothing is changed ends the process at once."""
    handlers: list[Any] = []

    def stats(*_: object) -> Deferred[int]:
        handlers.append(signal.getsignal(signal.SIGTERM))
        return succeed(0)

    monkeypatch.setattr(STATS, stats)
    command("stats")
    assert handlers == [signal.SIG_DFL]


@pytest.mark.parametrize("arguments", [[], ["bogus"], ["show", "192.0.2.7"], ["list", "--sender"]])
def test_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong command line is refused, with how to write it."""
    with pytest.raises(SystemExit) as caught:
        main(["greylist", *arguments])
    assert caught.value.code == 2
    assert "usage: socketmap-memcache greylist" in capsys.readouterr().err
