"""Whitelists in files: what is read, when it is read again, and what happens if it cannot be."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from socketmap_memcache.config.parameters import Parameters
from socketmap_memcache.config.syntax import parse
from socketmap_memcache.errors import ConfigurationError
from socketmap_memcache.policies.greylist import whitelist_match, whitelists
from socketmap_memcache.policies.greylist.whitelists import (
    CHECK_INTERVAL,
    SET_ASIDE,
    ClientWhitelist,
    RecipientWhitelist,
    SenderWhitelist,
    open_whitelist,
)

NOW = 1_000_000_000.0
HOUR = 3600.0


class Threads:
    """Calls a function when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Callable[[], Any], Deferred[Any]]] = []

    def __call__(self, function: Callable[[], Any]) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()
        self.waiting.append((function, done))
        return done

    def run(self) -> None:
        function, done = self.waiting.pop()
        try:
            done.callback(function())
        except Exception:  # noqa: BLE001 (as a thread pool does)
            done.errback(Failure())


class WhitelistCase(TestCase):
    """Has a directory, a clock, and a log."""

    def setUp(self) -> None:
        made = TemporaryDirectory()
        self.addCleanup(made.cleanup)
        self.directory = Path(made.name)
        self.clock = Clock()
        self.threads = Threads()
        stack = ExitStack()
        self.addCleanup(stack.close)
        self.logged = stack.enter_context(capturedLogs())

    @property
    def events(self) -> list[tuple[LogLevel, str]]:
        return [(event["log_level"], formatEvent(event)) for event in self.logged]

    def write(self, text: str, name: str = "clients", age: float = HOUR) -> str:
        """Write a file that was changed so many seconds before NOW, and return its path."""
        path = self.directory / name
        path.write_text(text)
        os.utime(path, (NOW - age, NOW - age))
        return str(path)

    def open(self, *files: str) -> ClientWhitelist:
        """Open a list of clients, and ask it; the time is NOW when it is opened."""
        now = lambda: NOW + self.clock.seconds()  # noqa: E731
        whitelist = ClientWhitelist("greylist_client_whitelist", files, self.clock, now, self.threads)
        self.addCleanup(whitelist.close)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        whitelist.matches(b"", b"")
        return whitelist

    def look(self) -> None:
        """Let the time of the next check come, and the thread do its work."""
        self.clock.advance(CHECK_INTERVAL)
        self.threads.run()

    def names(self, whitelist: ClientWhitelist, *names: str) -> list[str]:
        return [name for name in names if whitelist.matches(name.encode(), b"192.0.2.1")]


class OpenTests(WhitelistCase):
    def parameters(self) -> Parameters:
        return Parameters(parse(b"greylist_client_whitelist = some\n", "main.cf"))

    def test_local(self) -> None:
        """Behind each file comes its .local file, if there is one; naming that as well does no harm."""
        first, second = self.write("a\n"), self.write("c\n", "more")
        self.write("b\n", "clients.local")
        whitelist = self.open(first, second, first + ".local", second + ".local")
        self.assertEqual(self.names(whitelist, "a", "b", "c", "d"), ["a", "b", "c"])

    def test_problems(self) -> None:
        """Files that cannot be read, and entries that cannot be used, are errors, all reported at once."""
        bad, missing = self.write("a\nb c\nd/e\n"), str(self.directory / "missing")
        local = self.directory / "clients.local"
        local.mkdir()
        parameters = self.parameters()
        whitelist = open_whitelist(ClientWhitelist, [bad, missing], "greylist_client_whitelist", parameters, self.clock)
        with self.assertRaises(ConfigurationError) as raised:
            parameters.finish([])
        places = {(problem.path, problem.line) for problem in raised.exception.problems}
        self.assertEqual(places, {(bad, 2), (bad, 3), ("main.cf", 1)})
        unreadable = [problem.text for problem in raised.exception.problems if problem.path == "main.cf"]
        self.assertEqual(
            unreadable,
            [
                f"greylist_client_whitelist: {local}: cannot be read: Is a directory",
                f"greylist_client_whitelist: {missing}: cannot be read: No such file or directory",
            ],
        )
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertFalse(whitelist.matches(b"a", b"192.0.2.1"))

    def test_no_files(self) -> None:
        """A list without files is empty, and needs no timer."""
        whitelist = open_whitelist(ClientWhitelist, [], "greylist_client_whitelist", self.parameters(), self.clock)
        self.assertFalse(whitelist.matches(b"a", b"192.0.2.1"))
        self.assertEqual(self.clock.getDelayedCalls(), [])
        whitelist.close()

    def test_mail_lists(self) -> None:
        """Recipients and senders have lists of their own; the null sender can be in one of senders only."""
        recipients = open_whitelist(
            RecipientWhitelist, [self.write("postmaster@\n")], "r", self.parameters(), self.clock
        )
        senders = open_whitelist(SenderWhitelist, [self.write("<>\n@a.example\n")], "s", self.parameters(), self.clock)
        self.assertEqual([recipients.matches(each) for each in (b"postmaster@x", b"")], [True, False])
        self.assertEqual([senders.matches(each) for each in (b"", b"x@a.example", b"x@b.example")], [True, True, False])
        recipients.close()
        senders.close()
        self.assertEqual(self.clock.getDelayedCalls(), [])


class ReloadTests(WhitelistCase):
    def test_unchanged(self) -> None:
        """Files that did not change are looked at again and again, and not read."""
        whitelist = self.open(self.write("a\n"))
        with mock.patch.object(ClientWhitelist, "_read") as read:
            for _ in range(3):
                self.look()
        read.assert_not_called()
        self.assertEqual(self.names(whitelist, "a"), ["a"])

    def test_changed(self) -> None:
        """A file that changed, in its time or in its size only, is read again."""
        whitelist = self.open(self.write("a\n"))
        self.write("b\n", age=HOUR - 1)
        self.look()
        self.assertEqual(self.names(whitelist, "a", "b"), ["b"])
        self.write("b\nc\n", age=HOUR - 1)
        self.look()
        self.assertEqual(self.names(whitelist, "a", "b", "c"), ["b", "c"])
        self.assertIn((LogLevel.info, "greylist_client_whitelist: read again, 2 entries"), self.events)

    def test_local_comes_and_goes(self) -> None:
        """A .local file counts as long as it is there."""
        whitelist = self.open(self.write("a\n"))
        local = self.write("b\n", "clients.local")
        self.look()
        self.assertEqual(self.names(whitelist, "a", "b"), ["a", "b"])
        Path(local).unlink()
        self.look()
        self.assertEqual(self.names(whitelist, "a", "b"), ["a"])

    def test_settling(self) -> None:
        """A file that changed a moment ago is read when it has been left alone for a while."""
        whitelist = self.open(self.write("a\n"))
        self.write("b\n", age=-CHECK_INTERVAL + 0.5)
        self.look()
        self.assertEqual(self.names(whitelist, "a", "b"), ["a"])
        self.look()
        self.assertEqual(self.names(whitelist, "a", "b"), ["b"])

    def test_settling_at_the_start(self) -> None:
        """One that changed a moment before the start is read once more: nobody would see a change within its time."""
        path = self.write("a\n", age=0.5)
        whitelist = self.open(path)
        self.write("b\n", age=0.5)
        self.look()
        self.assertEqual(self.names(whitelist, "a", "b"), ["b"])

    def test_changes_while_read(self) -> None:
        """What a file held while it changed does not count."""
        path = self.write("a\n")
        whitelist = self.open(path)
        self.write("b\n", age=HOUR - 1)

        def changing(path: str) -> BytesIO:
            self.write("cc\n", Path(path).name)
            return BytesIO(b"half")

        with mock.patch.object(whitelists, "open_regular", changing):
            self.look()
        self.assertEqual(self.names(whitelist, "a", "b", "half"), ["a"])
        self.look()
        self.assertEqual(self.names(whitelist, "a", "b", "cc"), ["cc"])

    def test_settling_when_read(self) -> None:
        """A file that somebody begins to write just before it is read, because it has changed, is left alone, too."""
        path = self.write("a\n")
        whitelist = self.open(path)
        self.write("b\n", age=HOUR - 1)
        read = whitelist._read

        def read_later() -> Any:
            self.write("", age=-CHECK_INTERVAL)
            return read()

        with mock.patch.object(whitelist, "_read", read_later):
            self.look()
        self.assertEqual(self.names(whitelist, "a", "b"), ["a"])
        self.write("b\n", age=-CHECK_INTERVAL)
        self.look()
        self.assertEqual(self.names(whitelist, "a", "b"), ["b"])

    def test_bad_entry(self) -> None:
        """With an entry that cannot be used the old list stays in use, which is logged once, until it is mended."""
        path = self.write("a\n")
        whitelist = self.open(path)
        self.write("b\n/(/\n", age=HOUR - 1)
        self.look()
        self.look()
        self.assertEqual(self.names(whitelist, "a", "b"), ["a"])
        (logged,) = self.events
        self.assertEqual(logged[0], LogLevel.error)
        self.assertIn(f"greylist_client_whitelist: {path}:2: bad regular expression", logged[1])
        self.assertIn("the old list stays in use", logged[1])
        self.write("b\n", age=HOUR - 2)
        self.look()
        self.assertEqual(self.names(whitelist, "a", "b"), ["b"])

    def test_many_bad_entries(self) -> None:
        """Of many such entries the first ten are named."""
        self.open(self.write("a\n"))
        self.write("b c\n" * 12, age=HOUR - 1)
        self.look()
        self.assertIn(":10: one entry a line", self.events[0][1])
        self.assertNotIn(":11:", self.events[0][1])
        self.assertIn("; and 2 more; the old list", self.events[0][1])

    def test_unreadable(self) -> None:
        """With a file that is gone the old list stays in use, logged once each time, and it is read when it is back."""
        path = self.write("a\n")
        whitelist = self.open(path)
        for _ in range(2):
            Path(path).unlink()
            self.look()
            self.look()
            self.assertEqual(self.names(whitelist, "a"), ["a"])
            self.write("a\n")
            self.look()
        self.assertEqual([level for level, _ in self.events].count(LogLevel.error), 2)
        self.assertIn(f"{path}: cannot be read: No such file or directory", self.events[0][1])

    def test_no_regular_file(self) -> None:
        """A pipe in the place of a file is not waited for; the old entries stay in use, which is logged."""
        path = self.write("a\n")
        whitelist = self.open(path)
        Path(path).unlink()
        os.mkfifo(path)
        self.look()
        self.assertEqual(self.names(whitelist, "a"), ["a"])
        self.assertIn(f"{path}: cannot be read: not a regular file", self.events[0][1])

    def test_unforeseen_error(self) -> None:
        """An error that nobody thought of is logged, and the files are looked at again later."""
        whitelist = self.open(self.write("a\n"))
        with mock.patch.object(whitelist, "_look", side_effect=MemoryError("no memory")):
            self.look()
        self.assertIn("no memory; the old list stays in use", self.events[0][1])
        self.write("b\n", age=HOUR - 1)
        self.look()
        self.assertEqual(self.names(whitelist, "b"), ["b"])

    def test_unforeseen_error_in_the_reactor(self) -> None:
        """Also where what was read cannot be taken, that is logged, and the files are looked at again later."""
        whitelist = self.open(self.write("a\n"))
        with mock.patch.object(whitelist, "_take", side_effect=ValueError("no sense")):
            self.look()
        self.assertIn("no sense; the old list stays in use", self.events[0][1])
        self.write("b\n", age=HOUR - 1)
        self.look()
        self.assertEqual(self.names(whitelist, "b"), ["b"])

    def test_close_while_looking(self) -> None:
        """A list that is closed while its files are looked at does not go on."""
        whitelist = self.open(self.write("a\n"))
        self.clock.advance(CHECK_INTERVAL)
        whitelist.close()
        self.threads.run()
        self.assertEqual(self.clock.getDelayedCalls(), [])


class SlowTests(WhitelistCase):
    def test_set_aside(self) -> None:
        """An expression that takes too long is not asked for an hour; the log says so, with its place, each time."""
        self.patch(whitelist_match, "TIME_LIMIT", 0.01)
        path = self.write("x\n/^(a|aa)+$/\n")
        whitelist = self.open(path)
        name = "a" * 100 + "!"
        for times in (1, 2):
            self.assertEqual(self.names(whitelist, "b", "aa"), ["aa"])
            self.assertEqual(self.names(whitelist, name, name, "aaa"), [])
            self.assertEqual(len(self.events), times)
            self.assertIn(f"{path}:2: the regular expression takes too long for aaa", self.events[-1][1])
            for _ in range(int(SET_ASIDE / CHECK_INTERVAL) - 1):
                self.look()
            self.assertEqual(self.names(whitelist, name, "aaa"), [])
            self.look()
        self.assertEqual(self.names(whitelist, "aa", "aaa"), ["aa", "aaa"])

    def test_many(self) -> None:
        """Each of several has its line in the log, and the last tells when no expression of the list is asked."""
        self.patch(whitelist_match, "TIME_LIMIT", 0.01)
        whitelist = self.open(self.write("".join(f"/^(a|aa)+{number}$/\n" for number in range(12)) + "/^b/\n"))
        name = "a" * 100
        self.assertEqual(self.names(whitelist, *[name] * 20, "b"), [])
        self.assertEqual(len(self.events), 10)
        self.assertIn("; it is not asked for up to an hour", self.events[8][1])
        self.assertIn("; so do many, and none in the list is asked for up to an hour", self.events[9][1])

    def test_mended(self) -> None:
        """What is in a file that has changed is asked at once."""
        self.patch(whitelist_match, "TIME_LIMIT", 0.01)
        senders = SenderWhitelist(
            "s", [self.write("/^(a|aa)+$/\n")], self.clock, lambda: NOW + self.clock.seconds(), self.threads
        )
        self.addCleanup(senders.close)
        bad = b"a" * 100 + b"!"
        self.assertEqual([senders.matches(each) for each in (bad, b"aa")], [False, False])
        self.write("/^a+!?$/\n", age=HOUR - 1)
        self.look()
        self.assertEqual([senders.matches(each) for each in (bad, b"aa")], [True, True])
        self.assertEqual(len(self.events), 2)
