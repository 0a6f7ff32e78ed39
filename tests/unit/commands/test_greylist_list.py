"""``list`` and ``stats`` of ``socketmap-memcache greylist``."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from socketmap_memcache.commands import greylist_list
from socketmap_memcache.commands.greylist_display import time_shown
from socketmap_memcache.commands.map_console import FatalError
from socketmap_memcache.errors import PermanentError, TemporaryError

from .greylist_bench import HASH, NOW, Bench, refusing_table

KEY = "t/192.0.2.0/alice@example.com/bob@example.org"
DAY = 24 * 3600
HASHED = f"t/#{'0' * 64}"

TABLE = {
    KEY: f"{NOW - 100},{NOW - 50}",
    "t/192.0.2.0//bob@example.org": f"{NOW - 301},{NOW - 200}",
    "t/198.51.100.0/a/b@x.example/c/d@example.net": f"{NOW - DAY},{NOW - 9}",
    "t/198.51.100.0/plain/e@example.net": f"{NOW - 3 * DAY},{NOW - 3 * DAY}",
    "t/2001:db8:1:2:0:0:0:0/f@example.com/g@example.net": "what",
    "t/192.0.2.0/alice": f"{NOW},{NOW}",
    HASHED: f"{NOW},{NOW}",
    "c/192.0.2.7": f"5,{NOW - 60}",
    "c/198.51.100.9": f"4,{NOW - 60}",
    "c/2001:db8:1:2:0:0:0:3": f"9,{NOW - 36 * DAY}",
    "other/key": "of somebody else",
}


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def filled(config: str = "") -> Bench:
    bench = Bench(config)
    bench.put(TABLE)
    return bench


def test_list() -> None:
    """Triplets and clients come in columns, with their state, the times and the count."""
    lines = filled().run("list").splitlines()
    assert lines[0].split() == ["STATE", "FIRST", "SEEN", "LAST", "SEEN", "COUNT", "CLIENT", "SENDER", "RECIPIENT"]
    assert sorted(" ".join(line.split()) for line in lines[1:]) == [
        "counted - 2027-01-15 07:59:00 4 198.51.100.9 - -",
        "damaged - - - 2001:db8:1:2:0:0:0:0 f@example.com g@example.net",
        "expired - 2026-12-10 08:00:00 9 2001:db8:1:2:0:0:0:3 - -",
        "expired 2027-01-12 08:00:00 2027-01-12 08:00:00 - 198.51.100.0 plain e@example.net",
        "may pass 2027-01-15 07:54:59 2027-01-15 07:56:40 - 192.0.2.0 <> bob@example.org",
        "passed 2027-01-14 08:00:00 2027-01-15 07:59:51 - 198.51.100.0 a/b@x.example c/d@example.net",
        "waiting 2027-01-15 07:58:20 2027-01-15 07:59:10 - 192.0.2.0 alice@example.com bob@example.org",
        f"waiting 2027-01-15 08:00:00 2027-01-15 08:00:00 - {HASHED[2:]} - -",
        "waiting 2027-01-15 08:00:00 2027-01-15 08:00:00 - 192.0.2.0/alice - -",
        "whitelisted - 2027-01-15 07:59:00 5 192.0.2.7 - -",
    ]
    columns = {line.index("192.0.2.0") for line in lines if " 192.0.2.0 " in line}
    assert columns == {lines[0].index("CLIENT")}


def test_list_nothing() -> None:
    """A table without a row gives no output, not even a heading."""
    assert Bench().run("list") == ""


def test_list_json() -> None:
    """With --json, each row is an object on a line of its own, with what is known of it."""
    rows = [json.loads(line) for line in filled().run("list", "--json").splitlines()]
    assert {
        "type": "triplet",
        "key": KEY,
        "client": "192.0.2.0",
        "sender": "alice@example.com",
        "recipient": "bob@example.org",
        "state": "waiting",
        "first": NOW - 100,
        "last": NOW - 50,
    } in rows
    client = {"client": "192.0.2.7", "state": "whitelisted", "count": 5, "last": NOW - 60}
    assert {"type": "client", "key": "c/192.0.2.7", **client} in rows
    assert {"type": "triplet", "key": HASHED, "state": "waiting", "first": NOW, "last": NOW} in rows
    assert [row["state"] for row in rows if "last" not in row] == ["damaged"]


@pytest.mark.parametrize(
    "arguments,found",
    [
        (["--client", "192.0.2.99"], {"<> bob@example.org", "alice@example.com bob@example.org"}),
        (["--client", "192.0.2.7"], {"<> bob@example.org", "alice@example.com bob@example.org", "192.0.2.7"}),
        (["--client", "198.51.100.0/23"], {"a/b@x.example c/d@example.net", "plain e@example.net", "198.51.100.9"}),
        (["--client", "2001:db8::/32"], {"f@example.com g@example.net", "2001:db8:1:2:0:0:0:3"}),
        (["--sender", "ALICE+other@example.com"], {"alice@example.com bob@example.org"}),
        (["--sender", "@Example.COM"], {"alice@example.com bob@example.org", "f@example.com g@example.net"}),
        (["--sender", "<>"], {"<> bob@example.org"}),
        (["--sender", ""], {"<> bob@example.org"}),
        (["--sender", "A?ice@*", "--recipient", "*@example.*"], {"alice@example.com bob@example.org"}),
        (["--recipient", "Bob@example.org"], {"<> bob@example.org", "alice@example.com bob@example.org"}),
        (["--recipient", "bob+x@example.org"], set()),
    ],
)
def test_list_filtered(arguments: list[str], found: set[str]) -> None:
    """A list can be of a client or its network, of a sender or recipient, a domain or pattern; of several, all hold."""
    bench = filled()
    rows = [line.split() for line in bench.run("list", *arguments).splitlines()[1:]]
    assert {row[-3] if row[-1] == "-" else " ".join(row[-2:]) for row in rows} == found
    assert "2 entries have hashed keys" in bench.stderr


def test_list_filter_hosts() -> None:
    """Where hosts are told apart, so does the list."""
    bench = Bench("greylist_lookup_by_host = yes\n")
    bench.put({"t/192.0.2.7/32/a@b/c@d": f"{NOW},{NOW}", "t/192.0.2.8/32//c@d": f"{NOW},{NOW}"})
    assert bench.run("list", "--client", "192.0.2.7").split()[-3:] == ["192.0.2.7/32", "a@b", "c@d"]
    assert len(bench.run("list", "--client", "192.0.2.0/24").splitlines()) == 3


@pytest.mark.parametrize("client", ["mx.example.com", "192.0.2.0/99", "unknown\x1b[2J"])
def test_list_bad_client(client: str) -> None:
    """A client that is neither an address nor a network is refused, and shown without control characters."""
    with pytest.raises(FatalError, match="not an IP") as caught:
        filled().run("list", "--client", client)
    assert str(caught.value).isprintable()


def test_list_strange_keys() -> None:
    """Whatever bytes are in a table do a terminal no harm; a network that is none matches no network."""
    bench = Bench()
    bench.put({"t/evil\x1b[2J/a\u202eb@c/d@\u00fc": f"{NOW},{NOW}"})
    output = bench.run("list")
    assert output.replace("\n", "").isprintable()
    assert "evil\\x1b[2j" in output
    assert "d@\u00fc" in output
    assert bench.run("list", "--client", "192.0.2.0/24") == ""
    assert json.loads(bench.run("list", "--json"))["client"] == "evil\\x1b[2j"


def test_list_privacy() -> None:
    """Hashed keys are listed as they are; a part of them cannot be searched for."""
    bench = Bench("greylist_privacy = yes\n")
    bench.put({f"t/{HASH}": f"{NOW},{NOW}"})
    assert bench.run("list").split()[-3:] == [HASH, "-", "-"]
    with pytest.raises(FatalError, match="greylist_privacy"):
        bench.run("list", "--sender", "a@b")


def test_list_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has been found is printed before the end of the table is reached."""
    monkeypatch.setattr(greylist_list, "BLOCK_SIZE", 300)
    bench = filled()
    assert len(bench.run("list").splitlines()) == 11
    assert bench.output.writes > 2


@pytest.mark.parametrize("operation", ["list", "stats"])
def test_not_walkable(operation: str) -> None:
    """A table that cannot be walked through is an error that says why, and what can be done."""
    error = PermanentError("memcache:/x.cf: first/next support requires a backup database")
    with pytest.raises(FatalError, match="requires a backup.*give it a backup.*show CLIENT"):
        Bench(table=refusing_table(error)).run(operation)


def test_walk_fails() -> None:
    """A table that fails is its own error."""
    with pytest.raises(TemporaryError, match="disk"):
        Bench(table=refusing_table(TemporaryError("disk"))).run("list")


def test_stats() -> None:
    """The statistics count triplets and clients by their state, and tell the first and the last time."""
    lines = [line.split(maxsplit=2) for line in filled().run("stats").splitlines()]
    assert lines == [
        ["triplets", "7"],
        ["waiting", "3"],
        ["may", "pass", "1"],
        ["passed", "1"],
        ["expired", "1"],
        ["damaged", "1"],
        ["clients", "3"],
        ["counted", "1"],
        ["whitelisted", "1"],
        ["expired", "1"],
        ["first", "seen", "2027-01-12 08:00:00"],
        ["last", "seen", "2027-01-15 08:00:00"],
    ]


def test_stats_json() -> None:
    """With --json, the statistics are one object, which has all states."""
    assert json.loads(Bench().run("stats", "--json")) == {
        "triplets": {"waiting": 0, "may pass": 0, "passed": 0, "expired": 0, "damaged": 0},
        "clients": {"counted": 0, "whitelisted": 0, "expired": 0, "damaged": 0},
        "oldest": None,
        "newest": None,
    }
    assert json.loads(filled().run("stats", "--json"))["oldest"] == NOW - 3 * DAY


def test_recipient_access(tmp_path: Path) -> None:
    """A triplet has the state of its recipient's own delay, where the key has the recipient; ``skip`` is none."""
    access = tmp_path / "recipients"
    access.write_text("fast@example.org delay=60\nskip@example.org skip\n")
    bench = Bench(f"greylist_recipient_access = texthash:{access}\n")
    times = f"{NOW - 100},{NOW - 70}"
    bench.put({f"t/192.0.2.0//{name}@example.org": times for name in ("fast", "skip", "other")} | {HASHED: times})
    rows = [json.loads(line) for line in bench.run("list", "--json").splitlines()]
    assert {row.get("recipient"): row["state"] for row in rows} == {
        "fast@example.org": "may pass",
        "skip@example.org": "passed",
        "other@example.org": "waiting",
        None: "waiting",
    }
    assert "may pass, first seen " in bench.run("show", "192.0.2.7", "<>", "fast@example.org")
    assert json.loads(bench.run("stats", "--json"))["triplets"] == {
        "waiting": 2,
        "may pass": 1,
        "passed": 1,
        "expired": 0,
        "damaged": 0,
    }


def test_recipient_access_fails() -> None:
    """A table for recipients that fails is an error; where no recipient is to be looked up it is not asked."""
    bench = Bench("greylist_recipient_access = fail:maintenance\n")
    bench.put({"c/192.0.2.7": f"5,{NOW - 60}", HASHED: f"{NOW},{NOW}"})
    assert "whitelisted         1" in bench.run("stats")
    bench.put({KEY: f"{NOW - 100},{NOW - 50}"})
    assert len(bench.run("list", "--sender", "x@example.com")) == 0
    for operation in ("list", "stats"):
        with pytest.raises(TemporaryError):
            bench.run(operation)


def test_auto_whitelisting_off() -> None:
    """Without auto-whitelisting no client is whitelisted."""
    assert "whitelisted         0" in filled("greylist_auto_whitelist_clients = 0\n").run("stats")


def test_time_of_no_calendar() -> None:
    """A time that no calendar has is shown as a number."""
    assert time_shown(10**18) == "1000000000000000000"
