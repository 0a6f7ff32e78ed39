"""``show``, ``release`` and ``forget`` of ``socketmap-memcache greylist``."""

from __future__ import annotations

import pytest

from socketmap_memcache.commands.greylist_display import time_shown
from socketmap_memcache.commands.map_console import FatalError
from socketmap_memcache.errors import ConfigurationError, PermanentError

from .greylist_bench import HASH, NOW, Bench, picky_table, refusing_table

TRIPLET = ("192.0.2.7", "Alice+x@Example.com", "bob@example.org")
KEY = "t/192.0.2.0/alice@example.com/bob@example.org"
DAY = 24 * 3600

TABLE = {
    KEY: f"{NOW - 100},{NOW - 50}",
    "t/192.0.2.0//bob@example.org": f"{NOW - 301},{NOW - 200}",
    "t/198.51.100.0/a/b@x.example/c/d@example.net": f"{NOW - DAY},{NOW - 9}",
    "t/198.51.100.0/plain/e@example.net": f"{NOW - 3 * DAY},{NOW - 3 * DAY}",
    "c/192.0.2.7": f"5,{NOW - 60}",
    "c/198.51.100.9": f"4,{NOW - 60}",
    "other/key": "of somebody else",
}


def test_show_unknown() -> None:
    """Of a triplet that was never seen, the keys are shown, and what will happen to it."""
    output = Bench().run("show", *TRIPLET)
    assert output.splitlines() == [
        f"triplet  {KEY}",
        "         never seen, or not any more",
        "client   c/192.0.2.7",
        "         never seen, or not any more",
        "now      is deferred: new (whitelists aside: see greylist test)",
    ]


def test_show_known() -> None:
    """Of a known triplet and client, what is stored is shown."""
    bench = Bench()
    bench.put({KEY: f"{NOW - 100},{NOW - 50}", "c/192.0.2.7": f"4,{NOW - 60}"})
    lines = bench.run("show", *TRIPLET).splitlines()
    assert lines[1].strip() == f"waiting, first seen {time_shown(NOW - 100)}, last seen {time_shown(NOW - 50)}"
    assert lines[3].strip() == f"counted, 4 counted, last {time_shown(NOW - 60)}"
    assert lines[4].startswith("now      is deferred: early-retry (200s missing)")


def test_show_damaged() -> None:
    """A record that cannot be read is shown, and counts as none."""
    bench = Bench()
    bench.put({KEY: "\x1bwhat", "c/192.0.2.7": "5"})
    output = bench.run("show", *TRIPLET)
    assert output.count("damaged: not a record") == 2
    assert "is deferred: new" in output
    assert "\x1b" not in output


def test_show_recipient_access() -> None:
    """What the recipient's own entry says counts."""
    config = "greylist_recipient_access = inline:{bob@example.org=delay=60,example.net=skip}\n"
    bench = Bench(config.replace("{", "{{ ").replace("delay=60,", "delay=60 }, { ").replace("skip}", "skip }}"))
    bench.put({KEY: f"{NOW - 100},{NOW - 50}"})
    output = bench.run("show", *TRIPLET)
    assert "may pass" in output
    assert "now      passes: triplet found" in output
    assert bench.run("show", *TRIPLET[:2], "x@example.net") == "now      passes: recipient access\n"


def test_show_bad_access() -> None:
    """A table for recipients that cannot be opened is an error of the configuration."""
    with pytest.raises(ConfigurationError, match="unknown table type"):
        Bench("greylist_recipient_access = nope:x\n").run("show", *TRIPLET)


def test_show_bad_client() -> None:
    """A client has to be an IP address."""
    with pytest.raises(FatalError, match="mx.example.com: not an IP address"):
        Bench().run("show", "mx.example.com", *TRIPLET[1:])


def test_release_unknown() -> None:
    """A triplet that was never seen is stored as one that has passed, for as long as such ones are kept."""
    bench = Bench()
    assert bench.run("release", *TRIPLET) == f"released: {KEY} (was not known)\n"
    assert bench.get(KEY) == f"{NOW - 300},{NOW}"
    assert "now      passes: triplet found" in bench.run("show", *TRIPLET)
    bench.reactor.advance(35 * DAY)
    assert bench.get(KEY)
    bench.reactor.advance(2)
    assert bench.get(KEY) is None


@pytest.mark.parametrize(
    "before,first",
    [
        (f"{NOW - 100},{NOW - 50}", NOW - 300),
        (f"{NOW - 400},{NOW - 50}", NOW - 400),
        (f"{NOW - 3 * DAY},{NOW - 3 * DAY}", NOW - 300),
        (f"{NOW - 3 * DAY},{NOW - DAY}", NOW - 3 * DAY),
        ("what", NOW - 300),
    ],
)
def test_release_known(before: str, first: int) -> None:
    """A known triplet keeps the time when it was first seen, if that is early enough, and has passed then."""
    bench = Bench()
    bench.put({KEY: before})
    assert bench.run("release", *TRIPLET) == f"released: {KEY} (was known)\n"
    assert bench.get(KEY) == f"{first},{NOW}"


@pytest.mark.parametrize("access,delay", [("delay=1h", 3600), ("delay=60", 300), ("skip", 300), ("greylist", 300)])
def test_release_delay(access: str, delay: int) -> None:
    """A triplet whose recipient has a longer delay passes too."""
    bench = Bench(f"greylist_recipient_access = static:{access}\n")
    bench.run("release", *TRIPLET)
    assert bench.get(KEY) == f"{NOW - delay},{NOW}"


def test_release_refused() -> None:
    """A key that the table does not take is an error."""
    bench = Bench(table=refusing_table(PermanentError("read-only")))
    with pytest.raises(PermanentError, match="read-only"):
        bench.run("release", *TRIPLET)
    bench = Bench(table=picky_table())
    with pytest.raises(FatalError, match="does not take the key t/192.0.2.0/"):
        bench.run("release", *TRIPLET)


def test_forget_triplet() -> None:
    """A triplet is deleted, and its client's record; what was not there is told."""
    bench = Bench()
    bench.put(TABLE)
    assert bench.run("forget", *TRIPLET) == f"forgotten: c/192.0.2.7\nforgotten: {KEY}\n"
    assert bench.get(KEY) is None
    assert bench.run("forget", *TRIPLET) == f"not known: c/192.0.2.7\nnot known: {KEY}\n"
    assert bench.run("forget", "192.0.2.7", "<>", "bob@example.org").endswith(
        "forgotten: t/192.0.2.0//bob@example.org\n"
    )


def test_forget_client() -> None:
    """Of a client alone, all triplets of its network are deleted, and its own record."""
    bench = Bench()
    bench.put(TABLE)
    lines = bench.run("forget", "198.51.100.77").splitlines()
    assert lines[0] == "not known: c/198.51.100.77"
    assert len(lines) == 3
    assert bench.get("c/198.51.100.9")
    assert bench.get(KEY)
    assert "198.51.100.0" not in bench.run("list")
    assert bench.stderr == ""


def test_forget_hashed() -> None:
    """Triplets with hashed keys stay when a client alone is given, and there is a warning of them."""
    bench = Bench()
    hashed = (f"t/{HASH}", f"t/#{'0' * 64}", f"c/{HASH}")
    bench.put(TABLE | dict.fromkeys(hashed, f"{NOW},{NOW}"))
    assert HASH not in bench.run("forget", "192.0.2.7")
    assert "2 entries have hashed keys and may be meant too; forget CLIENT SENDER RECIPIENT" in bench.stderr
    assert bench.get(f"t/{HASH}")


def test_forget_stopped() -> None:
    """After ^C no more is deleted."""
    bench = Bench()
    bench.put(TABLE)
    bench.session.stopped = True
    assert bench.run("forget", "192.0.2.7") == "forgotten: c/192.0.2.7\n"


def test_forget_privacy() -> None:
    """With hashed keys a triplet can be forgotten, and a client's record, but not all triplets of a client."""
    bench = Bench("greylist_privacy = yes\n")
    bench.run("release", *TRIPLET)
    output = bench.run("forget", *TRIPLET)
    assert len(bench.run("list")) == 0
    assert "forgotten: t/" in output
    with pytest.raises(FatalError, match="hashed"):
        bench.run("forget", TRIPLET[0])
    assert bench.output.text.count("not known: c/") == 2


def test_forget_half() -> None:
    """A sender needs a recipient."""
    with pytest.raises(FatalError, match="give both"):
        Bench().run("forget", *TRIPLET[:2])
