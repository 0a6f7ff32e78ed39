"""Looks up the names of hosts for all connections: each name once at a time, in a thread that nobody waits for.

Twisted does it in the reactor's thread pool. A name server that does not answer keeps each of its threads for a minute
or so, and every new try to connect takes another one: soon there is none for anything else, such as a reload, and at
the end the process waits for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from socket import AF_INET, AF_INET6, AF_UNSPEC, SOCK_DGRAM, SOCK_STREAM, getaddrinfo
from threading import Thread
from typing import Any, TypeAlias

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IAddress, IHostnameResolver, IHostResolution, IResolutionReceiver
from zope.interface import implementer

_FAMILIES = {
    frozenset([IPv4Address]): AF_INET,
    frozenset([IPv6Address]): AF_INET6,
    frozenset([IPv4Address, IPv6Address]): AF_UNSPEC,
}
_TYPES = {"TCP": SOCK_STREAM, "UDP": SOCK_DGRAM}
_ADDRESSES: dict[int, type[Any]] = {AF_INET: IPv4Address, AF_INET6: IPv6Address}

# The name, the port, the family of its addresses and the type of socket.
_Question: TypeAlias = "tuple[str, int, int, int]"


def use_own_resolver(reactor: Any) -> None:
    """Let a reactor look up names by a :class:`NameResolver`, from now on."""
    reactor.installNameResolver(NameResolver(reactor))


def start_thread(function: Callable[..., object], *arguments: object) -> None:
    """Call a function in a thread of its own, which does not keep the process from its end."""
    Thread(target=function, args=arguments, daemon=True).start()


@implementer(IHostResolution)
class _Resolution:
    def __init__(self, name: str) -> None:
        self.name = name

    def cancel(self) -> None:
        raise NotImplementedError  # as of Twisted's own: the thread cannot be stopped


@implementer(IHostnameResolver)
class NameResolver:
    """Asks getaddrinfo(3). Who asks for what is being asked already hears of the same answer."""

    def __init__(
        self,
        reactor: Any,
        look_up: Callable[..., Sequence[tuple[Any, ...]]] = getaddrinfo,
        in_thread: Callable[..., None] = start_thread,
    ) -> None:
        """:param reactor: whose thread hears of the answers.

        :param look_up: getaddrinfo, or what takes its place.
        :param in_thread: calls a function with arguments in a thread.
        """
        self._reactor = reactor
        self._look_up = look_up
        self._in_thread = in_thread
        self._receivers: dict[_Question, list[IResolutionReceiver]] = {}

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Sequence[type[IAddress]] | None = None,
        transportSemantics: str = "TCP",
    ) -> IHostResolution:
        """Look up a name; see :class:`IHostnameResolver`. One that has no address is told as no addresses."""
        family = AF_UNSPEC if addressTypes is None else _FAMILIES[frozenset(addressTypes)]
        question = (hostName, portNumber, family, _TYPES[transportSemantics])
        resolution: IHostResolution = _Resolution(hostName)
        resolutionReceiver.resolutionBegan(resolution)
        receivers = self._receivers.get(question)
        if receivers is not None:
            receivers.append(resolutionReceiver)
            return resolution
        self._receivers[question] = [resolutionReceiver]
        try:
            self._in_thread(self._ask, question, transportSemantics)
        except RuntimeError:  # there is no other thread to be had
            self._tell(question, [])
        return resolution

    def _ask(self, question: _Question, transport: str) -> None:
        """Ask, in a thread."""
        try:
            found = self._look_up(*question)
        except (OSError, UnicodeError):
            found = []
        addresses = [_ADDRESSES[family](transport, *place) for family, _, _, _, place in found if family in _ADDRESSES]
        self._reactor.callFromThread(self._tell, question, addresses)

    def _tell(self, question: _Question, addresses: Sequence[IAddress]) -> None:
        for receiver in self._receivers.pop(question):
            for address in addresses:
                receiver.addressResolved(address)
            receiver.resolutionComplete()
