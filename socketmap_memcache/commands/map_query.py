"""``-q`` and ``-s``: look-ups, and a walk through all entries."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import attrs
from twisted.internet.defer import Deferred, DeferredQueue, DeferredSemaphore, inlineCallbacks, succeed
from twisted.python.failure import Failure

from socketmap_memcache.commands.map_console import Console, FatalError, printable
from socketmap_memcache.commands.map_streams import BLOCK_SIZE, Lines, Sink, Source, keys_of, parts
from socketmap_memcache.commands.map_tables import WINDOW, Tables
from socketmap_memcache.errors import TableError
from socketmap_memcache.tables.folding import valid
from socketmap_memcache.tables.interface import NoBackupError, ReadOnlyError
from socketmap_memcache.tables.lookup_all import Answer, gather, lookup_all

#: How many batches of keys are asked for while answers to another are printed.
_BATCHES = 2


@attrs.define
class _Answers:
    """What tables said about keys.

    :ivar keys: in the order of the input.
    :ivar values: for each key.
    :ivar places: which table said so, for keys that were not answered by the first.
    """

    keys: list[bytes]
    values: list[Answer]
    places: dict[int, int] = attrs.Factory(dict)


#: Answers that are still to come: one Deferred, in a list, because a Deferred must not be another's result.
_Asking = list[Deferred[_Answers]]


class Query:
    """Looks up keys in tables, of which the first that has a key counts."""

    def __init__(self, tables: Tables, console: Console, sink: Sink) -> None:
        """:param sink: gets the values."""
        self._tables = tables
        self._console = console
        self._sink = sink
        self._ended = False

    @inlineCallbacks
    def one(self, key: bytes) -> Generator[Deferred[Any], Any, int]:
        """Print the value of a key.

        :return: the exit status.
        :raises FatalError: the look-up failed.
        """
        answers = yield self._ask([key])
        lines: list[bytes] = []
        self._format(answers, lines, with_keys=False)
        if lines:
            yield self._sink.write(b"".join(lines))
        return 0 if lines else 1

    @inlineCallbacks
    def all(self, source: Source) -> Generator[Deferred[Any], Any, int]:
        """Print each key and its value, in the order of the input.

        :return: the exit status.
        :raises FatalError: a look-up failed; what was found before it has been printed.
        """
        batches: DeferredQueue[_Asking | None] = DeferredQueue()
        room = DeferredSemaphore(_BATCHES)
        feeding = self._feed(source, batches, room)
        found = False
        try:
            while (asking := (yield batches.get())) is not None:
                answers = yield asking[0]
                room.release()
                lines: list[bytes] = []
                try:
                    self._format(answers, lines, with_keys=True)
                finally:
                    if lines:
                        found = True
                        yield self._sink.write(b"".join(lines))
                self._console.progress(len(answers.keys))
        except BaseException:  # whatever it is, nobody waits for the rest any more
            self._ended = True
            feeding.cancel()
            feeding.addErrback(lambda _: None)
            for asking in filter(None, batches.pending):
                asking[0].addErrback(lambda _: None)
            raise
        yield feeding
        return 0 if found else 1

    @inlineCallbacks
    def _feed(
        self, source: Source, batches: DeferredQueue[_Asking | None], room: DeferredSemaphore
    ) -> Generator[Deferred[Any], Any, None]:
        """Ask for all keys, as long as there is room."""
        lines = Lines(source)
        try:
            while not lines.ended:
                read = yield lines.next()
                for keys in parts(keys_of(read), WINDOW):
                    yield room.acquire()
                    batches.put([self._ask(keys)])
                    if self._ended:
                        return
        finally:
            batches.put(None)

    @inlineCallbacks
    def _ask(self, keys: list[bytes]) -> Generator[Deferred[Any], Any, _Answers]:
        """Ask the first table for all keys, the next for those that it does not have, and so on."""
        answers = _Answers(keys, [None] * len(keys))
        for number in range(len(self._tables.names)):
            if number == 0:
                answers.values = yield self._lookup(number, keys)
                continue
            left = [place for place, value in enumerate(answers.values) if value is None]
            if not left:
                break
            values = yield self._lookup(number, [keys[place] for place in left])
            for place, value in zip(left, values, strict=True):
                answers.values[place] = value
                answers.places[place] = number
        return answers

    def _lookup(self, number: int, keys: list[bytes]) -> Deferred[list[Answer]]:
        table = self._tables.open(number)
        # A key alone gets all the tries that its table is set to.
        return gather([table.lookup(keys[0])]) if len(keys) == 1 else lookup_all(table, keys)

    def _format(self, answers: _Answers, lines: list[bytes], with_keys: bool) -> None:
        """Add a line for each key that was found, with postmap's warnings.

        :raises FatalError: at the first look-up that failed.
        """
        if not with_keys or not _format_plain(answers, lines):
            self._format_any(answers, lines, with_keys)

    def _format_any(self, answers: _Answers, lines: list[bytes], with_keys: bool) -> None:
        for place, (key, value) in enumerate(zip(answers.keys, answers.values, strict=True)):
            if not valid(key):
                for name in self._tables.names:
                    self._console.warn(non_utf8_key(name, key))
                continue
            if value is None:
                continue
            name = self._tables.names[answers.places.get(place, 0)]
            if isinstance(value, Failure):
                raise failed(value, name, "query")
            good = self._checked(name, key, value)
            if not good:
                _warn_empty(self._console, name, key)
            lines.append(b"%b\t%b\n" % (key, good) if with_keys else good + b"\n")

    def _checked(self, name: str, key: bytes, value: bytes) -> bytes:
        """Give what Postfix makes of a value: it ends at a NUL, and has to be UTF-8."""
        value = value.partition(b"\0")[0]
        if not valid(value):
            self._console.warn(
                f'{name}: key "{printable(key)}": non-UTF-8 value "{printable(value)}": '
                "malformed UTF-8 or invalid codepoint"
            )
            raise FatalError(f"table {name}: query error")
        return value


def _format_plain(answers: _Answers, lines: list[bytes]) -> bool:
    """Add the lines if nothing about them is special, which is quickly seen of all at once."""
    kinds = set(map(type, answers.values))
    if Failure in kinds or not b"".join(answers.keys).isascii():
        return False
    pairs: Any = zip(answers.keys, answers.values, strict=True)
    if type(None) in kinds:
        pairs = [pair for pair in pairs if pair[1] is not None]
    found = b"\n".join(map(b"\t".join, pairs))
    found += b"\n" if found else b""
    plain = found.isascii() and b"\0" not in found and b"\t\n" not in found
    if plain and found:
        lines.append(found)
    return plain


class Walk:
    """Prints all entries of a table."""

    def __init__(self, tables: Tables, console: Console, sink: Sink) -> None:
        """:param sink: gets the entries."""
        self._tables = tables
        self._console = console
        self._sink = sink

    @inlineCallbacks
    def run(self) -> Generator[Deferred[Any], Any, int]:
        """Print them in the order of the table.

        :return: the exit status.
        :raises FatalError: the table cannot do that, or failed.
        """
        name = self._tables.names[0]
        cursor = self._tables.open(0).cursor()
        lines: list[bytes] = []
        size = 0
        try:
            while (entry := (yield cursor.next())) is not None:
                key, value = entry
                if not key:
                    self._console.warn(f"table {name}: empty lookup key value is not allowed")
                elif not value:
                    _warn_empty(self._console, name, key)
                line = b"%b\t%b\n" % (key, value)
                lines.append(line)
                size += len(line)
                if size >= BLOCK_SIZE:
                    yield self._write(lines)
                    lines, size = [], 0
        except NoBackupError as error:
            self._console.warn(str(error))  # and that is all, as with Postfix
        except TableError:
            yield self._write(lines)
            raise failed(Failure(), name, "sequence") from None
        yield self._write(lines)
        return 0

    def _write(self, lines: list[bytes]) -> Deferred[None]:
        self._console.progress(len(lines))
        return self._sink.write(b"".join(lines)) if lines else succeed(None)


def non_utf8_key(name: str, key: bytes) -> str:
    """Word a warning as Postfix does."""
    return f'{name}: non-UTF-8 key "{printable(key)}": malformed UTF-8 or invalid codepoint'


def failed(failure: Failure, name: str, what: str) -> BaseException:
    """Give the error that ends the command, for the failure of an operation."""
    error = failure.value
    assert error is not None
    if isinstance(error, ReadOnlyError):
        return FatalError(str(error))
    return FatalError(f"table {name}: {what} error: {error}") if isinstance(error, TableError) else error


def _warn_empty(console: Console, name: str, key: bytes) -> None:
    console.warn(f"table {name}: key {printable(key)}: empty string result is not allowed")
    console.warn(f"table {name} should return NO RESULT in case of NOT FOUND")
