from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import twisted.internet
from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger

from socketmap_memcache.commands import main
from socketmap_memcache.commands import map as map_command
from socketmap_memcache.commands.map_changes import Update
from socketmap_memcache.commands.map_query import Query
from socketmap_memcache.commands.map_streams import Source
from socketmap_memcache.commands.map_tables import proxy_sockets
from socketmap_memcache.errors import TemporaryError
from socketmap_memcache.tables.interface import ITable

from .reactor import Reactor


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[bytes], None]]:
    path = tmp_path / "stdin"
    path.write_bytes(b"")
    descriptor = os.open(path, os.O_RDONLY)
    monkeypatch.setattr(map_command, "STDIN", descriptor)

    def fill(text: bytes) -> None:
        path.write_bytes(text)
        os.lseek(descriptor, 0, os.SEEK_SET)

    yield fill
    os.close(descriptor)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, stdin: Callable[[bytes], None]) -> Callable[..., int]:
    reactor = Reactor()
    monkeypatch.setattr(twisted.internet, "reactor", reactor, raising=False)

    def run(*arguments: str, text: bytes = b"") -> int:
        stdin(text)
        return main(["map", *arguments])

    return run


def test_command_queries(command: Callable[..., int], capfd: pytest.CaptureFixture[str]) -> None:
    """Look-ups and lists go to standard output, and the status is postmap's."""
    assert command("-q", "A", "inline:{b=2}", "inline:{a=1}") == 0
    assert command("-q", "-", "inline:{a=1}", text=b"a\nb\n") == 0
    assert command("-s", "inline:{a=1}") == 0
    assert command("-fq", "A", "inline:{a=1}") == 1
    assert capfd.readouterr() == ("1\na\t1\na\t1\n", "")


def test_command_changes(command: Callable[..., int], capfd: pytest.CaptureFixture[str]) -> None:
    """Updates and deletes say nothing when all is well, and why when it is not."""
    assert command("-i", "memory:", text=b"a 1\n") == 0
    assert command("-ir", "memory:", text=b"a 1\na 2\n") == 0
    assert command("-iw", "memory:", text=b"a 1\na 2\n") == 0
    assert capfd.readouterr() == ("", "")
    assert command("-d", "a", "memory:") == 1
    assert command("-d", "-", "memory:", text=b"a\n") == 1
    assert command("-d", "a", "static:x") == 1
    expected = "socketmap-memcache map: fatal: table static:x: delete operation is not supported\n"
    assert capfd.readouterr() == ("", expected)


@pytest.mark.parametrize(
    "arguments,text",
    [
        ([], "usage:"),
        (["-q", "a"], "usage:"),
        (["-x", "static:a"], "option -x not recognized"),
        (["-q"], "option -q requires argument"),
        (["-j", "-q", "a", "static:a"], "option -j of postmap is not supported"),
        (["-q", "a", "-s", "static:a"], "specify only one of -d -i -q or -s"),
        (["static:a"], "making a table from its source file is left to postmap"),
        (["-i", "memory:", "memory:"], "specify only one table with -i"),
        (["-q", "a", "bogus"], "write type:name"),
        (["-q", "a", "fail:x"], "table fail:x: query error: "),
    ],
)
def test_command_refused(
    arguments: list[str], text: str, command: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    """A command that cannot be done says why, and its status is 1."""
    assert command(*arguments) == 1
    output = capfd.readouterr()
    assert output.out == ""
    assert output.err.startswith("socketmap-memcache map: fatal: ")
    assert text in output.err


def test_config_directory(
    command: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The Postfix whose configuration is given says where its proxymap is, or why it cannot."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert command("-c", "/some", "-q", "a", "proxy:btree:/x") == 1
    assert "option -c needs Postfix's postconf: No such file" in capfd.readouterr().err
    postconf = tmp_path / "postconf"
    postconf.write_text(
        '#!/bin/sh\n[ "$*" = "-c /some -xh queue_directory" ] && echo /queue && exit\necho why >&2; exit 1\n'
    )
    postconf.chmod(0o755)
    assert proxy_sockets("/some") == ("/queue/private/proxymap", "/queue/private/proxywrite")
    assert command("-c", "/some", "-q", "a", "static:x") == 0
    assert command("-c", "/none", "-q", "a", "static:x") == 1
    assert capfd.readouterr() == ("x\n", "socketmap-memcache map: fatal: why\n")


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    """The command tells how it is used, and the list of commands has it."""
    assert main(["map", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: socketmap-memcache map [-fv] -q key")
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "look up, list and change entries of tables" in capsys.readouterr().out


def test_broken_pipe(
    command: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """When nobody reads the output any more it ends quietly, with the status that a shell gives for SIGPIPE."""
    reading, writing = os.pipe()
    os.close(reading)
    monkeypatch.setattr(map_command, "STDOUT", writing)
    assert command("-q", "-", "static:x", text=b"a\n") == 141
    os.close(writing)
    assert capfd.readouterr().err == ""


def test_output_error(
    command: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """An output that cannot be written is told."""
    full = os.open("/dev/full", os.O_WRONLY)
    monkeypatch.setattr(map_command, "STDOUT", full)
    assert command("-q", "a", "static:x") == 1
    os.close(full)
    assert "No space left on device" in capfd.readouterr().err


def test_fault(command: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of the program is shown with its traceback."""
    monkeypatch.setattr(Query, "one", lambda _query, _key: fail(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        command("-q", "a", "static:x")


def test_log(command: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Warnings of tables are shown, information with -v, everything with -vv."""
    log = Logger()

    def one(_query: Query, _key: bytes) -> Deferred[int]:
        log.debug("debug")
        log.info("info")
        log.warn("warn")
        try:
            raise TemporaryError("reason")
        except TemporaryError:
            log.failure("failed")
        return succeed(0)

    monkeypatch.setattr(Query, "one", one)
    name = "socketmap-memcache map: "
    assert command("-q", "a", "static:x") == 0
    assert f"{name}warning: warn\n{name}critical: failed: reason\n" in capfd.readouterr().err
    command("-vq", "a", "static:x")
    assert f"{name}info: info\n{name}warning: warn\n" in capfd.readouterr().err
    command("-vvq", "a", "static:x")
    assert f"{name}debug: debug\n{name}info: info\n" in capfd.readouterr().err


def test_interrupted(command: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    """^C during updates ends the input: what was begun is finished, the table closed, and the signal passed on."""
    killed: list[int] = []
    stored: list[tuple[bytes, bytes]] = []

    def read(source: Source) -> Deferred[bytes]:
        if source._stopped:
            return succeed(b"")
        source._waiting = Deferred()
        signal.raise_signal(signal.SIGINT)
        return succeed(b"a 1\n")

    def store(_update: Update, _table: ITable, batch: list[tuple[bytes, bytes]]) -> Deferred[None]:
        stored.extend(batch)
        return succeed(None)

    monkeypatch.setattr(os, "kill", lambda _pid, number: killed.append(number))
    monkeypatch.setattr(Source, "read", read)
    monkeypatch.setattr(Update, "_store", store)
    before = signal.getsignal(signal.SIGINT)
    command("-i", "memory:")
    assert stored == [(b"a", b"1")]
    assert killed == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is before
