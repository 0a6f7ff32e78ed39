"""cidr:, regexp:, socketmap: and the tcp_table(5) server, with Postfix as the oracle or the client."""

from __future__ import annotations

import random
import re
import socketserver
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from socketmap_memcache.errors import TableError
from socketmap_memcache.tables.interface import ITable
from socketmap_memcache.tables.registry import TableContext
from tests.unit.deferreds import result_of

from .harness.processes import accepts, free_port, scratch_directory, wait_until, write_config
from .harness.service import Service
from .harness.socketmap import ask
from .oracle import Oracle, at_once

if TYPE_CHECKING:
    from socketmap_memcache.memcache.pool import ClientPool


def open_table(spec: str) -> tuple[ITable, set[int]]:
    """Open a table that needs no reactor; return it, and the lines that it warns of."""
    context = TableContext(clients=cast("ClientPool", None))
    table = context.open_table(spec)
    # Postfix does not say where that one is.
    return table, {warning.line for warning in context.warnings if "must not start with" not in warning.text}


def source_of(kind: str, source: list[bytes], key: bytes) -> list[bytes]:
    """Return the rules that were made for a key, where there is such a thing."""
    number = key.partition(b":")[0]
    start = source.index(b"if /^%b:/" % number) if kind == "regexp" and b"if /^%b:/" % number in source else 0
    return source[start : start + 3] if start else source


def compare(oracle: Oracle, kind: str, text: bytes, keys: Sequence[bytes]) -> int:
    """Hold a table against Postfix's own: the results, and the lines that are complained about.

    :return: how many keys were found.
    """
    path = oracle.folder / f"{kind}{threading.get_ident()}"
    path.write_bytes(text)
    table, lines = open_table(f"{kind}:{path}")
    found, complaints = oracle.postmap(f"{kind}:{path}", keys)
    assert "fatal" not in complaints, complaints
    source = text.split(b"\n")
    answers = [(key, result_of(table.lookup(key)), found.get(key)) for key in keys]
    differences = [(key, ours, theirs) for key, ours, theirs in answers if ours != theirs]
    assert not differences, [(*difference, source_of(kind, source, difference[0])) for difference in differences[:5]]
    complained = {int(line) for line in re.findall(r", line (\d+):", complaints)}
    assert lines == complained, [(line, source[line - 1]) for line in lines ^ complained]
    return len(found)


# cidr:

ADDRESSES = [
    *("1.2.3.4", "1.2.3.0", "1.2.0.0", "1.0.0.0", "0.0.0.0", "255.255.255.255", "128.0.0.0", "1.2.3", "01.2.3.4"),  # noqa: S104
    *("::", "::1", "1::", "1:2::", "1:2:3:4:5:6:7:8", "::ffff:1.2.3.4", "ffff::", "1::2::3", "1.2.3.4.5", "a", ""),
]


def cidr_line(rng: random.Random) -> str:
    pattern = "".join(rng.choice(["", "", "", "!", "! ", "!!"])) + rng.choice(ADDRESSES)
    if rng.random() < 0.5:
        pattern += f"/{rng.choice([0, 1, 7, 8, 15, 16, 23, 24, 31, 32, 33, 64, 127, 128, 129, '', 'x', 99999999999])}"
    if rng.random() < 0.1:
        pattern = rng.choice(["[{}]", "[{}", "[{}]x", "[{}]/8"]).format(pattern)
    word = rng.choice(["", "", "", "", "if", "IF ", "endif", "endif x", "# ", " ", "iffy "])
    if word.startswith("endif"):
        return word
    return f"{word} {pattern}" if word.lower().startswith("if") else f"{word}{pattern} {rng.choice(['', 'x y ', 'z'])}"


def test_cidr(oracle: Oracle, source: random.Random) -> None:
    """Generated tables, good and bad rules in them, have what Postfix finds there, and the same bad lines."""
    keys = [address.encode() for address in ADDRESSES[:-1]] + [
        b"%d.%d.%d.%d" % tuple(source.choices([0, 1, 2, 3, 4, 127, 128, 255], k=4)) for _ in range(30)
    ]
    keys = sorted({*keys, b"\xc3\xa9", b" 1.2.3.4", b"[1.2.3.4]"})
    found = 0
    for _ in range(60):
        lines = [f"{cidr_line(source)} {number}" for number in range(source.randint(1, 25))]
        lines = [line if "if" not in line.lower() else line.rpartition(" ")[0] for line in lines]
        found += compare(oracle, "cidr", "".join(f"{line}\n" for line in lines).encode(), keys)
    assert found > 200


# regexp:

#: Pieces of expressions, of which most arrangements mean something and some do not.
PIECES = [
    *("a", "b", "A", "_", ".", "*", "+", "?", "(", ")", "|", "[", "]", "^", "$", "{", "}", "\\", ",", "1", "2", "-"),
    *(":", "=", "[[:alpha:]", "[:lower:]", "[^a", "[.-.]", "\\(", "\\)", "\\|", "\\{", "\\}", "\\1", "\\w", "\\W"),
    *(
        "\\<",
        "\\>",
        "\\b",
        "\\B",
        "\\s",
        "\\`",
        "\\'",
        "(a|ab)",
        "[a-b]",
        "{1,2}",
        "[A-z]",
        "\\a",
        "\u00e9",
        "a*",
        "b+",
    ),
]
#: Pieces with submatches, without what the documentation excepts.
GROUPS = ["a", "b", "ab", "(a|ab)", "(b*)", "(c|ca)?", ".", "a?", "^", "(.*)", "([a-c]+)", "(b|(ca)|c)"]

CHARACTERS = "aabbcAB_-]1^$*|) "


def regexp_rule(rng: random.Random, number: int) -> str:
    """Make a rule for keys that begin with a number."""
    if rng.random() < 0.3:
        expression = "".join(rng.choices(GROUPS, k=rng.randint(1, 5)))
        line = f"/:{expression}/ {rng.choice(['<$1>', '${2}$$', '$(1)-$2', '$', '$3 $1', '$1a', '${1', '$0'])}"
    else:
        flags = "".join(rng.choices("imx", k=rng.choice([0, 0, 0, 1, 1, 2])))
        line = f"{'!' * rng.choice([0, 0, 0, 1])}/{''.join(rng.choices(PIECES, k=rng.randint(0, 8)))}/{flags}"
        line += f"!/{rng.choice(PIECES)}/" if rng.random() < 0.1 else ""
        line += rng.choice([" x", " x", " x", "", "q x"])
    return f"if /^{number}:/\n{line}\nendif\n"


def test_regexp(oracle: Oracle, source: random.Random) -> None:
    """Generated expressions match what they match in Postfix, with the same submatches; bad ones are the same."""
    found = 0
    for _ in range(4):
        rules = [regexp_rule(source, number) for number in range(200)]
        keys = {
            f"{number}:{''.join(source.choices(CHARACTERS, k=source.randint(0, 6)))}"
            for number in range(200)
            for _ in range(8)
        }
        found += compare(oracle, "regexp", "".join(rules).encode(), [key.encode() for key in sorted(keys)])
    assert found > 350


def test_regexp_structure(oracle: Oracle, source: random.Random) -> None:
    """Generated tables of simple rules, with blocks and what may be wrong with them, have what Postfix finds there."""
    lines = [
        *("/a/ A", "/b/ B", "!/c/ notC", "/(d+)/ D$1", "/E/i E", "/f/!/a/ F", "if /a/", "if !/b/", "IF /c/ x", "endif"),
        *("ENDIF x", "if", "if /(/", "/(/ x", "/g/", "word x", " cont", "# no", "|a| x", "/a\\", "/a\\/ x", "!", "/a"),
        *("iff /a/", "endifx", "/[[:upper:]]/i U", "/h/ $1", "!/(h)/ $1", "/(h)/ $$1", "if /d/ if", "//", "//x z"),
    ]
    keys = ["a", "b", "c", "dd", "e", "E", "f", "fa", "g", "h", "x", "ab", "bc", "abcdefgh", "A", "\u00e9", "a/"]
    for _ in range(60):
        text = "".join(f"{line}\n" for line in source.choices(lines, k=source.randint(1, 12)))
        compare(oracle, "regexp", text.encode(), [key.encode() for key in keys])


def test_regexp_limit(oracle: Oracle) -> None:
    """A key for which an expression would take ages fails, soon."""
    path = oracle.folder / "ages"
    path.write_text("/^(a+)+$/ x\n")
    table, _ = open_table(f"regexp:{path}")
    with pytest.raises(TableError, match="line 1: no result within"):
        result_of(table.lookup(b"a" * 100 + b"!"))
    assert result_of(table.lookup(b"a" * 100)) == b"x"


# tcp:


@pytest.fixture(scope="module")
def tcp(oracle: Oracle) -> Iterator[tuple[str, Service]]:
    """Serve a table by tcp_table(5); give its Postfix name, and the service."""
    source = write_config(
        oracle.folder / "source", f"fits {'x' * 4091}\nlong {'y' * 4092}\nk v w%\u00e9\nb%c d\n\u00fc umlaut\n"
    )
    port = free_port()
    address = f"inet:127.0.0.1:{port}"
    config = f"tables = m=texthash:{source} f=fail:x\ntcp_table_listen = m={address}\n"
    with scratch_directory() as directory, Service(directory, config) as service:
        wait_until(lambda: accepts(address), "the tcp_table listener")
        yield f"tcp:127.0.0.1:{port}", service


def test_tcp(oracle: Oracle, tcp: tuple[str, Service]) -> None:
    """Postfix's client finds what the table has, up to a reply of 4096 bytes, and misses what it has not."""
    table, service = tcp
    keys = ["fits", "k", "b%c", "\u00dc", "missing", "a b", "%41", '"quoted"', "x" * 5000]
    found, complaints = oracle.postmap(table, [key.encode() for key in keys])
    assert complaints == ""
    assert found == {
        b"fits": b"x" * 4091,
        b"k": "v w%\u00e9".encode(),
        b"b%c": b"d",
        "\u00dc".encode(): b"umlaut",
    }
    assert "Traceback" not in service.log


def test_tcp_too_long(oracle: Oracle, tcp: tuple[str, Service]) -> None:
    """A value that makes a reply of 4097 bytes is an error, not a miss, and at once."""
    done = oracle.postfix.postmap("-q", "long", tcp[0], seconds=5)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"query error" in done.stderr


def test_tcp_reload(oracle: Oracle, tcp: tuple[str, Service]) -> None:
    """The listener is named in the service's log."""
    table, service = tcp
    assert f"try: postmap -q alice@example.com {table}" in service.log
    assert oracle.postmap(table, [b"k"])[0] != {}


# socketmap:


class ScriptedHandler(socketserver.StreamRequestHandler):
    """Sends to each request what the server has been told, and leaves if told so."""

    def handle(self) -> None:
        server = cast("ScriptedSocketmap", self.server)
        while (digits := self.rfile.read(1)) != b"":
            while (digit := self.rfile.read(1)) != b":":
                digits += digit
            key = self.rfile.read(int(digits) + 1)[:-1].partition(b" ")[2]
            reply, stays = server.replies[key]
            self.wfile.write(reply)
            if not stays:
                return


class ScriptedSocketmap(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, path: Path, replies: dict[bytes, tuple[bytes, bool]]) -> None:
        super().__init__(str(path), ScriptedHandler)
        self.replies = replies


def netstring(payload: bytes) -> bytes:
    return b"%d:%b," % (len(payload), payload)


# By key: what the server sends, and whether it stays connected. With the outcome: the value, None for a miss, or the
# service's status.
REPLIES: dict[bytes, tuple[bytes, bool, bytes | None]] = {
    b"found": (netstring(b"OK v"), True, b"v"),
    b"leaves-after": (netstring(b"OK v"), False, b"v"),
    b"blanks": (netstring(b"OK  a  b "), True, b" a  b "),
    b"nul": (netstring(b"OK a\0b"), True, b"a"),
    b"missing": (netstring(b"NOTFOUND "), True, None),
    b"missing-with-text": (netstring(b"NOTFOUND x"), True, None),
    b"longest": (netstring(b"OK " + b"x" * 99_997), True, b"x" * 99_997),
    b"temp": (netstring(b"TEMP x"), True, b"TEMP"),
    b"timeout": (netstring(b"TIMEOUT x"), True, b"TIMEOUT"),
    b"perm": (netstring(b"PERM x"), True, b"PERM"),
    b"lower": (netstring(b"ok v"), True, b"TEMP"),
    b"empty": (b"0:,", True, b"TEMP"),
    b"no-comma": (b"4:OK vv", True, b"TEMP"),
    b"no-length": (b"OK v", True, b"TEMP"),
    b"too-long": (netstring(b"OK " + b"x" * 99_998), True, b"TEMP"),
    b"not-utf8": (netstring(b"OK \xff"), True, b"PERM"),
    b"half": (b"4:OK", False, b"TEMP"),
    b"leaves": (b"", False, b"TEMP"),
}


@pytest.fixture(scope="module")
def scripted(oracle: Oracle) -> Iterator[str]:
    path = oracle.folder / "scripted.sock"
    with ScriptedSocketmap(path, {key: (reply, stays) for key, (reply, stays, _) in REPLIES.items()}) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"socketmap:unix:{path}:m"
        server.shutdown()
        thread.join()


def test_socketmap(oracle: Oracle, scripted: str) -> None:
    """Whatever a server replies, the table makes of it what Postfix's own client does."""
    with scratch_directory() as directory, Service(directory, f"tables = a={scripted}\n") as service:

        def check(key: bytes) -> None:
            expected = REPLIES[key][2]
            status, _, text = ask(service.addresses[0], "a", key).partition(b" ")
            done = oracle.postfix.postmap("-q", key, scripted, seconds=30)
            if status == b"OK":
                assert (text, done.stdout) == (expected, text + b"\n"), key
            elif status == b"NOTFOUND":
                assert expected is None, key
                assert (done.returncode, b"fatal" in done.stderr) == (1, False), key
            else:
                assert status == expected, (key, text)
                assert b"query error" in done.stderr or b"lookup error" in done.stderr, (key, done)

        at_once(check, REPLIES)
        assert "Traceback" not in service.log


def test_socketmap_of_this_service(oracle: Oracle) -> None:
    """A service asks another one; when that is restarted nothing fails, and when it is gone nothing is missing."""
    with scratch_directory() as near, scratch_directory() as far:
        server = Service(far, "tables = b=inline:{k=v}\n").start()
        try:
            with Service(near, f"tables = a={server.map('b')} bad={server.map('nothing')}\n") as service:
                address = service.addresses[0]
                keys = [b"k", b"missing", b"k2"]
                assert oracle.postmap(service.map("a"), keys) == ({b"k": b"v"}, "")
                assert ask(address, "bad").startswith(b"PERM ")
                server.stop()
                assert ask(address, "a", b"missing").startswith(b"TEMP ")
                server.start()
                assert ask(address, "a", b"k") == b"OK v"
                assert ask(address, "a", b"K") == b"OK v"
        finally:
            server.kill()
