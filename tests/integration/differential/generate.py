"""Makes up tables and keys: every parameter of memcache_table(5), every oddity of a key."""

from __future__ import annotations

from random import Random

import attrs

_PLAIN = ["user", "User", "root", "a", "j.doe", "x+ext", "Straße", "ÜSER", "İx", "ΣΑΣ", "ﬁx"]
_PLAIN += ['"quo', "o'brien", "50%", "%s"]
_DOMAINS = ["example.com", "Example.COM", "example.org", "sub.example.com", "a.b.c.d.e.f.g.h.i.j", "com", "[1.2.3.4]"]
_DOMAINS += ["dom.", ".dom", "a..b", ".", "münchen.example", "example.com.", "xn--mnchen-3ya.example"]
_ODD = ["", "@", "@@", "a@b@example.com", "@example.com", "user@", "user", "a b@example.com", "tab\tbed@example.com"]
_ODD += ["*", ".example.com", "example.com", "127.0.0.1", "{x}", "#x", "!x", "a,b", "=", "v\vt", "f\ff@example.com"]
_ODD += [" lead", "trail ", "\u00a0nbsp", "\u2028ls", "\u0085nel@example.com"]
_BYTES = [b"\xe4@example.com", b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80"]
_BYTES += [b"ok\xef\xbf\xbe"]

_FORMATS = ["%s", "aliases:%s", "%u", "%d", "%u.%d", "%S", "%U/%D", "%1", "%2.%1", "%3:%2:%1", "%9", "%s%s", "100%%%s"]
_FORMATS += ["%u-%s", "fixed", "p:%s:q", "%%", "%u at %d", "%d=%d=%u", "ü:%s", ""]
_DOMAIN_LISTS = ["example.com", "Example.COM, example.org", "!example.org, static:all", "!sub.example.com static:all"]
_DOMAIN_LISTS += ["{example.com}", "inline:{{example.com=1}}", "/DIR/domains", "!/DIR/domains, static:x"]
_DOMAIN_LISTS += ["!!example.com", "!example.com", "static:all", "münchen.example", "fail:x", "example.com, fail:x"]
_DOMAIN_LISTS += ["texthash:/DIR/table"]
_BACKUPS = ["texthash:/DIR/table", "inline:{user@example.com=inline, { a = blank text }}", "inline:{x=}"]
_BACKUPS += ["static:always", "fail:it"]


@attrs.frozen
class Case:
    """A table and the keys that are looked up in it.

    :ivar cf: what its file says.
    :ivar failing: whether errors are to be expected, which cost postmap a second each.
    """

    cf: str
    keys: list[bytes]
    failing: bool


def domains_file(random: Random) -> str:
    """Make the file that some domain lists read."""
    return "# domains\n\nexample.com\n  # indented\nEXAMPLE.ORG,\n\tsub.example.com\n" + random.choice(["", "a.b\n"])


def table_file() -> str:
    """Make the texthash file that some tables and domain lists read."""
    lines = ["# table", "user@example.com  from the backup", "Root@Example.COM\troot's", "  value", "example.com yes"]
    return "\n".join([*lines, "a one", "user bare", ""])


def case(random: Random, good: str, bad: dict[str, str], keys: int) -> Case:
    """Make one case.

    :param good: the address of a server that works.
    :param bad: addresses of servers that do not.
    :param keys: how many keys a table that works is asked for.
    """
    broken = random.random() < 0.12
    parameters = {"memcache": random.choice(list(bad.values())) if broken else good}
    if random.random() < 0.7:
        parameters["key_format"] = random.choice(_FORMATS)
    if random.random() < 0.4:
        parameters["domain"] = random.choice(_DOMAIN_LISTS)
    if random.random() < 0.4:
        parameters["backup"] = random.choice(_BACKUPS)
    small = random.random() < 0.06
    if small:
        parameters[random.choice(["data_size_limit", "line_size_limit"])] = str(random.choice([1, 5, 12, 20, 30, 40]))
    parameters["max_try"] = "1" if broken or small or random.random() < 0.5 else random.choice(["2", "3"])
    parameters["timeout"] = random.choice(["1", "2", "+2", "010"])
    for name, values in (("flags", ["0", "7", "-1"]), ("ttl", ["0", "60", "3600", "-5"]), ("retry_pause", ["1"])):
        if random.random() < 0.3:
            parameters[name] = random.choice(values)
    failing = broken or small or "fail:" in parameters.get("domain", "")
    if "fail:" in parameters.get("backup", ""):
        failing = True
    made = [_key(random) for _ in range(6 if failing else keys)]
    return Case(_file(random, parameters), made, failing)


def long_key(random: Random) -> bytes:
    """Make a key about as long as memcached takes."""
    domain = b"@example.com"
    return b"k" * (random.choice([249, 250, 251, 400]) - len(domain)) + domain


def _key(random: Random) -> bytes:
    kind = random.random()
    if kind < 0.62:
        return f"{random.choice(_PLAIN)}@{random.choice(_DOMAINS)}".encode()
    if kind < 0.72:
        return b"user@example.com"
    if kind < 0.92:
        return random.choice(_ODD).encode()
    return random.choice(_BYTES)


def _file(random: Random, parameters: dict[str, str]) -> str:
    """Write the parameters in the many ways that Postfix reads."""
    names = list(parameters)
    random.shuffle(names)
    end = "\r\n" if random.random() < 0.1 else "\n"
    lines = ["# a comment", ""] if random.random() < 0.5 else []
    for name in names:
        equals = random.choice(["=", " = ", " =", "= ", "\t=\t"])
        value = parameters[name]
        if " " in value and "{" not in value and name != "key_format" and random.random() < 0.3:
            value = value.replace(" ", end + "  # between" + end + "   ", 1)
        if random.random() < 0.1:
            lines.append(f"{name} = 1" if name != "memcache" else "memcache = unix:/nowhere")
        lines.append(name + equals + value + random.choice(["", "", " ", "\t"]))
        if random.random() < 0.1:
            lines.append(random.choice(["", "   ", "#x = y", "unknown = 1"]))
    return end.join(lines) + random.choice(["", end])
