"""What the configuration reader makes of a file, beside what Postfix itself makes of it."""

from __future__ import annotations

import random
import re

from socketmap_memcache.config.parameters import Parameters
from socketmap_memcache.config.syntax import parse
from socketmap_memcache.errors import ConfigurationError, Problem

from .oracle import Oracle, at_once


def problems(read: Parameters) -> list[str]:
    try:
        read.finish([])
    except ConfigurationError as error:
        return [problem.text for problem in error.problems]
    return []


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
