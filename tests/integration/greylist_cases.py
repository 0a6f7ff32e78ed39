"""Made-up lists, options and requests that postgrey and this service are asked to agree on.

What postgrey gets wrong on purpose, so to say, is not among them: it has tests of its own.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from ipaddress import ip_address
from random import Random

import attrs

#: The time of the first request, and how long after it the last ones are: nothing gets as old as max_age.
BEGIN = 1_000_000_000
SPAN = 34 * 86400

_LABELS = ["example", "mail", "mx1", "MX22", "com", "net", "a", "b-c", "d_e", "dyn", "unknown"]
_USERS = ["joe", "Joe.Doe", "news", "a-b", "x_1", "post+master", "info", "o'neil", "50%off"]
_EXPRESSIONS = [
    r"/^mx\d+\./",
    r"/\.(com|net)$/",
    r"/^[ab]/",
    r"/[[:digit:]_]/",
    r"/(\w)\.\1/",
    r"/^(?!mail)m/",
    r"/(?i:A)\b.c/",
    r"/^unknown$/",
    r"/^news.*@/",
    r"/\+\w+@/",
    r"/@[^.]+\z/",
    r"/^(?<x>.)(?:.*)\k<x>$/",
]


def domain(random: Random) -> str:
    """Make a domain, or the name of a host."""
    return ".".join([*random.choices([*_LABELS, "10"], k=random.randrange(4)), random.choice(_LABELS)])


def client_name(random: Random) -> str:
    return "unknown" if random.random() < 0.1 else domain(random)


def client_address(random: Random) -> str:
    """Make an address of one of a few networks; one of IPv6 is not always written in the shortest way."""
    if random.random() < 0.6:
        return f"10.{random.randrange(3)}.{random.randrange(3)}.{random.randrange(256)}"
    value = 0x20010DB8 << 96 | random.getrandbits(3) << 64 | random.getrandbits(random.choice([2, 16, 64]))
    address = ip_address(value)
    return random.choice([address.compressed, address.exploded, address.compressed.upper()])


def recipient(random: Random) -> str:
    extension = random.choice(["", "", "", "+x", "+x+y", "+", "+news"])
    return f"{random.choice(_USERS)}{extension}@{domain(random)}"


def client_entry(random: Random) -> str:
    """Make an entry of a list of clients."""
    kind = random.random()
    if kind < 0.4:
        return domain(random)
    if kind < 0.5:
        return random.choice(_EXPRESSIONS)
    address = client_address(random)
    if kind < 0.6:
        return address
    if ":" in address:
        return f"{address}/{random.choice([32, 48, 62, 63, 64, 65, 96, 126, 127, 128])}"
    if kind < 0.7:
        return address.rpartition(".")[0]
    return f"{address}/{random.choice([1, 8, 14, 15, 16, 23, 24, 25, 31, 32])}"


def recipient_entry(random: Random) -> str:
    """Make an entry of a list of recipients."""
    kind = random.random()
    if kind < 0.3:
        return random.choice(_USERS) + "@"
    if kind < 0.6:
        return recipient(random)
    return domain(random) if kind < 0.9 else random.choice(_EXPRESSIONS)


def whitelist(random: Random, entries: list[str]) -> str:
    """Make a file of entries, with comments and blanks."""
    ends = ["\n", "\n", "\r\n", " # why\n", "\n\n#none\n"]
    return "".join(random.choice(["", "", "  ", "\t"]) + entry + random.choice(ends) for entry in entries)


@attrs.frozen
class Options:
    """How both are set up.

    :ivar postgrey: its options; :ivar main_cf: the same for us.
    :ivar edges: times between two requests that matter.
    """

    postgrey: list[str]
    main_cf: str
    client_whitelist: str = attrs.field(repr=reprlib.repr)
    recipient_whitelist: str = attrs.field(repr=reprlib.repr)
    edges: Sequence[int] = (3600,)


def options(random: Random, *, lists: bool) -> Options:
    """Make a set of options.

    :param lists: whether there is something in the whitelists.
    """
    hours = random.choice([1, 5, 48, 240])
    delay = random.choice([1, 60, 300, 300, 300, 1800])
    chosen = {
        "delay": delay,
        "auto-whitelist-clients": random.choice([0, 1, 2, 5, 5]),
        "ipv4cidr": random.choice([8, 16, 24, 24, 27, 32]),
        "ipv6cidr": random.choice([1, 32, 63, 64, 64, 128]),
        "greylist-action": random.choice(["DEFER_IF_PERMIT", "DEFER_IF_PERMIT", "defer", "450"]),
        "greylist-text": random.choice(
            [
                "Greylisted, see http://postgrey.schweikert.ch/help/%r.html",
                "Come back in %s seconds (%s) to %r or %r: 100%",
                "4.7.1 %r %x %t",
            ]
        ),
        "x-greylist-header": random.choice(
            ["X-Greylist: delayed %t seconds by %v at %h; %d", "X-Delayed: %t %t %d %s %%, %h %h"]
        ),
        "hostname": "mx.example",
    }
    ours = {
        "greylist_delay": f"{delay}s",
        "greylist_retry_window": f"{hours}h",
        "greylist_auto_whitelist_clients": chosen["auto-whitelist-clients"],
        "greylist_ipv4_prefix": chosen["ipv4cidr"],
        "greylist_ipv6_prefix": chosen["ipv6cidr"],
        "greylist_action": chosen["greylist-action"],
        "greylist_text": chosen["greylist-text"],
        "greylist_header": chosen["x-greylist-header"],
        "greylist_hostname": chosen["hostname"],
    }
    postgrey = [f"--{name}={value}" for name, value in chosen.items()]
    postgrey.append(f"--retry-window={random.choice([f'{hours}h', f'{hours}H'])}")
    if hours % 24 == 0:
        postgrey[-1] = f"--retry-window={hours // 24}"
    for name, parameter in (("privacy", "greylist_privacy"), ("lookup-by-host", "greylist_lookup_by_host")):
        if random.random() < 0.3:
            postgrey.append(f"--{name}")
            ours[parameter] = "yes"
    return Options(
        postgrey,
        "".join(f"{name} = {value}\n" for name, value in ours.items()),
        whitelist(random, [client_entry(random) for _ in range(random.randint(1, 3))]) if lists else "",
        whitelist(random, [recipient_entry(random) for _ in range(random.randint(1, 3))]) if lists else "",
        [delay, hours * 3600, 3600],
    )


Attributes = dict[str, str]


def _sender(random: Random) -> str:
    tag = "".join(random.choices("0123456789abcdef", k=10))
    local = random.choice(
        [
            "joe",
            "Jane.Doe",
            f"joe+{random.randrange(5)}",
            f"list-{random.randrange(5)}-bounces",
            f"bounce-{random.randrange(99)}.{random.randrange(99)}-x{random.randrange(2)}",
            f"prvs={tag}=joe",
            f"prvs=joe={tag}",
            f"prvs={tag}={tag[::-1]}",
            f"prvs=joe={tag}=x+y",
            f"v12.{random.randrange(9)}-z_1%2",
            "jörg",
            "o'neil joe",
            "a@b",
            "j" * random.choice([180, 505, 600]),
        ]
    )
    address = f"{local}@{random.choice(['a.example', 'B.example', 'bücher.example', '1.example'])}"
    return random.choice([address] * 6 + ["", "no-domain-12", address.lower(), local + "@"])


def _known(random: Random, base: Attributes) -> Attributes:
    """Make a request that may be for the same triplet as another, and may not."""
    made = dict(base)
    if random.random() < 0.15:
        made["sender"] = made["sender"].swapcase() if made["sender"].isascii() else made["sender"]
    if random.random() < 0.1:
        made["recipient"] = made["recipient"].upper()
    if random.random() < 0.1:
        made["client_address"] = client_address(random)
    if random.random() < 0.1 and "." in made["client_address"]:
        made["client_address"] = made["client_address"].rpartition(".")[0] + f".{random.randrange(256)}"
    if random.random() < 0.05:
        made["sender"] = _sender(random)
    return made


def requests(random: Random, count: int, *, edges: Sequence[int], forward: bool) -> list[Attributes]:
    """Make requests, each with its time as ``policy_test_time``.

    :param edges: times between two requests that matter; see :class:`Options`.
    :param forward: whether time never goes back.
    """
    mails: list[Attributes] = []
    instances: list[str] = ["first"]
    times: dict[str, list[int]] = {}  # of the requests from each address
    now = BEGIN
    made = []
    for number in range(count):
        if len(mails) < 5 or random.random() < 0.08:
            mails = [_mail(random, mails), *mails[: random.choice([10, 40])]]
        attributes = _known(random, random.choice(mails[: random.choice([3, 50])]))
        before = times.setdefault(attributes["client_address"], [])
        now = _time(random, now, before, edges, SPAN // count, forward)
        before.append(now)
        attributes["policy_test_time"] = str(now)
        if random.random() < 0.9:
            if random.random() < 0.7:
                instances = [f"{number:x}.{random.getrandbits(32):x}", *instances[:200]]
            attributes["instance"] = random.choice(instances[: random.choice([1, 1, 14, 200])])
        if random.random() < 0.8:
            attributes["etrn_domain"] = ""
        if random.random() < 0.1:
            attributes["queue_id"] = random.choice(["", "4F1C2A"])
        made.append(attributes)
    return made


def _mail(random: Random, others: list[Attributes]) -> Attributes:
    """Make what is tried again and again, perhaps by the client of another mail."""
    mail = {
        "client_name": random.choice([client_name(random), ""]) if random.random() < 0.1 else domain(random),
        "client_address": client_address(random),
        "sender": _sender(random),
        "recipient": random.choice([recipient(random)] * 8 + ["", "root"]),
    }
    if others and random.random() < 0.4:
        mail["client_address"] = random.choice(others)["client_address"]
    return mail


def _time(random: Random, now: int, before: list[int], edges: Sequence[int], mean: int, forward: bool) -> int:
    """Return the time of the next request: soon, or much later, or to the second what matters after an earlier one."""
    if not forward and random.random() < 0.1:
        return max(now - random.choice([1, 100, 3600, 86400, 10 * 86400]), BEGIN)
    step = random.choice([0, 0, 1, 2, 5, 20])
    if random.random() < 0.3:
        step = random.choice([30, 59, 60, 299, 300, 1799, 1800, 3600])
    if random.random() < 0.1:
        step = int(random.expovariate(1 / (5 * mean)))
    times = [now + step]
    if random.random() < 0.5:
        latest = now + random.choice([600, 4000, 4000, 4000, 10 * mean])
        exact = [earlier + edge + random.choice([-1, 0, 0, 1]) for earlier in before[-8:] for edge in edges]
        times = [time for time in exact if now <= time <= latest] or times
    return min(random.choice(times), BEGIN + SPAN)
