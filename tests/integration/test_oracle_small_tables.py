"""What the small tables have, beside what Postfix's own have."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from socketmap_memcache.errors import ConfigurationError, Problem, TemporaryError
from socketmap_memcache.tables import texthash
from tests.unit.deferreds import result_of

from .oracle import ODD_BYTES, ODD_KEYS, Oracle, at_once, context


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
