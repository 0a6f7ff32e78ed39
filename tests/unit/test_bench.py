"""What the benchmarks make of their measurements, and what they measure with."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import attrs
import pytest
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from benchmarks import bench as bench_module
from benchmarks.bench import PARTS, parse_options
from benchmarks.cold import zipf
from benchmarks.fixed_reply import FixedReply
from benchmarks.load import Result
from benchmarks.rows import Row, number, table
from benchmarks.session import Bench, fastest, least_cpu, quickest, rates
from benchmarks.slow_server import SlowReply
from benchmarks.triplets import write_triplets

ROOT = Path(__file__).parents[2]
FAST = Result("fast", 64, 2000.0, 10.0, 20.0, 30.0)
SLOW = Result("slow", 64, 1000.0, 5.0, 40.0, 60.0)


@pytest.mark.parametrize(
    "value, at_most, verdict",
    [
        (0.9, False, "MISSED"),
        (1.0, False, "ok"),
        (2.0, False, "aim"),
        (2.1, True, "MISSED"),
        (2.0, True, "ok"),
        (1.0, True, "aim"),
        (None, False, "skipped"),
    ],
)
def test_verdict(value: float | None, at_most: bool, verdict: str) -> None:
    """A figure meets its mark, or its aim, where it is just that or better; better may be more or less."""
    mark, aim = (2.0, 1.0) if at_most else (1.0, 2.0)
    assert Row("it", value, mark=mark, aim=aim, at_most=at_most).verdict == verdict


def test_no_aim() -> None:
    """Without an aim a mark can be met, and without a mark there is nothing to meet."""
    assert Row("it", 3.0, mark=1.0).verdict == "ok"
    assert Row("it", 3.0).verdict == ""


def test_table() -> None:
    """The table has a line for each row: marks, figure and verdict, or why there is no figure."""
    rows = [
        Row("hits", 0.876, " times", "10/s against 11/s", 0.65, 1.0),
        Row("memory", 39.94, " MB", mark=45, at_most=True),
        Row("descriptors", None, behind="too few"),
    ]
    head, *lines = [" ".join(line.split()) for line in table(rows)]
    assert head == "mark aim measured"
    assert lines == [
        "hits >= 0.65 >= 1 0.88 times ok 10/s against 11/s",
        "memory <= 45 39.9 MB ok",
        "descriptors - skipped too few",
    ]


def test_number() -> None:
    """Figures have about three digits."""
    assert [number(value) for value in (0.456, -0.456, 45.67, 456.7, 45678.9)] == [
        "0.46",
        "-0.46",
        "45.7",
        "457",
        "45,679",
    ]


def test_record() -> None:
    """What is written as JSON has all that is known of a row, and its verdict."""
    row = Row("it", 1.5, mark=1.0)
    assert json.loads(json.dumps(row.record())) == {**attrs.asdict(row), "verdict": "ok"}


def test_in_turn() -> None:
    """Sides are measured in turn, each as often as there are rounds, and everything is reported as it comes."""
    reported: list[Result] = []
    bench = Bench(1.0, 3, 10, 10, 10, 10, reported.append)
    assert bench.in_turn(lambda: FAST, lambda: SLOW) == [[FAST] * 3, [SLOW] * 3]
    assert reported == [FAST, SLOW] * 3


def test_best() -> None:
    """The best of several measurements is that with most look-ups, the shortest time, or the least work."""
    native = Result("native", 1, 500.0)
    assert fastest([SLOW, FAST, native]) is FAST
    assert quickest([SLOW, FAST, native]) == 5.0
    assert least_cpu([SLOW, FAST, native]) == 30.0
    assert rates(FAST, SLOW) == "2,000/s against 1,000/s"


def test_zipf() -> None:
    """The n-th key is drawn an n-th part as often as the first, and the draw is the same each time."""
    drawn = Counter(zipf(100, 20_000))
    first = drawn["user0@example.com"]
    assert drawn["user1@example.com"] == pytest.approx(first / 2, rel=0.1)
    assert drawn["user9@example.com"] == pytest.approx(first / 10, rel=0.2)
    assert zipf(100, 50) == zipf(100, 50)


def test_triplets(tmp_path: Path) -> None:
    """Triplets are different clients, senders and recipients; none of one name is among those of another."""
    lines = [write_triplets(tmp_path / name, 200, name).read_text().split("\n")[:-1] for name in ("one", "two")]
    assert len({*lines[0], *lines[1]}) == 400
    assert all(len(line.split()) == 3 for line in lines[0])


class TestFixedReply:
    def received(self, *chunks: bytes) -> bytes:
        """Return what is sent for chunks of requests."""
        sent: list[bytes] = []
        client = FixedReply()
        client.transport = SimpleNamespace(socket=SimpleNamespace(send=sent.append))  # type: ignore[assignment]
        for chunk in chunks:
            client.dataReceived(chunk)
        return b"".join(sent)

    def test_reply(self) -> None:
        """Each netstring gets one and the same reply, which is a netstring itself."""
        reply = self.received(b"7:bench a,")
        length, _, payload = reply.partition(b":")
        assert int(length) == len(payload) - 1
        assert payload.startswith(b"OK ")
        assert self.received(b"7:bench a,7:bench b,") == 2 * reply

    def test_chunks(self) -> None:
        """A netstring that comes in pieces gets its reply when it is whole."""
        assert self.received(b"7", b":ben", b"ch a", b",7:bench b") == self.received(b"7:bench a,")


def test_slow_reply() -> None:
    """A slow reply comes after its time, and not to a client that has left."""
    clock, transport = Clock(), StringTransport()
    client = SlowReply(clock, 0.02)
    client.makeConnection(transport)
    client.dataReceived(b"6:slow a,")
    clock.advance(0.01)
    assert transport.value() == b""
    clock.advance(0.01)
    assert transport.value() == b"8:OK found,"
    client.dataReceived(b"6:slow a,")
    transport.connected = False
    clock.advance(0.02)
    assert transport.value() == b"8:OK found,"


def test_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A run prints what its parts report and the table of their rows, and writes both as JSON."""

    def part(bench: Bench) -> Iterator[Row]:
        bench.report(FAST)
        yield Row("it", 1.5, mark=bench.seconds)

    monkeypatch.setattr(bench_module, "PARTS", {"one": part, "other": part})
    written = tmp_path / "results.json"
    assert bench_module.main(["--only", "other", "--seconds", "1", "--json", str(written)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "fast 64 2,000 10.0 20.0 30.0" in lines
    assert lines[-1] == "it >= 1 1.50 ok"
    record = json.loads(written.read_text())
    assert record["results"] == [attrs.asdict(FAST)]
    assert [(part, rows[0]["verdict"]) for part, rows in record["rows"].items()] == [("other", "ok")]


def test_failed_part(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """When a part of the run fails, the table says so, and has what that part and the others have measured."""

    def broken(_: Bench) -> Iterator[Row]:
        yield Row("before", 1.5)
        raise RuntimeError("nobody answers\nTraceback")

    monkeypatch.setattr(bench_module, "PARTS", {"one": broken, "other": lambda _: [Row("it", 2.5)]})
    written = tmp_path / "results.json"
    assert bench_module.main(["--json", str(written)]) == 1
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[-3:] == ["before 1.50", "one has failed - skipped nobody answers", "it 2.50"]
    assert list(json.loads(written.read_text())["rows"]) == ["one", "other"]


def test_commands() -> None:
    """The options of ``make bench`` that are shown can be given."""
    for file in ("docs/speed.rst", "Makefile"):
        shown = re.findall(r"bench.*ARGS=\"(.+?)\"", (ROOT / file).read_text())
        assert shown
        for arguments in shown:
            parse_options(arguments.split())


def test_documented() -> None:
    """docs/speed.rst names all parts of a run, and no others."""
    text = (ROOT / "docs/speed.rst").read_text()
    _, _, rows = text.partition("\npart ")
    named = [line.split()[0] for line in rows.split("\n=")[1].splitlines()[1:] if line[:1].strip()]
    assert sorted(named) == sorted(PARTS)
