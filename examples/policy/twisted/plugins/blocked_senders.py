"""A policy that refuses mail from the senders in a table, each with the text that the table has for it."""

from __future__ import annotations

from typing import ClassVar

from twisted.internet.defer import Deferred
from zope.interface import implementer

from socketmap_memcache.config.parameters import Parameters
from socketmap_memcache.policies.interface import DUNNO, IPolicy, IPolicyType, PolicyContext, Request
from socketmap_memcache.tables.interface import ITable


@implementer(IPolicy)
class BlockedSenders:
    """Asks the table for the sender's address."""

    name = "blocked_senders"
    fail_action = b"DEFER_IF_PERMIT Service temporarily unavailable"  # b"DUNNO" would let mail flow

    def __init__(self, table: ITable) -> None:
        self._table = table

    def decide(self, request: Request) -> bytes | Deferred[bytes]:
        sender = request.get(b"sender")
        return self._table.lookup(sender).addCallback(_action) if sender else DUNNO

    def close(self) -> None:
        self._table.close()


def _action(text: bytes | None) -> bytes:
    return DUNNO if text is None else b"REJECT " + text


@implementer(IPolicyType)
class BlockedSendersType:
    """Opens the policy with the table that main.cf names."""

    name = "blocked_senders"
    parameters: ClassVar = {"blocked_senders_table": "texthash:$config_directory/blocked_senders"}

    def open(self, parameters: Parameters, context: PolicyContext) -> IPolicy:
        return BlockedSenders(context.tables.open_table(parameters.text("blocked_senders_table", "")))


blocked_senders = BlockedSendersType()  # this is what the service finds
