"""What a policy is to the rest of the service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from typing import Protocol as Structure

import attrs
from twisted.internet.defer import Deferred
from twisted.plugin import IPlugin
from zope.interface import Attribute, Interface

from socketmap_memcache.asker import Asker
from socketmap_memcache.config.parameters import Parameters
from socketmap_memcache.tables.registry import TableContext

#: What Postfix sent (SMTPD_POLICY_README): names of attributes to values. Any bytes but NUL and newline may be in them.
#: Which attributes there are depends on Postfix's version and build: ask with ``request.get(name, b"")``.
Request = Mapping[bytes, bytes]

#: The action of a policy that has no opinion: the next one is asked, and after the last one Postfix's next restriction.
DUNNO = b"DUNNO"


class IPolicy(Interface):
    """A policy: says what Postfix shall do with a request.

    It may also have ``description: str``, which the log shows at the start in place of its name.
    """

    name: str = Attribute("The name of its type, as in ``policies =``.")

    fail_action: bytes = Attribute(
        "The action when the policy fails, or takes longer than ``policy_timeout``. With ``b'DUNNO'`` mail flows."
    )

    def decide(request: Request) -> bytes | Deferred[bytes]:
        """Decide on a request.

        :param request: must not be changed: the next policy gets it too.
        :return: an action of access(5), such as ``b"REJECT not here"``, one line of UTF-8 without NUL; at once, or as a
            Deferred. ``b"DUNNO"``, with or without a text after it, leaves the decision to others. If it raises, or the
            Deferred fails, or there is no action within ``policy_timeout``, ``fail_action`` holds, and it is logged.
            A Deferred whose time is over is cancelled.
        """

    def close() -> None:
        """Give back what the policy holds (tables, timers). Requests under way still get their actions. Idempotent."""


class Promise(Structure):
    """Stands for an action that is to come. A Deferred is one."""

    def cancel(self) -> object:
        """Hear that nobody waits for it any more."""


class IAskedPolicy(IPolicy):
    """A policy that can be asked without a Deferred, which takes less time."""

    def decide_for(request: Request, asker: Asker, token: Any) -> Promise | None:
        """Tell the asker, now or later, what :meth:`decide` would return or fire with.

        :return: what can be cancelled, where the asker is told later.
        """


class IPolicyType(IPlugin):
    """Opens policies of one type. Another package brings one as an object in a module of its ``twisted/plugins``."""

    name: str = Attribute("The name that selects it in ``policies =``.")

    parameters: Mapping[str, str] = Attribute(
        "The parameters of main.cf that are its own, by name, with their defaults as they would be written there; "
        "``$name`` is allowed."
    )

    def open(parameters: Parameters, context: PolicyContext) -> IPolicy:
        """Open a policy. It may be called in a thread, and must not touch the network: that is what tables are for.

        :param parameters: the service's main.cf. Of a value that cannot be used, note the error there; all errors are
            then shown at once, and the policy is closed again.
        :raises ConfigurationError: no policy can be made; with everything that is wrong.
        """


@attrs.frozen
class PolicyContext:
    """What policies get from the service that opens them.

    :ivar tables: its ``open_table("type:name")`` opens tables, to be closed by the policy; ``warnings`` is for what an
        administrator should know but can live with.
    """

    tables: TableContext

    @property
    def reactor(self) -> Any:
        """The reactor: time, timers, threads."""
        return self.tables.reactor
