"""``socketmap-memcache map`` beside postmap: the same output, exit status and kinds of messages."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs
import pytest

from .harness.map_command import COMMAND, Outcome, run_map
from .harness.memcached import Memcached
from .harness.postfix import Postfix
from .harness.processes import PATIENCE, scratch_directory, wait_until, write_config

SOURCE = (
    'a 1\nB two words\n"q x" quoted\nkey-with-long-name@example.com\tvalue, more\n\u00dcser \u00fc\nz last\n'.encode()
)
KEYS = b'a\nA\nb\nnope\n\n"q x"\n\xff\n\xc3\x9cSER\na\0rest\nz\r\nz\nKey-With-Long-Name@example.com'
UPDATES = (
    b'new 1\nNEW 2\na other\n# comment\nlong one\n  goes on\nempty \n\xff v\n"open v\nk: v\n'
    b'"with space" v\nn\0 v\n\n\xc3\xbc \xc3\xa4\nlast v'
)


@attrs.frozen
class Tools:
    postfix: Postfix
    folder: Path
    memcached: Memcached
    cache: str
    cached: str

    def compare(self, *arguments: str | bytes, stdin: bytes = b"") -> Outcome:
        """Run both, and give what they agree on."""
        theirs = self.postfix.postmap(*arguments, stdin=stdin)
        ours = run_map(*arguments, stdin=stdin)
        assert Outcome.of(ours) == Outcome.of(theirs), (arguments, ours.stderr, theirs.stderr)
        return Outcome.of(ours)

    def compare_changes(self, kind: str, changes: list[tuple[tuple[str | bytes, ...], bytes]]) -> None:
        """Make the same changes to two tables, and compare what came out of each, and what is in them at the end."""
        outcomes = []
        lists = []
        for name, run in (("theirs", self.postfix.postmap), ("ours", run_map)):
            folder = self.folder / f"{kind}-{name}"
            shutil.copytree(self.folder / "tables", folder)
            table = f"{kind}:{folder / kind}"
            outcomes.append([Outcome.of(run(*options, table, stdin=stdin)) for options, stdin in changes])
            lists.append(self.postfix.postmap("-s", table).stdout)
        assert outcomes[1] == outcomes[0]
        assert lists[1] == lists[0]
        assert lists[0]


@pytest.fixture(scope="module")
def tools() -> Iterator[Tools]:
    with scratch_directory() as directory:
        folder = directory / "files"
        tables = folder / "tables"
        tables.mkdir(parents=True)
        with Memcached(directory) as memcached:
            postfix = Postfix(directory, {"smtputf8_enable": "yes"})
            for kind in ("lmdb", "btree", "hash", "texthash"):
                (tables / kind).write_bytes(SOURCE)
                if kind != "texthash":
                    postfix.postmap(f"{kind}:{tables / kind}")
            cf = f"memcache = {memcached.address}\nmax_try = 1\n"
            cache = write_config(folder / "cache.cf", cf)
            cached = write_config(folder / "cached.cf", f"{cf}backup = lmdb:{tables}/lmdb\n")
            yield Tools(postfix, folder, memcached, f"memcache:{cache}", f"memcache:{cached}")


def at_once(*calls: Callable[[], object]) -> None:
    # postmap pauses for a second before it says that it has failed.
    with ThreadPoolExecutor(4) as pool:
        for call in [pool.submit(call) for call in calls]:
            call.result()


@pytest.mark.parametrize("kind", ["lmdb", "btree", "hash", "texthash"])
def test_files(tools: Tools, kind: str) -> None:
    """Look-ups and lists of files are postmap's."""
    table = f"{kind}:{tools.folder / 'tables' / kind}"
    assert tools.compare("-q", "-", table, stdin=KEYS).status == 0
    assert tools.compare("-fq", "-", table, stdin=KEYS).status == 0
    ours, theirs = run_map("-s", table), tools.postfix.postmap("-s", table)
    assert ours.returncode == theirs.returncode == 0
    if kind in {"lmdb", "btree"}:
        assert ours.stdout == theirs.stdout
    assert sorted(ours.stdout.splitlines()) == sorted(theirs.stdout.splitlines())


def test_one_key(tools: Tools) -> None:
    """The look-up of one key is postmap's."""
    table = f"lmdb:{tools.folder / 'tables' / 'lmdb'}"
    for options, key, status in (("-q", b"A", 0), ("-fq", b"A", 1), ("-q", b"nope", 1), ("-q", b"\xff", 1)):
        assert tools.compare(options, key, table).status == status


def test_small_tables(tools: Tools) -> None:
    """Look-ups in tables that have no file, and in several tables, are postmap's."""
    two = ("inline:{a=b}", "inline:{a=c, b=d}")
    tools.compare("-q", "-", *two, stdin=b"b\na\nx\nB")
    tools.compare("-q", "b", *two)
    tools.compare("-q", "-", "static:v", stdin=KEYS)
    tools.compare("-q", "a", "static:v", "fail:x")
    tools.compare("-q", "-", "static:v", stdin=b"")
    tools.compare("-s", "inline:{a=b}")


def test_empty_value(tools: Tools) -> None:
    """An empty value is printed with a warning, from postmap in the same words."""
    arguments = ("-q", "a", "inline:{a=}")
    assert tools.compare(*arguments).stdout == b"\n"
    theirs = tools.postfix.postmap(*arguments).stderr
    assert run_map(*arguments).stderr == theirs.replace(b"postmap: ", b"socketmap-memcache map: ")


def test_refusals(tools: Tools) -> None:
    """What postmap refuses, with status 1 and a fatal error, is refused."""
    table = f"lmdb:{tools.folder / 'tables' / 'lmdb'}"
    for_all: list[tuple[str, ...]] = [
        ("-q", "a", "fail:x"),
        ("-q", "-", "fail:x"),
        ("-s", "fail:x"),
        ("-d", "a", "fail:x"),
        ("-s", "static:x"),
        ("-d", "a", "static:x"),
        ("-d", "-", "texthash:/nowhere"),
        ("-i", "static:x"),
        ("-q", "a", "bogus:x"),
        ("-q", "a", f"{table}-none"),
        ("-q", "a"),
        ("-q", "a", "-s", table),
        ("-X", table),
        (),
    ]

    def compare(arguments: tuple[str, ...]) -> None:
        outcome = tools.compare(*arguments, stdin=b"a\n")
        assert (outcome.status, outcome.stdout) == (1, b"")
        assert "fatal" in outcome.messages

    at_once(*[lambda arguments=arguments: compare(arguments) for arguments in for_all])


def test_memcache(tools: Tools) -> None:
    """Look-ups and deletes in memcached are postmap's, whatever is there."""
    tools.memcached.flush()
    odd = {b"nul": b"a\0b", b"empty": b"", b"lines": b"a\nb", "\u00fc".encode(): b"v", b"cr": b"a\rb", b"tab": b"a\tb"}
    tools.memcached.set_many({**odd, **{b"user%d" % number: b"v%d" % number for number in range(0, 3000, 3)}})
    keys = b"\n".join([*odd, *(b"USER%d" % number for number in range(3000)), b"a b", b"", KEYS])
    tools.compare("-q", "-", tools.cache, stdin=keys)
    tools.compare("-q", "nul", tools.cache)
    tools.compare("-d", "nothing", tools.cache)
    for run in (tools.postfix.postmap, run_map):
        tools.memcached.set_many({b"one": b"1", b"two": b"2"})
        assert run("-d", "ONE", tools.cache).returncode == 0
        assert run("-d", "-", tools.cache, stdin=b"none\ntwo\n").returncode == 0
        assert run("-d", "-", tools.cache, stdin=b"none\ntwo\n").returncode == 1
        assert tools.memcached.get(b"one") is None


def test_memcache_bad_value(tools: Tools) -> None:
    """A value that is not UTF-8 ends the look-ups, with what was found before them."""
    tools.memcached.set_many({b"good": b"1", b"bad": b"\xff"})
    theirs = tools.postfix.postmap("-q", "-", tools.cache, stdin=b"good\nbad\ngood\n")
    ours = run_map("-q", "-", tools.cache, stdin=b"good\nbad\ngood\n")
    assert ours.returncode == theirs.returncode == 1
    assert ours.stderr == theirs.stderr.replace(b"postmap: ", b"socketmap-memcache map: ")
    assert ours.stdout == b"good\t1\n"


def test_memcache_backup(tools: Tools) -> None:
    """The backup is asked for what is not in memcached, and listed."""
    tools.memcached.flush()
    for _ in range(2):
        tools.compare("-q", "-", tools.cached, stdin=KEYS)
    tools.memcached.flush()
    assert (
        run_map("-q", "-", tools.cached, stdin=KEYS).stdout == tools.compare("-q", "-", tools.cached, stdin=KEYS).stdout
    )
    tools.compare("-s", tools.cached)


def test_memcache_no_backup(tools: Tools) -> None:
    """A cache without a backup cannot be listed, which is a warning, in postmap's words, and no failure."""
    assert tools.compare("-s", tools.cache) == Outcome(0, b"", ["warning"])
    theirs = tools.postfix.postmap("-s", tools.cache).stderr
    assert run_map("-s", tools.cache).stderr == theirs.replace(b"postmap: ", b"socketmap-memcache map: ")


@pytest.mark.parametrize("text", ["{}", ":{}", "localhost:{}", "[127.0.0.1]:{}", "[]:{}", "::{}", "127.0.0.1:"])
def test_memcache_servers(text: str) -> None:
    """A server may be written in all the ways that Postfix's own client knows, and in no other."""
    with scratch_directory() as directory, Memcached(directory, tcp=True) as memcached:
        memcached.set(b"key", b"value")
        port = memcached.address.rpartition(":")[2]
        table = f"memcache:{write_config(directory / 't.cf', f'memcache = inet:{text.format(port)}')}"
        theirs, ours = Postfix(directory).postmap("-q", "key", table), run_map("-q", "key", table)
        assert Outcome.of(ours) == Outcome.of(theirs), (ours.stderr, theirs.stderr)


def test_memcache_update(tools: Tools) -> None:
    """Entries can be stored in memcached, in place of those that are there, as Postfix does since 3.11."""
    for options in ("-i", "-ir"):
        done = run_map(options, tools.cache, stdin=b"Stored 1\nstored 2\n")
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        assert tools.memcached.get(b"stored") == b"2"


def test_memcache_down(tools: Tools) -> None:
    """Without a memcached the look-up fails; it does not say that there is no such key."""
    cf = write_config(tools.folder / "down.cf", f"memcache = unix:{tools.folder}/none\n")
    for arguments in (("-q", "a"), ("-q", "-"), ("-d", "a")):
        done = run_map(*arguments, f"memcache:{cf}", stdin=b"a\n")
        assert done.returncode == 1
        assert b"fatal: table memcache:" in done.stderr


@pytest.mark.parametrize("kind", ["lmdb", "btree"])
def test_changes(tools: Tools, kind: str) -> None:
    """Updates and deletes leave the table that postmap leaves, with the same outcomes."""
    tools.compare_changes(
        kind,
        [
            (("-i",), UPDATES),
            (("-ir",), b"a replaced\n"),
            (("-iw",), b"a kept\nz kept\nw new\n"),
            (("-if",), b"Cap value\n"),
            (("-d", "B"), b""),
            (("-d", b"\xff"), b""),
            (("-d", "-"), b'none\n"Q X"\n'),
            (("-d", "-"), b"none\n"),
            (("-fd", "Cap"), b""),
        ],
    )


def test_new_file(tools: Tools) -> None:
    """A file that does not exist is made by an update, and postmap reads it."""
    table = f"lmdb:{tools.folder / 'made'}"
    assert run_map("-i", table, stdin=b"k v\n").returncode == 0
    assert tools.postfix.postmap("-s", table).stdout == b"k\tv\n"


def test_many(tools: Tools) -> None:
    """Thousands of updates and look-ups come through, in order."""
    table = f"lmdb:{tools.folder / 'many'}"
    entries = b"".join(b"k%d v%d\n" % (number, number) for number in range(5000))
    assert run_map("-i", table, stdin=entries).returncode == 0
    keys = b"".join(b"k%d\n" % (number % 7000) for number in range(20000))
    assert tools.compare("-q", "-", table, stdin=keys).status == 0


def test_reader_leaves() -> None:
    """When the reader of the output leaves it ends quietly."""
    keys = b"".join(b"k%d\n" % number for number in range(100_000))
    with subprocess.Popen(
        [*COMMAND, "-q", "-", "static:v"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        try:
            child.stdin.write(keys)
            child.stdin.close()
        except BrokenPipeError:
            pass
        assert child.stderr.read() == b""
        assert child.wait(PATIENCE) == 141


def test_interrupted_update(tools: Tools) -> None:
    """^C while entries are typed ends it by that signal, and what was typed is stored."""
    table = f"lmdb:{tools.folder / 'typed'}"
    with subprocess.Popen([*COMMAND, "-i", table], stdin=subprocess.PIPE) as child:
        assert child.stdin is not None
        child.stdin.write(b"k v\nnext")
        child.stdin.flush()
        wait_until(lambda: tools.postfix.postmap("-s", table).stdout == b"k\tv\n", "the first entry is stored")
        child.send_signal(signal.SIGINT)
        assert child.wait(PATIENCE) == -signal.SIGINT


def test_interrupted_query() -> None:
    """^C while keys are typed ends it at once."""
    with subprocess.Popen([*COMMAND, "-q", "-", "static:v"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(b"k\n")
        child.stdin.flush()
        assert child.stdout.readline() == b"k\tv\n"
        child.send_signal(signal.SIGINT)
        assert child.wait(PATIENCE) == -signal.SIGINT


def test_terminal() -> None:
    """On a terminal it answers each key that is typed, and ends at the end of the input."""
    ours, theirs = pty.openpty()
    with subprocess.Popen([*COMMAND, "-q", "-", "static:v"], stdin=theirs, stdout=subprocess.PIPE) as child:
        os.close(theirs)
        assert child.stdout is not None
        os.write(ours, b"typed\n")
        assert child.stdout.readline() == b"typed\tv\n"
        os.write(ours, b"\x04")
        assert child.wait(PATIENCE) == 0
    os.close(ours)
