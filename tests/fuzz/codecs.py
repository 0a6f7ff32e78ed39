"""What is done with an input to each codec, and what must hold then.

A codec of a stream is given the input twice, whole and cut: both times the same has to come out of it, and no exception
but its own. A codec of a text is given it once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from socketmap_memcache.config import syntax
from socketmap_memcache.config.parameters import Parameters
from socketmap_memcache.errors import ConfigurationError, Problem, ProtocolError
from socketmap_memcache.policies.greylist import record, whitelist_syntax
from socketmap_memcache.policies.greylist.record import RecordError
from socketmap_memcache.protocols import memcache, policy, proxymap, socketmap, tcp_table
from socketmap_memcache.protocols.netstring import NetstringReader, encode
from socketmap_memcache.tables import cidr, mail_address, regexp, rules, texthash
from socketmap_memcache.tables.key_format import KeyFormat
from tests.fuzz.mutate import cut
from tests.fuzz.target import Check, Target

#: Small, so that inputs come to it.
LIMIT = 300

#: Reads all that a reader has, and gives it back.
Take = Callable[[Any], list[object]]


def _stream(make: Callable[[], Any], take: Take) -> Check:
    """Return a check of a reader: the outcome of an input does not depend on how it is cut."""

    def outcome(chunks: Sequence[bytes]) -> tuple[list[object], bool]:
        reader = make()
        found: list[object] = []
        for chunk in chunks:
            reader.feed(chunk)
            try:
                while items := take(reader):
                    found += items
            except ProtocolError:
                return found, True
        return found, False

    def check(_: object, data: bytes, random: Random) -> None:
        whole, pieces = outcome([data]), outcome(cut(random, data))
        assert whole == pieces, f"whole: {whole}, cut: {pieces}"

    return check


def _netstring_reader() -> NetstringReader:
    return NetstringReader(LIMIT)


def _netstrings(reader: NetstringReader) -> list[object]:
    payload = reader.next_payload()
    if payload is None:
        return []
    for parse in (socketmap.parse_request, socketmap.parse_reply):
        try:
            parse(payload)
        except ProtocolError:
            continue
    assert NetstringReader(LIMIT).sole(encode(payload)) == payload
    return [payload]


def _line_reader() -> tcp_table.LineReader:
    return tcp_table.LineReader(LIMIT)


def _lines(reader: tcp_table.LineReader) -> list[object]:
    line = reader.next_payload()
    if line is None:
        return []
    try:
        key = tcp_table.parse_request(line)
    except ProtocolError:
        return [line]
    assert tcp_table.parse_request(b"get " + tcp_table.quote(key)) == key
    return [line, key]


def _policy_requests(reader: policy.RequestReader) -> list[object]:
    payload = reader.next_payload()
    if payload is None:
        return []
    try:
        return [payload, policy.parse_request(payload)]
    except ProtocolError:
        return [payload]


def _memcache_replies(reader: memcache.ReplyReader) -> list[object]:
    reply = reader.next_reply(LIMIT, LIMIT)
    return [] if reply is None else [reply]


def _memcache_hits(reader: memcache.ReplyReader) -> list[object]:
    """The short ways to the same replies."""
    value = reader.next_hit(b"a", LIMIT, LIMIT)
    if value is not None:
        return [memcache.Reply(b"END", b"a", value)]
    return [memcache.Reply(b"END")] if reader.next_is(b"END\r\n", LIMIT) else _memcache_replies(reader)


class _Values:
    """A reader of replies to ``get`` with several keys, which hands over all values of a reply together."""

    def __init__(self) -> None:
        self._reader = memcache.ReplyReader()
        self._values: dict[bytes, bytes | None] = {}
        self.feed = self._reader.feed

    def take(self) -> list[object]:
        reply = self._reader.next_values(self._values, LIMIT, LIMIT)
        if reply is None:
            return []
        values, self._values = self._values, {}
        return [reply, values]


def _attribute_reader() -> proxymap.AttributeReader:
    return proxymap.AttributeReader(LIMIT)


def _attribute_lists(reader: proxymap.AttributeReader) -> list[object]:
    attributes = reader.next_list()
    if attributes is None:
        return []
    found: list[object] = [tuple(attributes)]
    for function in proxymap.Function:
        for dialect in proxymap.Dialect:
            try:
                found.append(proxymap.parse_reply(attributes, function, dialect))
            except ProtocolError:
                continue
    return found


def _hits(_: object, data: bytes, __: Random) -> None:
    """The short ways to a reply of memcached's give the same as the long one."""
    outcomes: list[object] = []
    for take in (_memcache_replies, _memcache_hits):
        reader, found = memcache.ReplyReader(), []
        reader.feed(data)
        try:
            while items := take(reader):
                found += items
        except ProtocolError:
            found.append(None)
        outcomes.append(found)
    assert outcomes[0] == outcomes[1], outcomes


def _configuration(_: object, data: bytes, __: Random) -> None:
    parsed = syntax.parse(data, "file")
    expanded = syntax.expand(parsed, {"config_directory": "/etc"})
    parameters = Parameters(expanded)
    for name in parsed.entries:
        for word in parameters.words(name, ""):
            for read in (syntax.split_option, syntax.strip_braces):
                try:
                    read(word)
                except ValueError:
                    continue
        parameters.time(name, 1)
        parameters.integer(name, 1, 0, 10)
        parameters.boolean(name, False)
    parameters.unknown(fatal=True)
    try:
        parameters.finish([])
    except ConfigurationError as error:
        str(error).encode(errors="surrogateescape")


def _greylist_record(_: object, data: bytes, __: Random) -> None:
    for parse in (record.parse_triplet, record.parse_client):
        try:
            parsed = parse(data)
        except RecordError:
            continue
        assert parse(record.format_record(parsed)) == parsed


def _whitelist(parse: Callable[[bytes, str, list[Problem]], object]) -> Check:
    def check(_: object, data: bytes, __: Random) -> None:
        problems: list[Problem] = []
        parse(data, "file", problems)
        for problem in problems:
            str(problem)

    return check


def _key_format(_: object, data: bytes, __: Random) -> None:
    template, _, key = data.partition(b" ")
    try:
        KeyFormat.parse(template).expand(key)
    except ValueError:
        return


def _rules(language: Callable[[], Any]) -> Check:
    def check(_: object, data: bytes, __: Random) -> None:
        warnings: list[Problem] = []
        rules.parse(data, "file", language(), warnings)
        for warning in warnings:
            str(warning)

    return check


def _texthash(_: object, data: bytes, __: Random) -> None:
    texthash.parse(data, "file", True, [])


def _mail_address(_: object, data: bytes, __: Random) -> None:
    local = mail_address.unquote(data)
    mail_address.quote(local)
    mail_address.split_extension(local, b"+-")
    mail_address.add_extension(data, b"+ext")


#: Those that take little time get more inputs.
CODECS = (
    Target(
        "netstring, socketmap", ("socketmap-requests", "socketmap-replies"), 3, _stream(_netstring_reader, _netstrings)
    ),
    Target("tcp_table", ("tcp-table-requests",), 3, _stream(_line_reader, _lines)),
    Target("policy", ("policy-requests",), 1, _stream(policy.RequestReader, _policy_requests)),
    Target("memcache replies", ("memcache-replies",), 3, _stream(memcache.ReplyReader, _memcache_replies)),
    Target("memcache values", ("memcache-replies",), 3, _stream(_Values, _Values.take)),
    Target("memcache hits", ("memcache-replies",), 3, _hits),
    Target("proxymap", ("proxymap-replies",), 1, _stream(_attribute_reader, _attribute_lists)),
    Target("main.cf", ("main-cf",), 1, _configuration),
    Target("greylist record", ("greylist-records",), 3, _greylist_record),
    Target("whitelist of clients", ("whitelist-clients",), 1, _whitelist(whitelist_syntax.parse_clients)),
    Target("whitelist of senders", ("whitelist-mail",), 1, _whitelist(whitelist_syntax.parse_senders)),
    Target("whitelist of recipients", ("whitelist-mail",), 1, _whitelist(whitelist_syntax.parse_recipients)),
    Target("key_format", ("key-formats",), 3, _key_format),
    Target("cidr", ("cidr",), 2, _rules(cidr.CidrLanguage)),
    Target("regexp", ("regexp",), 1, _rules(regexp.RegexpLanguage)),
    Target("texthash", ("whitelist-mail", "cidr"), 2, _texthash),
    Target("mail address", ("whitelist-mail", "tcp-table-requests"), 3, _mail_address),
)
