"""A mail, and what nobody should send instead of one."""

from __future__ import annotations

from random import Random

from .harness.policy import request

DEFERRED = b"DEFER_IF_PERMIT Greylisted, see http://postgrey.schweikert.ch/help/"
DELAYED = b"PREPEND X-Greylist: delayed "
MAIL: dict[str, str | bytes] = {
    "client_address": "192.0.2.7",
    "client_name": "mx.example.com",
    "sender": "alice@example.com",
    "recipient": "bob@example.org",
}
MEGABYTE = 2**20
#: What is no address of a client.
NO_ADDRESSES: list[str | bytes] = [
    b"unknown",
    b"",
    b"fe80::1%eth0",
    b"fe80::1%",
    b"1.2.3",
    b"1.2.3.4.5",
    b"1.2.3.256",
    b"-1.0.0.0",
    b"[::1]",
    b"IPv6:::1",
    b"::1::",
    b"192.0.2.1 ",
    b"192.0.2\r.1",
    b"192.0.2.1/24",
    "\u0661.2.3.4".encode(),
    b"\xff\xfe",
    b"1" * 60_000,
    b"%s{}",
]
#: Senders and recipients.
ADDRESSES: list[str | bytes] = [
    # UTF-8
    "jürgen@exämple.com",
    "用户@例子.公司",
    "İẞﬀ@EXÄMPLE.com",
    "\U0001f4e7@\u202eexample.com",
    "e\u0301@example.com",
    # other bytes
    b"j\xfcrgen@example.com",
    b"\xff\xfe\x80@\xc0\xaf",
    b"\xed\xa0\x80@surrogate.example",
    b"a@\xe2\x82",
    # blanks and control characters
    "a b@example.com",
    " a@example.com",
    "a@example.com ",
    "a\tb@example.com",
    "a\rb@example.com",
    "\r@x",
    "a@b c",
    "\x01\x02\x1b[2J@\x7f",
    "\u0085\u2028@x",
    "\xa0@x",
    # what is hardly an address, and what has a meaning here
    "",
    "@",
    "a",
    "a@",
    "@b",
    "a@b@c",
    "<>",
    "/",
    "a/b@c/d",
    "#",
    "t/x",
    "c/192.0.2.7",
    "t/#" + "0" * 64,
    "{}@{x}",
    "%s%r%t@%d",
    "$name@${x}",
    "'\"\\`@;|&",
    "a=b@c=d",
    "prvs=@x",
    "prvs=a=b=c=@x",
    "SRS0=@x",
    "+@x",
    "1@2",
    # long ones, and some about the length up to which keys are not hashed
    "s" * 500 + "@example.com",
    "b " * 250 + "@example.com",
    "ü" * 250 + "@x",
    "a@" + "d" * 5000,
    "x" * 30_000,
    *["l" * length + "@example.com" for length in (150, 153, 154, 155, 156, 160, 200, 234, 250, 251)],
]


def mutated(random: Random, number: int) -> bytes:
    """Make a request with some bytes changed, or lines lost, doubled or exchanged; without its end."""
    lines = request({**MAIL, "instance": f"{number}"}).strip().split(b"\n")
    for _ in range(random.randrange(1, 4)):
        place = random.randrange(len(lines))
        kind = random.randrange(5)
        if kind == 0:
            lines[place] = random.choice(lines)
        elif kind == 1:
            lines.insert(place, random.randbytes(random.randrange(50)))
        elif kind == 2:
            name, equals, value = lines[place].partition(b"=")
            lines[place] = name + equals + random.randbytes(random.randrange(40)) + value
        elif kind == 3:
            lines[place] = lines[place].partition(b"=")[0] + b"="
        else:
            cut = random.randrange(len(lines[place]) + 1)
            lines[place] = lines[place][:cut] + bytes([random.randrange(256)]) + lines[place][cut:]
    return b"\n".join(lines)
