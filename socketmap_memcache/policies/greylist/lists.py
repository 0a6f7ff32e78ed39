"""What is asked before the table: who is not greylisted at all, and what is particular to clients and recipients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import attrs

from socketmap_memcache.config.parameters import Parameters
from socketmap_memcache.policies.greylist.key import ATTRIBUTE_LIMIT
from socketmap_memcache.policies.greylist.recipient_access import RecipientAccess, open_recipient_access
from socketmap_memcache.policies.greylist.settings import PARAMETERS, Settings
from socketmap_memcache.policies.greylist.whitelists import (
    ClientWhitelist,
    List,
    RecipientWhitelist,
    SenderWhitelist,
    open_whitelist,
)
from socketmap_memcache.policies.interface import Request
from socketmap_memcache.tables.registry import TableContext

#: The attributes without which nothing can be decided, in the order in which postgrey looks for them.
NEEDED = (b"client_address", b"client_name", b"recipient", b"sender")

NO_ADDRESS = b"can't parse client_address"
AUTHENTICATED = b"authenticated client"
CLIENT_WHITELIST = b"client whitelist"
RECIPIENT_WHITELIST = b"recipient whitelist"
SENDER_WHITELIST = b"sender whitelist"
RECIPIENT_ACCESS = b"recipient access"

#: A reason to let a mail pass, and what says whether it holds for a request.
Exemption = tuple[bytes, Callable[[Request], bool]]


@attrs.frozen
class Lists:
    """What a site has configured; ``None`` for what it has not.

    :ivar never_auto_whitelist: clients whose triplets are greylisted however many of them have passed.
    """

    clients: ClientWhitelist | None = None
    recipients: RecipientWhitelist | None = None
    senders: SenderWhitelist | None = None
    never_auto_whitelist: ClientWhitelist | None = None
    recipient_access: RecipientAccess | None = None

    def exemptions(self) -> list[Exemption]:
        """Give the reasons not to greylist, in the order in which they are tried."""
        clients, recipients, senders = self.clients, self.recipients, self.senders
        found: list[Exemption] = [(AUTHENTICATED, is_authenticated)]
        if clients is not None:
            found.append((CLIENT_WHITELIST, partial(matches_client, clients)))
        if recipients is not None:
            found.append((RECIPIENT_WHITELIST, lambda request: recipients.matches(_cut(request[b"recipient"]))))
        if senders is not None:
            found.append((SENDER_WHITELIST, lambda request: senders.matches(_cut(request[b"sender"]))))
        return found

    def may_auto_whitelist(self, request: Request) -> bool:
        """Say whether a client may be let through because triplets of its have passed."""
        return self.never_auto_whitelist is None or not matches_client(self.never_auto_whitelist, request)

    def close(self) -> None:
        """Close everything."""
        for each in (self.clients, self.recipients, self.senders, self.never_auto_whitelist, self.recipient_access):
            if each is not None:
                each.close()


def open_lists(parameters: Parameters, settings: Settings, context: TableContext) -> Lists:
    """Open the lists and tables that the parameters name; what is wrong with them is noted there."""

    def open_list(kind: type[List], name: str) -> List | None:
        files = parameters.words(name, PARAMETERS[name])
        return open_whitelist(kind, files, name, parameters, context.reactor) if files else None

    return Lists(
        clients=open_list(ClientWhitelist, "greylist_client_whitelist"),
        recipients=open_list(RecipientWhitelist, "greylist_recipient_whitelist"),
        senders=open_list(SenderWhitelist, "greylist_sender_whitelist"),
        never_auto_whitelist=open_list(ClientWhitelist, "greylist_never_auto_whitelist"),
        recipient_access=open_recipient_access("greylist_recipient_access", parameters, settings, context),
    )


def is_authenticated(request: Request) -> bool:
    """Say whether the client has logged in, or has shown a certificate: Postfix names only those that it verified."""
    return bool(request.get(b"sasl_username") or request.get(b"ccert_subject"))


def matches_client(clients: ClientWhitelist, request: Request) -> bool:
    """Say whether the client of a request is in a list."""
    return clients.matches(request[b"client_name"][:ATTRIBUTE_LIMIT], request[b"client_address"][:ATTRIBUTE_LIMIT])


def _cut(value: bytes) -> bytes:
    return value[:ATTRIBUTE_LIMIT]
