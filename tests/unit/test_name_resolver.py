"""Names of hosts are looked up once at a time, in threads that the reactor's pool knows nothing of."""

from __future__ import annotations

from collections.abc import Callable
from socket import AF_INET, AF_INET6, AF_UNIX, AF_UNSPEC, SOCK_STREAM, gaierror
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IHostnameResolver, IHostResolution, IResolutionReceiver
from zope.interface import implementer
from zope.interface.verify import verifyObject

from socketmap_memcache.name_resolver import NameResolver, use_own_resolver

FOUND = [
    (AF_INET6, SOCK_STREAM, 6, "", ("2001:db8::1", 11211, 0, 0)),
    (AF_INET, SOCK_STREAM, 6, "", ("192.0.2.1", 11211)),
    (AF_UNIX, SOCK_STREAM, 0, "", "what nobody asked for"),
]


@implementer(IResolutionReceiver)
class Receiver:
    def __init__(self) -> None:
        self.heard: list[Any] = []

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        self.heard.append(resolutionInProgress.name)

    def addressResolved(self, address: Any) -> None:
        self.heard.append(address)

    def resolutionComplete(self) -> None:
        self.heard.append("complete")


class Reactor:
    def callFromThread(self, function: Callable[..., object], *arguments: object) -> None:
        function(*arguments)

    def installNameResolver(self, resolver: object) -> None:
        self.resolver = resolver


class Site:
    """A resolver whose threads run when :meth:`answer` is called."""

    def __init__(self, found: Any = FOUND) -> None:
        self.threads: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        self.questions: list[tuple[Any, ...]] = []
        self.found = found
        self.resolver = NameResolver(Reactor(), self.look_up, lambda call, *args: self.threads.append((call, args)))

    def look_up(self, *question: Any) -> Any:
        self.questions.append(question)
        if isinstance(self.found, Exception):
            raise self.found
        return self.found

    def ask(self, name: str = "mc.example", **options: Any) -> Receiver:
        receiver = Receiver()
        self.resolver.resolveHostName(receiver, name, 11211, **options)
        return receiver

    def answer(self) -> None:
        threads, self.threads = self.threads, []
        for call, arguments in threads:
            call(*arguments)


def test_addresses() -> None:
    """All addresses of a name are told, with the port, in the order of the system."""
    site = Site()
    assert verifyObject(IHostnameResolver, site.resolver)
    receiver = site.ask()
    assert receiver.heard == ["mc.example"]
    site.answer()
    addresses = [IPv6Address("TCP", "2001:db8::1", 11211, 0, 0), IPv4Address("TCP", "192.0.2.1", 11211)]
    assert receiver.heard == ["mc.example", *addresses, "complete"]
    assert site.questions == [("mc.example", 11211, AF_UNSPEC, SOCK_STREAM)]


def test_family() -> None:
    """Only addresses of the types that are wanted are asked for."""
    site = Site()
    site.ask(addressTypes=[IPv4Address])
    site.ask(addressTypes=[IPv6Address])
    site.answer()
    assert [question[2] for question in site.questions] == [AF_INET, AF_INET6]


def test_shared() -> None:
    """Who asks for a name while it is looked up hears of the same answer; another name, or a later time, is apart."""
    site = Site()
    first, second, other = site.ask(), site.ask(), site.ask("db.example")
    assert len(site.threads) == 2
    site.answer()
    assert first.heard == second.heard
    assert other.heard[-1] == first.heard[-1] == "complete"
    site.ask()
    assert len(site.threads) == 1


@pytest.mark.parametrize("error", [gaierror(-2, "unknown"), UnicodeError("label too long"), OSError("no descriptors")])
def test_failure(error: Exception) -> None:
    """A name that cannot be looked up has no addresses."""
    site = Site(error)
    receiver = site.ask()
    site.answer()
    assert receiver.heard == ["mc.example", "complete"]


def test_no_thread() -> None:
    """Without a thread to be had, the name has no addresses now, and is asked for again later."""
    calls: list[object] = []

    def refuse(*arguments: object) -> None:
        calls.append(arguments)
        raise RuntimeError("can't start new thread")

    resolver = NameResolver(Reactor(), in_thread=refuse)
    for _ in range(2):
        receiver = Receiver()
        resolver.resolveHostName(receiver, "mc.example")
        assert receiver.heard == ["mc.example", "complete"]
    assert len(calls) == 2


def test_installed() -> None:
    """A reactor uses it once it is told to."""
    reactor = Reactor()
    use_own_resolver(reactor)
    assert isinstance(reactor.resolver, NameResolver)
