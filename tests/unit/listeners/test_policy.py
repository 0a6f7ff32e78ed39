from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from socketmap_memcache.listeners.policy import PolicyFactory
from socketmap_memcache.policies.chain import PolicyChain
from tests.unit.listeners.transports import Client
from tests.unit.policies.fakes import ScriptedPolicy

REQUEST = b"request=smtpd_access_policy\nsender=a\n\n"


class PolicyTests(SynchronousTestCase):
    def serve(self, policy: ScriptedPolicy) -> PolicyFactory:
        self.clock = Clock()
        return PolicyFactory(PolicyChain([policy], self.clock, 10), self.clock, 400)

    def test_reply(self) -> None:
        """Each request is answered with the action that the policies decide on."""
        policy = ScriptedPolicy(b"REJECT x", b"DUNNO")
        client = Client(self.serve(policy))
        client.send(REQUEST + b"x=y\n")
        assert client.received() == b"action=REJECT x\n\n"
        client.send(REQUEST)
        assert client.received() == b"action=DUNNO\n\n"
        assert policy.asked[0] == {b"request": b"smtpd_access_policy", b"sender": b"a"}
        assert policy.asked[1] == {b"x": b"y", **policy.asked[0]}

    def test_order(self) -> None:
        """Replies come in the order of the requests, whichever is decided first."""
        first, second = Deferred[bytes](), Deferred[bytes]()
        client = Client(self.serve(ScriptedPolicy(first, b"OK b", second)))
        client.send(REQUEST * 3)
        second.callback(b"OK c")
        assert client.received() == b""
        first.callback(b"OK a")
        assert client.received() == b"action=OK a\n\naction=OK b\n\naction=OK c\n\n"

    def test_no_request(self) -> None:
        """What is no request closes the connection, without a reply but with one line in the log."""
        for garbage in (b"\n", b"GET / HTTP/1.0\r\n\r\n", b"sender=a\n\n", b"a\0=b\n\n", b"a" * 100_000):
            client = Client(self.serve(ScriptedPolicy(b"OK")))
            with capturedLogs() as logs:
                client.send(REQUEST + garbage + REQUEST)
            assert client.received() == b"action=OK\n\n"
            assert client.is_closed()
            (line,) = map(formatEvent, logs)
            assert line.startswith("policy client [192.0.2.7]:4711: "), line
            assert line.endswith("; connection closed"), line

    def test_first_is_no_request(self) -> None:
        """A connection that begins with what is no request is closed, too."""
        client = Client(self.serve(ScriptedPolicy(b"OK")))
        with capturedLogs() as logs:
            client.send(b"sender=a\n\n")
        assert client.received() == b""
        assert client.is_closed()
        assert len(logs) == 1

    def test_no_request_while_deciding(self) -> None:
        """A connection is closed after the requests before the bad one have been answered."""
        answer = Deferred[bytes]()
        client = Client(self.serve(ScriptedPolicy(answer)))
        client.send(REQUEST + b"\n")
        assert not client.is_closed()
        answer.callback(b"OK")
        assert client.received() == b"action=OK\n\n"
        assert client.is_closed()

    def test_client_leaves(self) -> None:
        """A client that does not wait for the reply does no harm."""
        answer = Deferred[bytes]()
        client = Client(self.serve(ScriptedPolicy(answer)))
        client.send(REQUEST)
        client.leave(ConnectionDone())
        answer.callback(b"OK")
        assert client.received() == b""

    def test_replaced(self) -> None:
        """When the policies are replaced requests that come later use the new ones, on open connections too."""
        answer = Deferred[bytes]()
        factory = self.serve(ScriptedPolicy(answer))
        client = Client(factory)
        client.send(REQUEST)
        factory.policies.close()
        factory.policies = PolicyChain([ScriptedPolicy(b"OK new")], self.clock, 10)
        client.send(REQUEST)
        answer.callback(b"OK old")
        assert client.received() == b"action=OK old\n\naction=OK new\n\n"

    def test_never_decided(self) -> None:
        """A policy that never answers costs the time limit, and no more."""
        client = Client(self.serve(ScriptedPolicy(Deferred[bytes]())))
        client.send(REQUEST)
        self.clock.advance(10)
        assert client.received() == b"action=DUNNO\n\n"
