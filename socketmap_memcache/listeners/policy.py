"""The policy server, for Postfix's check_policy_service."""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime

from socketmap_memcache.listeners.stream import Request, StreamConnection, StreamFactory
from socketmap_memcache.policies.chain import PolicyChain
from socketmap_memcache.protocols.policy import PolicyProtocolError, RequestReader, parse_request, reply


class PolicyConnection(StreamConnection):
    """One Postfix process."""

    factory: PolicyFactory

    def __init__(self) -> None:
        """Make a connection that is not connected yet."""
        super().__init__(RequestReader())

    def request_received(self, payload: bytes, request: Request) -> None:
        """Let the policies decide."""
        try:
            attributes = parse_request(payload)
        except PolicyProtocolError as error:
            self.refuse(request, error)
            return
        self.factory.policies.decide(attributes, self._decided, request)

    def _decided(self, action: bytes, request: Request) -> None:
        self.reply(request, reply(action))


class PolicyFactory(StreamFactory):
    """Lets policies decide for any number of clients.

    :ivar policies: may be replaced at any time: requests that come later are decided by the new ones.
    """

    kind = "policy"
    protocol = PolicyConnection  # type: ignore[assignment] # (its factory is of a narrower type)

    def __init__(self, policies: PolicyChain, reactor: IReactorTime, idle_timeout: float) -> None:
        """Make a listener without connections."""
        super().__init__(reactor, idle_timeout)
        self.policies = policies
