"""What is done with an input to each codec, and what must hold then.

A codec of a stream is given the input twice, whole and cut: both times the same has to come out of it, and no exception
but its own. A codec of a text is given it once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import product
from random import Random
from typing import Any

from socketmap_memcache.config import syntax
from socketmap_memcache.config.parameters import Parameters
from socketmap_memcache.errors import ConfigurationError, Problem, ProtocolError
from socketmap_memcache.policies.greylist import record, whitelist_syntax
from socketmap_memcache.policies.greylist.record import RecordError
from socketmap_memcache.protocols import memcache, memcache_meta, policy, proxymap, redis, socketmap, tcp_table
from socketmap_memcache.protocols.netstring import NetstringReader, encode
from socketmap_memcache.tables import cidr, mail_address, regexp, rules, texthash
from socketmap_memcache.tables.key_format import KeyFormat
from tests.fuzz.mutate import cut
from tests.fuzz.target import Check, Target

#: Small, so that inputs come to it.
LIMIT = 300

#: Reads the next item that a reader has, or ``None``.
Take = Callable[[Any], object]


def _outcome(reader: Any, take: Take, chunks: Sequence[bytes]) -> tuple[list[Any], bool]:
    """Return what a reader makes of an input, and whether it is garbage after that."""
    found: list[object] = []
    for chunk in chunks:
        reader.feed(chunk)
        try:
            while (item := take(reader)) is not None:
                found.append(item)
        except ProtocolError:
            return found, True
    return found, False


def _stream(make: Callable[[], Any], take: Take, parse: Callable[[Any], object] | None = None) -> Check:
    """Return a check of a reader: the outcome of an input does not depend on how it is cut.

    :param parse: is given each item, and may say that it is garbage.
    """

    def check(_: object, data: bytes, random: Random) -> None:
        whole, pieces = _outcome(make(), take, [data]), _outcome(make(), take, cut(random, data))
        assert whole == pieces, f"whole: {whole}, cut: {pieces}"
        if parse is not None:
            for item in whole[0]:
                with suppress(ProtocolError):
                    parse(item)

    return check


def _netstring(payload: bytes) -> None:
    assert NetstringReader(LIMIT).sole(encode(payload)) == payload
    with suppress(ProtocolError):
        socketmap.parse_request(payload)
    socketmap.parse_reply(payload)


def _line(line: bytes) -> None:
    key = tcp_table.parse_request(line)
    assert tcp_table.parse_request(b"get " + tcp_table.quote(key)) == key


def _memcache_reply(reader: memcache.ReplyReader) -> memcache.Reply | None:
    return reader.next_reply(LIMIT, LIMIT)


def _memcache_hit(reader: memcache.ReplyReader) -> memcache.Reply | None:
    """The short ways to the same replies."""
    value = reader.next_hit(b"a", LIMIT, LIMIT)
    if value is not None:
        return memcache.Reply(b"END", b"a", value)
    return memcache.Reply(b"END") if reader.next_is(b"END\r\n", LIMIT) else _memcache_reply(reader)


def _hits(_: object, data: bytes, __: Random) -> None:
    """The short ways to a reply of memcached's give the same as the long one."""
    plain, short = (_outcome(memcache.ReplyReader(), take, [data]) for take in (_memcache_reply, _memcache_hit))
    assert plain == short, f"plain: {plain}, short: {short}"


class _Values:
    """A reader of replies to ``get`` with several keys, which hands over all values of a reply together."""

    def __init__(self) -> None:
        self._reader = memcache.ReplyReader()
        self._values: dict[bytes, bytes | None] = {}
        self.feed = self._reader.feed

    def take(self) -> object:
        reply = self._reader.next_values(self._values, LIMIT, LIMIT)
        if reply is None:
            return None
        values, self._values = self._values, {}
        return reply, values


def _memcache_meta_reply(reader: memcache.ReplyReader) -> memcache.Reply | None:
    return reader.next_meta_reply(LIMIT, LIMIT)


def _memcache_meta_flags(reply: memcache.Reply) -> None:
    for flag, token in memcache_meta.reply_flags(reply.status).items():
        assert flag + token in reply.status


def _redis_reply(reader: redis.ReplyReader) -> object:
    reply = reader.next_reply()
    return None if isinstance(reply, redis.Unfinished) else (reply,)  # a reply may be None


def _redis_again(item: tuple[redis.Reply]) -> None:
    """A command is an array of what it is made of."""
    (reply,) = item
    if isinstance(reply, bytes):
        reader = redis.ReplyReader(LIMIT)
        reader.feed(redis.command(b"GET", reply[:LIMIT]))
        assert reader.next_reply() == [b"GET", reply[:LIMIT]]
        assert reader.idle


#: Replies to all functions, in all dialects.
_PROXYMAP_REPLIES = tuple(product(proxymap.Function, proxymap.Dialect))


def _proxymap_reply(attributes: list[tuple[bytes, bytes]]) -> None:
    for function, dialect in _PROXYMAP_REPLIES:
        with suppress(ProtocolError):
            proxymap.parse_reply(attributes, function, dialect)


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


#: Each module of protocols (receive_buffer is what their readers are made of). Three ways to read the same replies of
#: memcached's share a number of inputs.
WIRE = (
    Target(
        "netstring, socketmap",
        ("socketmap-requests", "socketmap-replies"),
        _stream(partial(NetstringReader, LIMIT), NetstringReader.next_payload, _netstring),
    ),
    Target(
        "tcp_table",
        ("tcp-table-requests",),
        _stream(partial(tcp_table.LineReader, LIMIT), tcp_table.LineReader.next_payload, _line),
    ),
    Target(
        "policy",
        ("policy-requests",),
        _stream(policy.RequestReader, policy.RequestReader.next_payload, policy.parse_request),
    ),
    Target("memcache replies", ("memcache-replies",), _stream(memcache.ReplyReader, _memcache_reply), share=0.4),
    Target("memcache values", ("memcache-replies",), _stream(_Values, _Values.take), share=0.3),
    Target("memcache hits", ("memcache-replies",), _hits, share=0.3),
    Target(
        "memcache_meta",
        ("memcache-meta-replies",),
        _stream(memcache.ReplyReader, _memcache_meta_reply, _memcache_meta_flags),
    ),
    Target("redis", ("redis-replies",), _stream(partial(redis.ReplyReader, LIMIT), _redis_reply, _redis_again)),
    Target(
        "proxymap",
        ("proxymap-replies",),
        _stream(partial(proxymap.AttributeReader, LIMIT), proxymap.AttributeReader.next_list, _proxymap_reply),
    ),
)

#: What an administrator writes, and what is in a store.
TEXTS = (
    Target("main.cf", ("main-cf",), _configuration, share=0.1),
    Target("greylist record", ("greylist-records",), _greylist_record, share=0.1),
    Target("whitelist of clients", ("whitelist-clients",), _whitelist(whitelist_syntax.parse_clients), share=0.1),
    Target("whitelist of senders", ("whitelist-mail",), _whitelist(whitelist_syntax.parse_senders), share=0.1),
    Target("whitelist of recipients", ("whitelist-mail",), _whitelist(whitelist_syntax.parse_recipients), share=0.1),
    Target("key_format", ("key-formats",), _key_format, share=0.1),
    Target("cidr", ("cidr",), _rules(cidr.CidrLanguage), share=0.1),
    Target("regexp", ("regexp",), _rules(regexp.RegexpLanguage), share=0.1),
    Target("texthash", ("whitelist-mail", "cidr"), _texthash, share=0.1),
    Target("mail address", ("whitelist-mail", "tcp-table-requests"), _mail_address, share=0.1),
)
