"""The whitelists of greylisting: files that are read again when they change.

Behind each file comes the one of the same name and ``.local``, if it exists; postgrey has that for its default files.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.threads import deferToThread
from twisted.logger import Logger

from socketmap_memcache.config.parameters import Parameters
from socketmap_memcache.config.syntax import excerpt
from socketmap_memcache.errors import ConfigurationError, Problem
from socketmap_memcache.policies.greylist.whitelist_match import ClientMatcher, MailMatcher, SlowExpressionError
from socketmap_memcache.policies.greylist.whitelist_syntax import (
    ClientEntry,
    MailEntry,
    parse_clients,
    parse_recipients,
    parse_senders,
)
from socketmap_memcache.regular_file import open_regular

CHECK_INTERVAL = 10.0
"""Seconds: how often the files are looked at."""

SETTLING_TIME = 1.0
"""Seconds that a file must have been left alone before it is read again, because an editor may be half done."""

SET_ASIDE = 3600.0
"""Seconds: how long a regular expression that took too long is not asked."""

_LOCAL = ".local"
_MOST_LOGGED = 10

Matcher = TypeVar("Matcher", ClientMatcher, MailMatcher)

# Of each file: the time of the last change, in nanoseconds, the size and the number. None where there is no file.
_Stamps = tuple[tuple[int, int, int] | None, ...]


@attrs.frozen
class Content(Generic[Matcher]):
    """What the files held at one time.

    :ivar entries: how many the matcher has.
    :ivar problems: the files that cannot be read, and the entries that cannot be used.
    :ivar stamps: tell whether the files are still the same; ``None`` if they could not be read, or change yet.
    """

    matcher: Matcher
    entries: int
    problems: list[Problem]
    stamps: _Stamps | None


class Whitelist(ABC, Generic[Matcher]):
    """The content of the files, renewed when they change.

    When they cannot be read any more, or have an entry that cannot be used, what they held before stays in use, and
    that is logged once.
    """

    _log = Logger()

    def __init__(
        self,
        name: str,
        files: Sequence[str],
        reactor: Any,
        clock: Callable[[], float] = time.time,
        in_thread: Callable[..., Deferred[Any]] = deferToThread,
    ) -> None:
        """Read the files. From the first question on, until :meth:`close`, they are looked at from time to time.

        :param name: what the log calls the list.
        :param reactor: for the timer; nothing is asked of it here, which may be in a thread, or without a reactor that
            runs.
        :param clock: the seconds since the epoch, to be compared with the time of the last change of a file.
        :param in_thread: calls a function in a thread.
        :raises ConfigurationError: with all files that cannot be read, and all entries that cannot be used.
        """
        self._name = name
        self._required = frozenset(file for file in files if not file.endswith(_LOCAL))
        self._files = tuple(dict.fromkeys(path for file in files for path in (file, file + _LOCAL)))
        self._reactor = reactor
        self._clock = clock
        self._in_thread = in_thread
        self._complaint = ""
        self._resume_at: float | None = None
        content = self._read()
        if content.problems:
            raise ConfigurationError(content.problems)
        self._current: Matcher = content.matcher
        self._stamps = content.stamps
        self._idle = bool(files)  # there is something to look at, and nobody has asked yet
        self._closed = False
        self._timer: IDelayedCall | None = None

    def close(self) -> None:
        """Look at the files no more."""
        self._idle = False
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _watch(self) -> None:
        self._idle = False
        if not self._closed:
            self._timer = self._reactor.callLater(CHECK_INTERVAL, self._check)

    def _check(self) -> None:
        self._timer = None
        if self._resume_at is not None and self._reactor.seconds() >= self._resume_at:
            self._resume_at = None
            self._current.resume()
        looking = self._in_thread(self._look)
        looking.addCallback(self._take)
        looking.addErrback(lambda failure: self._complain([Problem(failure.getErrorMessage())]))
        looking.addCallback(lambda _: self._watch())

    @abstractmethod
    def _parse(self, text: bytes, path: str, problems: list[Problem]) -> Sequence[Any]:
        """Return the entries that a file has."""

    @abstractmethod
    def _made_of(self, entries: Sequence[Any]) -> Matcher:
        """Return what matches them."""

    # In a thread, after the first time: a file may be on a disk that is slow.

    def _look(self) -> Content[Matcher] | None:
        """Read the files if they changed, but not while they still change."""
        stamps = self._stamps_now()
        return None if stamps == self._stamps or self._is_settling(stamps) else self._read()

    def _stamps_now(self) -> _Stamps:
        return tuple(_stamp(path) for path in self._files)

    def _is_settling(self, stamps: _Stamps) -> bool:
        now = self._clock()
        return any(stamp is not None and 0 <= now - stamp[0] / 1e9 < SETTLING_TIME for stamp in stamps)

    def _read(self) -> Content[Matcher]:
        before = self._stamps_now()
        entries: list[Any] = []
        problems: list[Problem] = []
        readable = True
        for path in self._files:
            try:
                with open_regular(path) as file:
                    text = file.read()
            except OSError as error:
                if path in self._required or not isinstance(error, FileNotFoundError):
                    problems.append(Problem(f"cannot be read: {error.strerror}", path))
                    readable = False
                continue
            entries += self._parse(text, path, problems)
        # Somebody may be writing to a file that is as young as this: it is read once more when it has settled.
        sound = readable and before == self._stamps_now() and not self._is_settling(before)
        return Content(self._made_of(entries), len(entries), problems, before if sound else None)

    # In the reactor.

    def _take(self, content: Content[Matcher] | None) -> None:
        if content is None:
            self._complaint = ""
            return
        if content.stamps is not None:
            self._stamps = content.stamps
        if content.problems:
            self._complain(content.problems)
        elif content.stamps is not None:  # else the next time may find them complete
            self._current = content.matcher
            self._complaint = ""
            self._resume_at = None
            self._log.info("{name}: read again, {count} entries", name=self._name, count=content.entries)

    def _complain(self, problems: list[Problem]) -> None:
        complaint = "; ".join(map(str, problems[:_MOST_LOGGED]))
        if len(problems) > _MOST_LOGGED:
            complaint += f"; and {len(problems) - _MOST_LOGGED} more"
        if complaint != self._complaint:
            self._complaint = complaint
            self._log.error("{name}: {complaint}; the old list stays in use", name=self._name, complaint=complaint)

    def _give_up(self, subject: bytes, error: SlowExpressionError) -> bool:
        """Say that a regular expression took too long, and has been set aside. That is no match."""
        if self._resume_at is None:
            self._resume_at = self._reactor.seconds() + SET_ASIDE
        text = (
            "{name}: {place}: the regular expression takes too long for {subject}, which is taken not to be in the "
            "list; {aside} asked for up to an hour, or until the file changes: write one that repeats less"
        )
        aside = "so do many, and none in the list is" if error.all_aside else "it is not"
        self._log.error(text, name=self._name, place=error.place, subject=excerpt(subject), aside=aside)
        return False


class ClientWhitelist(Whitelist[ClientMatcher]):
    """Clients that are not greylisted."""

    def _parse(self, text: bytes, path: str, problems: list[Problem]) -> Sequence[Any]:
        return parse_clients(text, path, problems)

    def _made_of(self, entries: Sequence[ClientEntry]) -> ClientMatcher:
        return ClientMatcher(entries)

    def matches(self, client_name: bytes, client_address: bytes) -> bool:
        """Say whether a client is in the list, by its name or by its address."""
        if self._idle:
            self._watch()
        try:
            return self._current.matches(client_name, client_address)
        except SlowExpressionError as error:
            return self._give_up(client_name, error)


class _MailWhitelist(Whitelist[MailMatcher]):
    def _made_of(self, entries: Sequence[MailEntry]) -> MailMatcher:
        return MailMatcher(entries)

    def matches(self, address: bytes) -> bool:
        """Say whether a mail address is in the list."""
        if self._idle:
            self._watch()
        try:
            return self._current.matches(address)
        except SlowExpressionError as error:
            return self._give_up(address, error)


class RecipientWhitelist(_MailWhitelist):
    """Recipients whose mail is not greylisted."""

    def _parse(self, text: bytes, path: str, problems: list[Problem]) -> Sequence[Any]:
        return parse_recipients(text, path, problems)


class SenderWhitelist(_MailWhitelist):
    """Senders whose mail is not greylisted; that of bounces is empty."""

    def _parse(self, text: bytes, path: str, problems: list[Problem]) -> Sequence[Any]:
        return parse_senders(text, path, problems)


List = TypeVar("List", ClientWhitelist, RecipientWhitelist, SenderWhitelist)


def open_whitelist(
    kind: type[List], files: Sequence[str], parameter: str, parameters: Parameters, reactor: Any
) -> List:
    """Open a list; see :mod:`.whitelist_syntax`.

    :param parameter: where the files are named. It gets the errors: files that cannot be read, entries that cannot be
        used. The list is empty then.
    """
    try:
        return kind(parameter, files, reactor)
    except ConfigurationError as error:
        parameters.adopt(parameter, error.problems)
        return kind(parameter, (), reactor)


def _stamp(path: str) -> tuple[int, int, int] | None:
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
