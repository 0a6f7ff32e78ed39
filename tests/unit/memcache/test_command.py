from __future__ import annotations

import pytest
from twisted.internet.defer import Deferred

from socketmap_memcache.asker import FIRING
from socketmap_memcache.memcache.command import Command, CommandRefusedError, Delete, Get, Set
from socketmap_memcache.memcache.interface import Limits
from socketmap_memcache.protocols.memcache import MemcacheError, Reply

LIMITS = Limits(data_size_limit=10)
GET = Get(b"k", LIMITS, {}, FIRING, Deferred())
SET = Set(b"k", b"v", 1, 2, LIMITS, FIRING, Deferred())
DELETE = Delete(b"k", LIMITS, FIRING, Deferred())


def test_wire() -> None:
    """A command knows its bytes."""
    assert [command.wire for command in (GET, SET, DELETE)] == [b"get k\r\n", b"set k 1 2 1\r\nv\r\n", b"delete k\r\n"]


@pytest.mark.parametrize(
    "command, reply, result",
    [
        (GET, Reply(b"END"), None),
        (GET, Reply(b"END", b"k", b"v"), b"v"),
        (GET, Reply(b"END", b"k", b""), b""),
        (SET, Reply(b"STORED"), True),
        (DELETE, Reply(b"DELETED"), True),
        (DELETE, Reply(b"NOT_FOUND"), False),
    ],
)
def test_result(command: Command, reply: Reply, result: object) -> None:
    """A reply in good order is the command's result."""
    assert command.result(reply) == result


@pytest.mark.parametrize("command", [GET, SET, DELETE])
@pytest.mark.parametrize(
    "status", [b"", b"END ", b"end", b"OK", b"VALUE", b"EXISTS", b"NOT_STORED", b"ERRORS", b"SERVER_ERRORS x", b"\xff"]
)
def test_unexpected(command: Command, status: bytes) -> None:
    """Any other reply means that the connection cannot be trusted; it is never a miss."""
    with pytest.raises(MemcacheError, match="unexpected reply"):
        command.result(Reply(status))


@pytest.mark.parametrize("status", [b"ERROR", b"CLIENT_ERROR", b"CLIENT_ERROR x", b"SERVER_ERROR out of memory"])
def test_refused(status: bytes) -> None:
    """An error of the server is a refusal, in good order; but to a set not: its data may be taken for a command."""
    for command in (GET, DELETE):
        with pytest.raises(CommandRefusedError, match="unexpected reply"):
            command.result(Reply(status))
    with pytest.raises(MemcacheError, match="unexpected reply"):
        SET.result(Reply(status))


@pytest.mark.parametrize("command", [GET, SET, DELETE])
def test_value_for_another_key(command: Command) -> None:
    """A value for another key, or for a command that asks for none, means that replies and commands do not match."""
    reply = Reply(b"END", b"k2" if command is GET else b"k", b"v")
    with pytest.raises(MemcacheError, match="a value for another key"):
        command.result(reply)


def test_too_long() -> None:
    """A value above the limit is refused, with both sizes; not if it is for another key."""
    with pytest.raises(CommandRefusedError, match=r"value of 11 bytes \(data_size_limit is 10\)"):
        GET.result(Reply(b"END", b"k", None, 11))
    with pytest.raises(MemcacheError, match="another key"):
        GET.result(Reply(b"END", b"k2", None, 11))


def test_abstract() -> None:
    """A command has to say what a reply means."""
    with pytest.raises(NotImplementedError):
        Command(b"k", b"", LIMITS, FIRING, Deferred()).result(Reply(b"END"))
