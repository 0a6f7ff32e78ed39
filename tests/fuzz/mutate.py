"""Changes samples as faults, cuts and malice would."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from random import Random

#: What parsers look at.
TOKENS = (
    *(b"\0", b"\n", b"\r\n", b"\n\n", b"\r", b" ", b",", b":", b"=", b"%", b"/", b"@", b"#", b"$", b"{", b"}", b"\\"),
    *(b"0", b"1", b"-1", b"00", b"250", b"251", b"1000", b"4096", b"65536", b"99999", b"100001", b"2147483648"),
    *(
        b"9" * 30,
        b"\xff",
        b"\x80",
        b"\xc3",
        b"\xc3\xbc",
        b"\xe2\x82\xac",
        b"\xed\xa0\x80",
        b"END\r\n",
        b"VALUE a 0 5\r\n",
    ),
)

_MOST_BYTES = 4096

_DIGITS = re.compile(rb"[0-9]{1,10}(?![0-9])")

_Change = Callable[[Random, bytearray, Sequence[bytes]], None]


def mutate(random: Random, samples: Sequence[bytes]) -> bytes:
    """Return one of the samples, changed in one to four places; sometimes of several thousand bytes."""
    data = bytearray(random.choice(samples))
    for _ in range(1 + random.getrandbits(2)):
        random.choice(_CHANGES)(random, data, samples)
    return bytes(data[:_MOST_BYTES])


def cut(random: Random, data: bytes) -> list[bytes]:
    """Return chunks that joined are the data: one, a few, or single bytes."""
    kind = random.getrandbits(2)
    if kind == 0 and len(data) < 300:
        return [data[place : place + 1] for place in range(len(data))]
    places = sorted(random.randint(0, len(data)) for _ in range(kind))
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True) if start < end]


def _place(random: Random, data: bytearray) -> int:
    return random.randint(0, len(data))


def _range(random: Random, data: bytes | bytearray) -> slice:
    start = random.randint(0, len(data))
    return slice(start, start + random.choice((1, 1, 2, 4, 16, 64, len(data))))


def _flip(random: Random, data: bytearray, _: Sequence[bytes]) -> None:
    if data:
        data[random.randrange(len(data))] ^= 1 << random.getrandbits(3)


def _byte(random: Random, data: bytearray, _: Sequence[bytes]) -> None:
    if data:
        data[random.randrange(len(data))] = random.getrandbits(8)


def _delete(random: Random, data: bytearray, _: Sequence[bytes]) -> None:
    del data[_range(random, data)]


def _truncate(random: Random, data: bytearray, _: Sequence[bytes]) -> None:
    del data[_place(random, data) :]


def _insert(random: Random, data: bytearray, _: Sequence[bytes]) -> None:
    place = _place(random, data)
    data[place:place] = random.choice(TOKENS)


def _replace(random: Random, data: bytearray, _: Sequence[bytes]) -> None:
    data[_range(random, data)] = random.choice(TOKENS)


def _repeat(random: Random, data: bytearray, _: Sequence[bytes]) -> None:
    part = _range(random, data)
    data[part] = data[part] * random.choice((2, 2, 3, 10, 100))


def _splice(random: Random, data: bytearray, samples: Sequence[bytes]) -> None:
    other = random.choice(samples)
    data[_range(random, data)] = other[_range(random, other)]


def _append(random: Random, data: bytearray, samples: Sequence[bytes]) -> None:
    data += random.choice(samples)


def _number(random: Random, data: bytearray, _: Sequence[bytes]) -> None:
    """Change the first number behind a place: lengths are what codecs trust."""
    found = _DIGITS.search(data, _place(random, data))
    if found is not None:
        data[slice(*found.span())] = b"%d" % max(0, int(found[0]) + random.choice((-1, 1, 2, 10, 1000, 10**9)))


_CHANGES: tuple[_Change, ...] = (
    *(_flip, _byte, _delete, _truncate, _insert, _insert, _replace, _repeat, _splice, _append, _number, _number),
)
