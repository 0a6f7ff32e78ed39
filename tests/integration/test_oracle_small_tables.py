"""What the configuration reader, ``key_format``, ``domain`` and the small tables do, beside what Postfix itself does.

Postfix's ``memcache:`` tables ask a memcached of these tests, which has nothing and remembers what it was asked.
"""

from __future__ import annotations

import itertools
import os
import random
import re
import socketserver
import subprocess
import threading
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import attrs
import pytest
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from socketmap_memcache.config.parameters import Parameters
from socketmap_memcache.config.syntax import parse
from socketmap_memcache.errors import ConfigurationError, Problem, TemporaryError
from socketmap_memcache.tables import texthash
from socketmap_memcache.tables.folding import fold
from socketmap_memcache.tables.key_format import KeyFormat
from socketmap_memcache.tables.match_list import MatchList
from socketmap_memcache.tables.registry import TableContext

from .harness.postfix import Postfix
from .harness.processes import find_program, scratch_directory

if TYPE_CHECKING:
    from socketmap_memcache.memcache.pool import ClientPool

AT_ONCE = 16  # Postfix pauses for a second before it gives up: many cases only wait

ODD_KEYS = [
    *("", "@", "@@", "a", "A@", "@b", "@B.example", "a@b", "a@b@c.example", "@a@b", "a@@b", ".", "a@.", "a@..", "a."),
    *("u@dom.", "u@.dom", "u@a..b", "u@[1.2.3.4]", "u@[IPv6:::1]", "Loc+Ext@Sub.Example.COM", "a b@c.d", "a@b c.d"),
    *('"a b"@c.d', "a\\@b", "u@9.8.7.6.5.4.3.2.1", "u@a.b.c.d", "\u00dc@B\u00dccher.DE", "u@stra\u00dfe.de", " ", "%"),
    *("u@\u0130.tr", "u@\u03a3\u03c2.gr", "u@\ufb01.x", "k" * 240 + "@long.example", "%s@%d", "u@example.com,x", "#@#"),
]
ODD_BYTES = [key.encode() for key in ODD_KEYS] + [b"\xff", b"a@\xff.b", b"\xed\xa0\x80@a.b"]

T = TypeVar("T")


def at_once(run: Callable[[T], None], cases: Iterable[T]) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(run, cases))


def context() -> TableContext:
    return TableContext(clients=cast("ClientPool", None))


def result_of(answer: Deferred[T]) -> T:
    """Return the result, which is there already, or raise the failure."""
    results: list[Any] = []
    answer.addBoth(results.append)
    if isinstance(results[0], Failure):
        results[0].raiseException()
    return cast("T", results[0])


class RecordingMemcached(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True

    def __init__(self, path: str) -> None:
        super().__init__(path, RecordingHandler)
        self.requests: list[bytes] = []


class RecordingHandler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        server = cast("RecordingMemcached", self.server)
        for request in self.rfile:
            server.requests.append(request.rstrip(b"\r\n"))
            if request.startswith(b"set "):
                self.rfile.read(int(request.split()[4]) + 2)
                self.wfile.write(b"STORED\r\n")
            else:
                self.wfile.write(b"END\r\n")


@attrs.define
class Oracle:
    """An installed Postfix, and a folder for the files of all cases."""

    postfix: Postfix
    folder: Path
    _numbers: Iterator[int] = attrs.Factory(itertools.count)

    @property
    def reads_utf8(self) -> bool:
        """Whether tables made of text fold and check it when they read it. Since 3.11 they only know ASCII then."""
        major, minor = self.postfix.postconf("-d", "-h", "mail_version").split(".")[:2]
        return (int(major), int(minor.partition("-")[0])) < (3, 11)

    def write(self, content: str | bytes, name: str = "") -> str:
        """Write a file that is old enough for Postfix to read it once, and return its path."""
        path = self.folder / (name or f"file{next(self._numbers)}")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode(errors="surrogateescape"))
        os.utime(path, (1_000_000_000, 1_000_000_000))
        return str(path)

    def postmap(self, table: str, keys: list[bytes]) -> tuple[dict[bytes, bytes], str]:
        """Return what a table has, and what postmap complains about; keys must not contain tabs or newlines."""
        assert len(keys) == len(set(keys))
        name = table.encode(errors="surrogateescape")
        done = self.postfix.postmap("-q", "-", name, stdin=b"".join(key + b"\n" for key in keys))
        found = [line.partition(b"\t") for line in done.stdout.split(b"\n") if line]
        return {key: value for key, _, value in found}, done.stderr.decode(errors="replace")

    def requests(self, cf: str, keys: list[bytes]) -> tuple[list[bytes], str]:
        """Return what a ``memcache:`` table asks its server, and what postmap complains about."""
        socket = str(self.folder / f"socket{next(self._numbers)}")
        path = self.write(f"{cf}\nmemcache = unix:{socket}\n")
        with RecordingMemcached(socket) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            _, complaints = self.postmap(f"memcache:{path}", keys)
            server.shutdown()
            thread.join()
        return server.requests, complaints

    def postconf(self, main_cf: bytes) -> str:
        """Return what postconf complains about; that includes all entries, because their names are not Postfix's."""
        folder = f"conf{next(self._numbers)}"
        self.write(b"", f"{folder}/master.cf")
        path = Path(self.write(main_cf, f"{folder}/main.cf"))
        argv = [find_program("postconf"), "-c", str(path.parent), "-n"]
        done = subprocess.run(argv, capture_output=True, check=False, timeout=60)
        return done.stderr.decode(errors="replace").replace(str(path), "main.cf")


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    with scratch_directory() as directory:
        folder = directory / "cases"
        folder.mkdir()
        yield Oracle(Postfix(directory), folder)


@pytest.fixture
def source(request: pytest.FixtureRequest) -> random.Random:
    """What the cases are made with; a failed test shows the option that repeats them."""
    seed = request.config.getoption("--differential-seed")
    print(f"--differential-seed={seed}")
    return random.Random(f"{seed} {request.node.name}")


def problems(read: Parameters) -> list[str]:
    try:
        read.finish([])
    except ConfigurationError as error:
        return [problem.text for problem in error.problems]
    return []


def matches(listed: MatchList, key: bytes) -> bool:
    match = listed.match_address(key)
    return result_of(match) if isinstance(match, Deferred) else match


class TestSyntax:
    # Without characters of several bytes: postconf shows those now as they are and now as so many question marks.
    PIECES = ("x", "y z", "=", "#", " ", "\t", "\r", "\v", "\f", '"', "{a b}", "\\", "\udcff", ",")

    def line(self, source: random.Random) -> str:
        def blanks() -> str:
            return "".join(source.choices(" \t\r\f\v", k=source.choice([0, 0, 1, 2])))

        value = "".join(source.choices(self.PIECES, k=source.choice([0, 1, 1, 2, 4])))
        name = source.choice(["aa", "bb", "cc", "Dd", "e-f", "1", "g.h"])
        return source.choices(
            [
                f"{name}{blanks()}={blanks()}{value}{blanks()}",
                source.choice(" \t") + value + blanks(),
                f"{blanks()}#{value}",
                blanks(),
                f"{name}={value}\0{value}",
                source.choice([name, f"{name} {name} = {value}", f"={value}", f"\0{name} = x"]),
            ],
            weights=[10, 4, 2, 2, 0.3, 0.2],
        )[0]

    def test_main_cf(self, oracle: Oracle, source: random.Random) -> None:
        """Generated files have the entries, the first error and the warnings that postconf finds in its main.cf."""

        def compare(text: bytes) -> None:
            parsed = parse(text, "main.cf")
            complaints = oracle.postconf(text)
            fatal = re.findall(r"fatal: main\.cf, line (\d+): (.*): ", complaints)
            assert fatal[:1] == [(str(e.line), e.text.rpartition(": ")[0]) for e in parsed.errors[:1]], text
            if parsed.errors:
                return
            entries = [f"{entry.name}={entry.value}" for entry in parsed.entries.values()]
            shown = {"".join(c if c.isprintable() else "?" for c in entry) for entry in entries}
            shown.remove("compatibility_level=3.6")
            assert set(re.findall("unused parameter: (.*)", complaints)) == shown, text
            assert re.findall(r"line (\d+): overriding", complaints) == places(parsed.warnings, "overriding"), text
            assert complaints.count("must not start with") == len(places(parsed.warnings, "must not start")), text

        def places(warnings: list[Problem], text: str) -> list[str]:
            return [str(warning.line) for warning in warnings if text in warning.text]

        texts = ["\n".join(self.line(source) for _ in range(source.randrange(12))) for _ in range(200)]
        ending = "\ncompatibility_level = 3.6"
        at_once(compare, [f"{text}{ending}".encode(errors="surrogateescape") for text in texts])

    def test_integers(self, oracle: Oracle) -> None:
        """An integer parameter has the value that Postfix sends to memcached, or Postfix's error."""
        texts = ["0", "5", "+10", "-5", "010", "-0", "2147483647", "-2147483648", "00000000000000000000007"]
        texts += ["", "10s", "0x10", "1.5", "10 20", "+-1", "- 1", "2147483648", "-2147483649", "1e3", "\u0663", "x"]

        def compare(text: str) -> None:
            read = Parameters(parse(f"ttl = {text}".encode(), "x.cf"))
            number = read.integer("ttl", 3600)
            requests, complaints = oracle.requests(f"ttl = {text}\nbackup = static:v", [b"key"])
            errors = problems(read)
            if errors:
                assert errors[0].partition(" (")[0] in complaints
                assert not requests
            else:
                assert requests == [b"get key", b"set key 0 %d 1" % number]

        at_once(compare, texts)

    def test_bounds(self, oracle: Oracle) -> None:
        """An integer below its bound has Postfix's error."""
        read = Parameters(parse(b"max_try = 0", "x.cf"))
        read.integer("max_try", 2, minimum=1)
        _, complaints = oracle.requests("max_try = 0", [b"key"])
        (error,) = problems(read)
        assert error in complaints


class TestKeys:
    def test_key_format(self, oracle: Oracle, source: random.Random) -> None:
        """Generated templates make the keys that Postfix asks memcached for, of ordinary and odd keys."""
        pieces = [*(f"%{letter}" for letter in "%sSuUdD12345679"), "%s", "x", ":", "\u00e9"]
        templates = ["".join(source.choices(pieces, k=source.randrange(1, 5))) for _ in range(100)]
        local, label = ("u", "U+x", "a.b", '"q r"', "\u00dc"), ("A", "b", "\u00e9", "", "xn--x")
        domains = [".".join(source.choices(label, k=source.randrange(1, 6))) for _ in range(50)]
        keys = list(dict.fromkeys([*ODD_BYTES, *(f"{source.choice(local)}@{domain}".encode() for domain in domains)]))

        def compare(template: str) -> None:
            key_format = KeyFormat.parse(template)
            expanded = [key_format.expand(folded) for folded in map(fold, keys) if folded]
            wanted = [b"get " + key for key in expanded if key and not re.search(rb"\s", key)]
            assert oracle.requests(f"key_format = {template}", keys)[0] == wanted, template

        at_once(compare, [*templates, "%s", "", "constant"])

    def test_wrong_key_format(self, oracle: Oracle) -> None:
        """Templates that are refused are those that Postfix stops at."""

        def compare(template: str) -> None:
            with pytest.raises(ValueError, match="invalid query template"):
                KeyFormat.parse(template)
            _, complaints = oracle.requests(f"key_format = {template}", [b"key"])
            assert f"Invalid query template: {template}" in complaints

        at_once(compare, ["%", "a%", "%x", "%0", "%%%", "% s", "%:"])

    def test_folding(self, oracle: Oracle) -> None:
        """Letters and marks that every Unicode library knows are folded as Postfix folds them."""
        characters = [chr(code) for code in range(0x80, 0x110000)]
        characters = [c for c in characters if unicodedata.ucd_3_2_0.category(c)[0] in "LM" and c < "\u3400"]
        keys = ["".join(characters[at : at + 50]).encode() for at in range(0, len(characters), 50)]
        assert len(keys) > 50
        assert oracle.requests("", keys)[0] == [b"get " + (fold(key) or b"") for key in keys]


class TestDomain:
    NAMES = ("a.example", "b.example", "B.Example", "sub.a.example", "\u00dc.example", "c", "[1.2.3.4]", ".a.example")

    def items(self, source: random.Random, oracle: Oracle, separators: tuple[str, ...] = (", ", ",", " ")) -> str:
        """Return a random list, perhaps with files and tables."""

        def item() -> str:
            kind = source.choices(["name", "file", "inline", "texthash", "static"], weights=[12, 2, 1, 1, 1])[0]
            if kind == "file":
                return oracle.write("#a\n" + self.items(source, oracle, (", ", "\n", "\n#b\n ")) + "\n")
            names = source.choices(self.NAMES, k=3)
            if kind == "inline":
                return "inline:{ " + ", ".join(f"{name}=x" for name in names) + " }"
            if kind == "texthash":
                return "texthash:" + oracle.write("".join(f"{name} x\n" for name in dict.fromkeys(names)))
            return "static:all" if kind == "static" and source.random() < 0.3 else names[0]

        marks = source.choices(["", "!", "!!"], weights=[5, 3, 1], k=source.randrange(1, 6))
        return source.choice(separators).join(mark + item() for mark in marks)

    def test_lists(self, oracle: Oracle, source: random.Random) -> None:
        """Generated lists let through the keys that Postfix asks memcached for."""
        keys = [f"{local}@{name}" for local in ("u", "", "x@y") for name in (*self.NAMES, "A.EXAMPLE", "d", "")]
        encoded = list(dict.fromkeys([*(key.encode() for key in keys), *ODD_BYTES]))

        def compare(spec: str) -> None:
            listed = MatchList.parse(spec, context())
            folded = [key for key in map(fold, encoded) if key]
            matching = [key for key in folded if matches(listed, key)]
            wanted = [b"get " + key for key in matching if not re.search(rb"\s", key)]
            assert oracle.requests(f"domain = {spec}", encoded)[0] == wanted, spec

        at_once(compare, [self.items(source, oracle) for _ in range(150)] + [",", "#a", "c #a", "{c d.example}"])

    def test_failure(self, oracle: Oracle) -> None:
        """A table that fails is a failure where Postfix reports one, and no failure where an item before it decides."""

        def compare(spec: str) -> None:
            listed = MatchList.parse(spec, context())
            requests, complaints = oracle.requests(f"domain = {spec}", [b"u@a"])
            try:
                match = matches(listed, b"u@a")
            except TemporaryError:
                assert "query error" in complaints
                assert not requests
            else:
                assert "query error" not in complaints
                assert requests == ([b"get u@a"] if match else [])

        at_once(compare, ["fail:x", "b fail:x a", "!fail:x a", "a fail:x", "!a fail:x"])

    def test_nothing_after_not(self, oracle: Oracle) -> None:
        """An exclamation mark alone is an error as in Postfix."""
        with pytest.raises(ConfigurationError, match="no pattern after '!'"):
            MatchList.parse("a ! b", context())
        assert "no pattern after '!'" in oracle.requests("domain = a ! b", [b"u@a"])[1]


class TestTables:
    def compare(self, oracle: Oracle, spec: str, keys: list[bytes]) -> None:
        """Compare what is found, or that the table cannot be opened."""
        found, complaints = oracle.postmap(spec, keys)
        try:
            table = context().open_table(spec)
        except ConfigurationError:
            assert "fatal: " in complaints, spec
            return
        assert "fatal: " not in complaints, spec
        answers = {key: result_of(table.lookup(key)) for key in keys}
        assert found == {key: value for key, value in answers.items() if value is not None}, spec

    def test_static(self, oracle: Oracle) -> None:
        """A static table has the value that Postfix's has, for the same keys."""
        names = ["all", "a b", "{ a b }", "{}", "{ }", "{a{b}c}", "a}", "", "{a", "{a}b", "\u00fc", "\udcff", " a "]
        at_once(lambda name: self.compare(oracle, f"static:{name}", ODD_BYTES), names)

    def test_inline(self, oracle: Oracle, source: random.Random) -> None:
        """Generated inline tables have what Postfix's have, or cannot be opened either."""
        keys = ["a", "A", '"a b"', "a\\ b", "c.d@e", "", *(["\u00dc", "stra\u00dfe"] if oracle.reads_utf8 else [])]
        values = ["1", "two words", "", "a=b", "\u00dc", "x, y"]

        def pair() -> str:
            key, value, blank = source.choice(keys), source.choice(values), source.choice(["", " "])
            braces = blank or " " in key + value or source.random() < 0.3
            text = f"{key}{blank}={blank}{value}"
            return f"{{{blank}{text}{blank}}}" if braces else text

        separators = [", ", ",", " ", "\t"]
        tables = [source.choice(separators).join(pair() for _ in range(source.randrange(1, 6))) for _ in range(150)]
        names = ["{" + table + "}" for table in tables]
        names += [
            "",
            "a=b",
            "{}",
            "{ }",
            "{a}",
            "{ a = b }",
            "{{}}",
            "{a=b",
            "{a=b}c",
            "{{a=b}c}",
            '{{"a=b}}',
            "{a=\udcff}",
        ]
        asked = [*ODD_BYTES, *(key.encode() for key in keys if key not in ODD_KEYS), b"\xc3\xbc", b"strasse", b"C.D@E"]
        at_once(lambda name: self.compare(oracle, f"inline:{name}", asked), names)

    def test_texthash(self, oracle: Oracle, source: random.Random) -> None:
        """Generated text files have the entries and the warnings that Postfix finds in them."""
        pieces = ["a", "B", "a", " ", " ", "\t", "x y", "\r", '"', "\\", "#", ":", "\n", "\n", "\n "]

        def compare(text: str) -> None:
            path = oracle.write(text)
            warnings: list[Problem] = []
            entries = texthash.parse(Path(path).read_bytes(), path, True, warnings)
            extra = {key.upper() for key in entries} | {b"a", b"b", b"a:", b"missing"}
            keys = [key for key in {*entries, *extra} if b"\t" not in key]
            self.compare(oracle, f"texthash:{path}", keys)
            _, complaints = oracle.postmap(f"texthash:{path}", [b"x"])
            lines = [str(warning.line) for warning in warnings if not re.match("text after|a logical", warning.text)]
            assert re.findall(r"line (\d+): (?!text after)", complaints) == lines, text

        reads_utf8 = oracle.reads_utf8

        def text() -> str:
            # Not both: versions differ in whether what follows a NUL has to be UTF-8.
            odd = source.choice([["\u00dc", "\udcff"], ["\0"]]) if reads_utf8 else []
            return "".join(source.choices(pieces + odd, k=source.randrange(60)))

        at_once(compare, [text() for _ in range(150)])

    def test_fail(self, oracle: Oracle) -> None:
        """A fail table fails, but not for a key that is not UTF-8."""
        table = context().open_table("fail:x")
        for key in (b"", b"key"):
            with pytest.raises(TemporaryError):
                result_of(table.lookup(key))
            assert "query error" in oracle.postmap("fail:x", [key])[1]
        assert result_of(table.lookup(b"\xff")) is None
        assert "query error" not in oracle.postmap("fail:x", [b"\xff"])[1]

    def test_missing_file(self, oracle: Oracle) -> None:
        """A text file that is missing cannot be opened."""
        self.compare(oracle, f"texthash:{oracle.folder}/none", [b"a"])
