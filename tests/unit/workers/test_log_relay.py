from __future__ import annotations

import contextlib
import io
import os
from itertools import pairwise
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import LogEvent, Logger, LogLevel, LogPublisher, capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from socketmap_memcache.workers import log_relay
from socketmap_memcache.workers.log_relay import LinePipe, LogReader, sending_observer


def sent(*texts: str) -> bytes:
    file = io.BytesIO()
    log = Logger(observer=sending_observer(file.write))
    for text in texts:
        log.warn("{text}", text=text)
    return file.getvalue()


class TestRelay(SynchronousTestCase):
    def setUp(self) -> None:
        self.events: list[LogEvent] = []
        self.reader = LogReader(self.events.append)

    def texts(self) -> list[str]:
        return [formatEvent(event) for event in self.events]

    def test_event(self) -> None:
        """An event arrives with its text, its level, its source and its time."""
        file = io.BytesIO()
        log = Logger("somewhere", observer=sending_observer(file.write))
        log.error("no {what} within {seconds:g} s: {reason}", what="way", seconds=2.0, reason=ValueError("{closed}"))
        self.reader.feed(file.getvalue())
        (event,) = self.events
        assert formatEvent(event) == "no way within 2 s: {closed}"
        assert event["log_level"] is LogLevel.error
        assert event["log_namespace"] == "somewhere"
        assert isinstance(event["log_time"], float)

    def test_failure(self) -> None:
        """A failure arrives with its traceback."""
        file = io.BytesIO()
        publisher = LogPublisher(sending_observer(file.write))
        Logger(observer=publisher).failure("it failed", Failure(ValueError("unforeseen")))
        self.reader.feed(file.getvalue())
        (event,) = self.events
        text = formatEvent(event)
        assert text.startswith("it failed\nTraceback")
        assert "ValueError: unforeseen" in text

    def test_other_fields(self) -> None:
        """An event of some library that has something else than text where text should be arrives, too."""
        file = io.BytesIO()
        fields = {"log_namespace": "library", "log_system": Path("place"), "log_time": 1.5}
        sending_observer(file.write)({"log_format": "old", "log_level": LogLevel.info, **fields})
        self.reader.feed(file.getvalue())
        (event,) = self.events
        assert (formatEvent(event), event["log_system"], event["log_time"]) == ("old", "place", 1.5)

    def test_debugging(self) -> None:
        """What is for debugging is not sent."""
        file = io.BytesIO()
        Logger(observer=sending_observer(file.write)).debug("detail")
        assert file.getvalue() == b""

    @given(st.lists(st.text(), max_size=5), st.lists(st.integers(0, 300), max_size=5))
    def test_any_chunks(self, texts: list[str], cuts: list[int]) -> None:
        """Events arrive whole and in order, in whatever chunks they are read."""
        self.setUp()
        data = sent(*texts)
        places = [0, *sorted(cuts), len(data)]
        for begin, end in pairwise(places):
            self.reader.feed(data[begin:end])
        assert self.texts() == texts
        self.reader.end()
        assert len(self.events) == len(texts)

    @given(st.binary())
    def test_garbage(self, data: bytes) -> None:
        """What is no event, such as the last words of an interpreter that crashes, is logged as it is."""
        with capturedLogs() as logged:
            self.reader.feed(data + b"\nSegmentation fault\n[1]")
            self.reader.end()
        texts = [formatEvent(event) for event in logged]
        assert texts[-2:] == ["a worker says: Segmentation fault", "a worker says: [1]"]

    def test_endless(self) -> None:
        """A line without an end is not kept for ever."""
        self.patch(log_relay, "EVENT_LIMIT", 1000)
        with capturedLogs() as logged:
            self.reader.feed(b"x" * 1001)
        assert formatEvent(logged[0]) == "a log event of a worker is longer than 1000 bytes; left out"
        self.reader.feed(sent("next"))
        assert self.texts() == ["next"]


class TestPipe(SynchronousTestCase):
    def setUp(self) -> None:
        self.patch(log_relay, "PIPE_SIZE", 4096)
        self.reading, self.writing = os.pipe()
        self.addCleanup(os.close, self.writing)
        self.pipe = LinePipe(self.writing)

    def read(self) -> list[bytes]:
        return os.read(self.reading, 1_000_000).splitlines()

    def fill(self) -> int:
        """Write lines until one is left out; return how many were not."""
        for number in range(1_000_000):
            self.pipe.write(b"%07d%01016d\n" % (number, 0))
            if self.pipe._lost:
                return number
        raise AssertionError("it has no end")

    def test_full(self) -> None:
        """Lines that the reader does not take are left out, and the next one after them says how many they were."""
        self.addCleanup(os.close, self.reading)
        count = self.fill()
        self.pipe.write(b"second\n")
        assert len(self.read()) == count
        self.pipe.write(b"third\n")
        self.pipe.write(b"fourth\n")
        assert self.read() == [b"2 lines of the log are lost: it was not read", b"third", b"fourth"]

    def test_long(self) -> None:
        """A line of which only a part fits in is finished before the next one."""
        self.addCleanup(os.close, self.reading)
        self.pipe.write(b"x" * 1_000_000 + b"\n")
        self.pipe.write(b"lost\n")
        received = b""
        while b"\n" not in received:
            received += os.read(self.reading, 10_000_000)
            self.pipe.write(b"next\n")
        os.set_blocking(self.reading, False)
        with contextlib.suppress(BlockingIOError):
            received += os.read(self.reading, 10_000_000)
        long, notice, *others = received.splitlines()
        assert long == b"x" * 1_000_000
        assert notice.endswith(b" lines of the log are lost: it was not read")
        assert set(others) == {b"next"}

    def test_no_reader(self) -> None:
        """That the parent is gone is no error."""
        os.close(self.reading)
        self.pipe.write(b"line\n")
