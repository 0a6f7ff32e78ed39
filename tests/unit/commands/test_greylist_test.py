"""``test`` of ``socketmap-memcache greylist``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from socketmap_memcache.commands import greylist_test
from socketmap_memcache.commands.greylist_display import time_shown
from socketmap_memcache.commands.map_console import FatalError
from socketmap_memcache.errors import ConfigurationError, TemporaryError

from .greylist_bench import NOW, Bench, refusing_table

KEY = "t/192.0.2.0/alice@example.com/bob@example.org"
DAY = 24 * 3600


@pytest.fixture
def request_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A file that stands for standard input; it is opened here, so it may be filled later."""
    path = tmp_path / "request"
    path.touch()
    descriptor = os.open(path, os.O_RDONLY)
    monkeypatch.setattr(greylist_test, "STDIN", descriptor)
    yield path
    os.close(descriptor)


REQUEST = (
    "client_address=192.0.2.7\nclient_name=mx.example.com\nsender=Alice+x@Example.com\nrecipient=bob@example.org\n"
)


def test_test(request_of: Path) -> None:
    """A request is decided on, and every step is shown; nothing is stored."""
    bench = Bench("greylist_action = DEFER\ngreylist_text = wait %s\n")
    bench.put({KEY: f"{NOW - 100},{NOW - 50}"})
    request_of.write_text(REQUEST)
    output = bench.run("test")
    assert output.splitlines() == [
        "answer     DEFER wait 200",
        "decision   greylist",
        "reason     early-retry (200s missing)",
        f"time       {time_shown(NOW)}",
        "client     192.0.2.7, in triplets 192.0.2.0",
        "asked      authenticated client: no",
        "delay      300 s",
        f"triplet    {KEY}",
        f"           waiting, first seen {time_shown(NOW - 100)}, last seen {time_shown(NOW - 50)}",
        "client     c/192.0.2.7",
        "           never seen, or not any more",
        f"would store {KEY} = {NOW - 100},{NOW} for {2 * DAY - 99} s",
    ]
    assert bench.get(KEY) == f"{NOW - 100},{NOW - 50}"


def test_test_time(request_of: Path) -> None:
    """policy_test_time sets the time; what comes after the empty line is not read."""
    bench = Bench("greylist_never_auto_whitelist = /dev/null\n")
    bench.put({KEY: f"{NOW - 100},{NOW - 50}", "c/192.0.2.7": f"4,{NOW - DAY}"})
    request_of.write_text(f"request=smtpd_access_policy\r\n{REQUEST}policy_test_time={NOW + 200}\r\n\r\nmore\n")
    output = bench.run("test")
    assert "answer     PREPEND X-Greylist: delayed 300 seconds" in output
    assert f"time       {time_shown(NOW + 200)}" in output
    assert f"would store {KEY} = {NOW - 100},{NOW + 200} for" in output
    assert f"would store c/192.0.2.7 = 5,{NOW + 200} for" in output


def test_test_exempt(request_of: Path) -> None:
    """Of a request that is not greylisted, the list that says so is shown, and no key."""
    request_of.write_text(REQUEST + "sasl_username=alice\n")
    lines = Bench().run("test").splitlines()
    assert lines[:3] == ["answer     DUNNO", "decision   pass", "reason     authenticated client"]
    assert lines[-1] == "asked      authenticated client: yes"
    request_of.write_text("client_address=unknown\x1b\nclient_name=x\nsender=\nrecipient=a@b\n")
    lines = Bench().run("test").splitlines()
    assert [line.split(maxsplit=1)[0] for line in lines] == ["answer", "decision", "reason", "time"]


def test_test_never_auto_whitelisted(request_of: Path, tmp_path: Path) -> None:
    """It is shown that a client is never auto-whitelisted, and that training mode lets a mail pass."""
    never = tmp_path / "never"
    never.write_text("192.0.2.0/24\n")
    request_of.write_text(REQUEST)
    lines = Bench(f"greylist_never_auto_whitelist = {never}\ngreylist_training_mode = yes\n").run("test").splitlines()
    assert lines[:2] == ["answer     DUNNO", "decision   greylist (training mode)"]
    assert "client     is never auto-whitelisted" in lines


def test_test_failing_table(request_of: Path) -> None:
    """When the table fails, what the service would answer is shown, and the error."""
    request_of.write_text(REQUEST)
    bench = Bench("greylist_fail_action = DEFER later\n", refusing_table(TemporaryError("disk")))
    with pytest.raises(TemporaryError, match="disk"):
        bench.run("test")
    assert bench.output.text == "answer     DEFER later\nreason     no store\n"


@pytest.mark.parametrize(
    "text,error",
    [
        ("nonsense\n", "not name=value"),
        ("request=other\n", "request=smtpd_access_policy is missing"),
        ("policy_test_time=soon\n", "policy_test_time=soon: not a number"),
        (f"policy_test_time={'9' * 12}\n", "not a number"),
    ],
)
def test_test_no_request(text: str, error: str, request_of: Path) -> None:
    """What is no request is refused."""
    request_of.write_text(text)
    with pytest.raises(FatalError, match=error):
        Bench().run("test")


def test_test_bad_list() -> None:
    """A list that cannot be opened is an error of the configuration."""
    with pytest.raises(ConfigurationError, match="/nope"):
        Bench("greylist_client_whitelist = /nope\n").run("test")
