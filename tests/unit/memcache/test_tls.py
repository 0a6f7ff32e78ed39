from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import attrs
import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IProtocolFactory, IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from socketmap_memcache.memcache.greeting import QUESTION, Greeter, greeter_for
from socketmap_memcache.memcache.security import Security
from socketmap_memcache.memcache.server import Server
from tests.integration.harness.certificates import Authority, Certificate

from .successor import SUCCESSORS, Successor

SSL = pytest.importorskip("OpenSSL.SSL")
tls = pytest.importorskip("socketmap_memcache.memcache.tls")


#: Newer versions of Twisted hold what is written back for a turn of the reactor.
CLOCK = Clock()


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twisted.protocols.tls._get_default_clock", lambda: CLOCK, raising=False)


@attrs.frozen
class Pki:
    """Certificates of one authority, and one of another."""

    ca: Authority
    other: Authority
    server: Certificate
    chained: Certificate
    expired: Certificate
    nameless: Certificate
    client: Certificate

    def security(self, **changes: Any) -> Security:
        return attrs.evolve(Security(ca=self.ca.path.read_bytes()), **changes)

    def with_client(self, client: Certificate) -> Security:
        return self.security(certificate=client.path.read_bytes(), key=client.key_path.read_bytes())


@pytest.fixture(scope="module")
def pki() -> Iterator[Pki]:
    with tempfile.TemporaryDirectory(prefix="pki-") as name:
        directory = Path(name)
        ca, other = Authority(directory, "ca"), Authority(directory, "other")
        names = "DNS:mc.example,DNS:*.wild.example,IP:192.0.2.1,IP:2001:db8::1"
        yield Pki(
            ca=ca,
            other=other,
            server=ca.issue("server", names),
            chained=ca.intermediate("between").issue("chained", names),
            expired=ca.issue("expired", names, expired=True),
            nameless=ca.issue("mc.example"),
            client=ca.issue("client"),
        )


@implementer(IStreamClientEndpoint)
class TlsServer:
    """A server's end of one TLS connection, in memory."""

    def __init__(self, shown: Certificate, prepare: Callable[[Any], object] = lambda _: None) -> None:
        """:param prepare: is called with the server's context."""
        context = SSL.Context(SSL.TLS_METHOD)
        context.use_certificate_chain_file(str(shown.path))
        context.use_privatekey_file(str(shown.key_path))
        prepare(context)
        self.connection = SSL.Connection(context, None)
        self.connection.set_accept_state()
        self.transport = StringTransport(peerAddress=IPv4Address("TCP", "192.0.2.1", 11211))
        self.transport.abortConnection = self.transport.loseConnection  # type: ignore[method-assign]
        self.read = b""

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        self.protocol: Any = cast(Any, protocolFactory.buildProtocol(self.transport.getPeer()))
        self.protocol.makeConnection(self.transport)
        return succeed(self.protocol)

    def pump(self) -> None:
        """Carry bytes to and fro until there are none; the connection ends when one side has had enough."""
        moved = True
        while moved and not self.transport.disconnecting:
            moved = False
            CLOCK.advance(0)
            if data := self.transport.value():
                self.transport.clear()
                self.connection.bio_write(data)
                moved = True
            with suppress(SSL.Error):  # no data, a handshake that is not at its end, or one that has failed
                self.read += self.connection.recv(1000)
            try:
                data = self.connection.bio_read(10_000)
            except SSL.WantReadError:
                continue
            self.protocol.dataReceived(data)
            moved = True
        if self.transport.disconnecting:
            self.lose(ConnectionDone())

    def answer(self, data: bytes) -> None:
        self.connection.send(data)
        self.pump()

    def lose(self, error: Exception) -> None:
        self.protocol.connectionLost(Failure(error))


def greet(server: TlsServer, security: Security, host: str = "mc.example") -> list[Any]:
    """Connect to the server, and give what came of it, as soon as anything does."""
    results: list[Any] = []
    verification = tls.ServerVerification.make(security, host)
    Greeter(QUESTION, verification).connect(server, SUCCESSORS).addBoth(results.append)
    server.pump()
    return results


def accepts(pki: Pki, security: Security, host: str = "mc.example", **server: Any) -> TlsServer:
    peer = TlsServer(**{"shown": pki.server, **server})
    results = greet(peer, security, host)
    assert (results, peer.read) == ([], QUESTION)
    peer.answer(b"END\r\n")
    assert isinstance(results[0], Successor)
    peer.answer(b"data")
    assert results[0].data == b"data"
    return peer


def refused(pki: Pki, security: Security, host: str = "mc.example", **server: Any) -> str:
    """Give the reason; nothing has been sent."""
    peer = TlsServer(**{"shown": pki.server, **server})
    (failure,) = greet(peer, security, host)
    assert peer.read == b""
    message: str = failure.getErrorMessage()
    return message


def test_good(pki: Pki) -> None:
    """A server with a certificate of the right CA, for its name, is accepted, and spoken to in TLS 1.3."""
    assert accepts(pki, pki.security()).connection.get_protocol_version_name() == "TLSv1.3"


def test_names(pki: Pki) -> None:
    """What has to be in the certificate is the host, name or address, or tls_server_name in its place."""
    for host in ("mc.example", "MC.example.", "a.wild.example", "192.0.2.1", "2001:db8::1"):
        accepts(pki, pki.security(), host)
    accepts(pki, pki.security(server_name="mc.example"), "192.0.2.9")
    for host in ("example", "a.b.wild.example", "192.0.2.2", "2001:db8::2", "127.0.0.1"):
        assert refused(pki, pki.security(), host) == (
            f"certificate verify failed: it is not for {host} "
            "(but for 'mc.example', '*.wild.example', '192.0.2.1', '2001:db8::1')."
        )
    assert "it is not for other.example" in refused(pki, pki.security(server_name="other.example"))


def test_server_name_indication(pki: Pki) -> None:
    """The server hears which name is meant, but not an address."""
    asked = accepts(pki, pki.security()).connection.get_servername()
    assert asked == b"mc.example"
    assert accepts(pki, pki.security(), "192.0.2.1").connection.get_servername() is None


def test_no_name(pki: Pki) -> None:
    """A certificate without a name to compare with is not accepted; its common name does not count."""
    assert "it is not for mc.example (but for no name)" in refused(pki, pki.security(), shown=pki.nameless)


@pytest.mark.parametrize(
    "names",
    [
        pytest.param("DER:30:02:A3:00", id="a name of a kind that nobody uses (x400Address)"),
        pytest.param("DER:30:06:A5:04:A1:02:13:00", id="another one (ediPartyName)"),
        pytest.param("DER:30:04:87:02:C0:00", id="an address of two bytes"),
        pytest.param("DER:30:03:86:01:FF", id="a URI that is no text"),
    ],
)
def test_malformed_names(pki: Pki, names: str) -> None:
    """A certificate whose names cannot be read is not accepted, and the reason says so."""
    shown = pki.ca.issue("malformed", names)
    for host in ("mc.example", "192.0.2.1"):
        reason = refused(pki, pki.security(), host, shown=shown)
        text = f"certificate verify failed: the names (subjectAltName) in the certificate of {host} cannot be read ("
        assert reason.startswith(text)


def test_names_of_no_use(pki: Pki) -> None:
    """Names of which none can be compared are shown; a list without any is no name."""
    for names, shown in (("DER:30:00", "no name"), ("DER:30:02:82:00", "''"), ("DNS:*.*.example", r"'*.*.example'")):
        reason = refused(pki, pki.security(), shown=pki.ca.issue("useless", names))
        assert reason == f"certificate verify failed: it is not for mc.example (but for {shown})."


def test_expired(pki: Pki) -> None:
    """A certificate that has expired is not accepted."""
    assert refused(pki, pki.security(), shown=pki.expired) == "certificate verify failed: it has expired."


def test_wrong_ca(pki: Pki) -> None:
    """A certificate of another CA is not accepted; without tls_ca_file only the system's count."""
    for security in (pki.security(ca=pki.other.path.read_bytes()), Security()):
        assert refused(pki, security) == "certificate verify failed: the certificate of its CA is not known."


def test_several_cas(pki: Pki) -> None:
    """tls_ca_file may have several certificates, with text between them."""
    several = pki.other.path.read_bytes() + b"\n# ours:\n" + pki.ca.path.read_bytes()
    accepts(pki, pki.security(ca=several))


def test_chain(pki: Pki) -> None:
    """A server may send the certificates between its own and the CA's."""
    accepts(pki, pki.security(), shown=pki.chained)


def test_old_versions(pki: Pki) -> None:
    """TLS 1.2 will do; what is older will not."""

    def only(version: int) -> Callable[[Any], object]:
        return lambda context: (context.set_min_proto_version(version), context.set_max_proto_version(version))

    peer = accepts(pki, pki.security(), prepare=only(SSL.TLS1_2_VERSION))
    assert peer.connection.get_protocol_version_name() == "TLSv1.2"
    reason = refused(pki, pki.security(), prepare=lambda context: context.set_max_proto_version(SSL.TLS1_1_VERSION))
    assert reason.startswith("the connection ended during the TLS handshake (")


def want_client(pki: Pki, version: int) -> Callable[[Any], object]:
    def prepare(context: Any) -> None:
        context.load_verify_locations(str(pki.ca.path))
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, lambda *arguments: bool(arguments[-1]))
        context.set_max_proto_version(version)

    return prepare


def test_client_certificate(pki: Pki) -> None:
    """A server that wants a client certificate gets it, with those between it and the CA."""
    for version in (SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION):
        for client in (pki.client, pki.chained):
            accepts(pki, pki.with_client(client), prepare=want_client(pki, version))


def test_no_client_certificate(pki: Pki) -> None:
    """Without one the reason says what is missing, also in TLS 1.3, where the handshake has been good."""
    reason = refused(pki, pki.security(), prepare=want_client(pki, SSL.TLS1_3_VERSION))
    assert reason == "the server wants a client certificate (tls_cert_file)."
    reason = refused(pki, pki.security(), prepare=want_client(pki, SSL.TLS1_2_VERSION))
    assert reason.endswith("alert handshake failure); does the server want a client certificate (tls_cert_file)?")


def test_wrong_client_certificate(pki: Pki) -> None:
    """A client certificate that the server does not accept is named as the reason, with the server's word for it."""
    for client in (pki.other.issue("stranger"), pki.expired):
        for version in (SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION):
            reason = refused(pki, pki.with_client(client), prepare=want_client(pki, version))
            assert reason.startswith("the server does not accept the certificate in tls_cert_file (")


def test_clear(pki: Pki) -> None:
    """A server that does not speak TLS is known by its answer, or suspected when it closes the connection."""
    for answer, reason in (
        (b"ERROR\r\n", "the server does not speak TLS ("),
        (b"", "the connection ended during the TLS handshake; does the server speak TLS?"),
    ):
        server = TlsServer(pki.server)
        server.connection = None
        results: list[Any] = []
        greeter = Greeter(QUESTION, tls.ServerVerification.make(pki.security(), "mc.example"))
        greeter.connect(server, SUCCESSORS).addBoth(results.append)
        if answer:
            server.protocol.dataReceived(answer)
        server.lose(ConnectionLost())
        assert results[0].getErrorMessage().startswith(reason)


def test_closed_after_handshake(pki: Pki) -> None:
    """A server that closes the connection after the handshake may want a client certificate that it did not get."""
    for security, end in (
        (pki.security(), "; does the server want a client certificate (tls_cert_file)?"),
        (pki.with_client(pki.client), "."),
    ):
        server = TlsServer(pki.server)
        results = greet(server, security)
        server.lose(ConnectionLost())
        assert results[0].getErrorMessage() == f"the connection ended after the TLS handshake{end}"


def test_no_certificate(pki: Pki) -> None:
    """A server without a certificate, should there ever be one, is not accepted."""
    connection = attrs.make_class("Anonymous", {"get_peer_certificate": attrs.field()})(lambda **_: None)
    with pytest.raises(ValueError, match="mc.example has shown no certificate"):
        tls.ServerVerification.make(pki.security(), "mc.example").verify(connection)


def test_greeter_for(pki: Pki) -> None:
    """A server that speaks TLS is asked a question, or a login is sent, once its certificate has been verified."""
    for security, words in (
        (pki.security(), QUESTION),
        (pki.security(username=b"u", password=b"p"), b"set auth 0 -1 3\r\nu p\r\n"),
    ):
        greeter = greeter_for(Server.parse("tls:mc.example:11211"), security)
        assert greeter is not None
        assert greeter.words == words
        assert greeter.verification is not None
        assert greeter.verification.name == "mc.example"
        assert "BEGIN" not in repr(greeter.verification)


def test_unusual_problem() -> None:
    """A problem that is not in the list is told by its number, and where in the chain it is."""
    with pytest.raises(tls.CertificateVerifyError, match=r"error 999, see openssl-verify\(1\) \(certificate 2 of"):
        tls._verify_chain(None, None, 999, 2, 0)


def test_bad_files(pki: Pki) -> None:
    """Contents that cannot be used are refused, with the reason."""
    certificate, key = pki.client.path.read_bytes(), pki.client.key_path.read_bytes()
    damaged = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    expired = pki.expired.path.read_bytes()
    locked = b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n"
    for check, contents, reason in (
        (tls.check_ca, b"", "there is no certificate in it"),
        (tls.check_ca, key, "there is no certificate in it"),
        (tls.check_ca, certificate + damaged, "certificate 2 of the file cannot be read"),
        (tls.check_ca, expired, "the certificate has expired on 20"),
        (tls.check_certificate, expired + certificate, "the certificate has expired on 20"),
        (tls.check_certificate, b"x", "there is no certificate in it"),
        (tls.load_key, certificate, "there is no private key in it"),
        (tls.load_key, b"", "there is no private key in it"),
        (tls.load_key, locked, "there is no private key in it"),
    ):
        with pytest.raises(ValueError, match=reason):
            check(contents)
    tls.check_ca(expired + certificate)
    tls.check_certificate(certificate + expired)


def test_passphrase(pki: Pki) -> None:
    """A key with a passphrase is refused, instead of asking for it."""
    locked = pki.client.locked_key("words")
    with pytest.raises(ValueError, match="the key has a passphrase, which the service cannot ask for"):
        tls.load_key(locked)


def test_pair(pki: Pki) -> None:
    """A key that is not that of the certificate is refused."""
    certificate, key = pki.client.path.read_bytes(), pki.client.key_path.read_bytes()
    tls.check_pair(certificate, key)
    with pytest.raises(ValueError, match="the key is not that of the certificate"):
        tls.check_pair(certificate, pki.server.key_path.read_bytes())


def test_pair_of_other_kinds(pki: Pki, tmp_path: Path) -> None:
    """A key that is for no certificate at all is refused as well."""
    key = tmp_path / "x25519.key"
    subprocess.run(["openssl", "genpkey", "-algorithm", "x25519", "-out", key], check=True)
    with pytest.raises(ValueError, match="the key is not that of the certificate"):
        tls.check_pair(pki.client.path.read_bytes(), key.read_bytes())


def test_certificate_too_weak(tmp_path: Path) -> None:
    """A certificate that OpenSSL does not show to anybody is refused, with its reason."""
    path = tmp_path / "weak.pem"
    key = ("-newkey", "rsa:512", "-nodes", "-keyout", tmp_path / "weak.key")
    subprocess.run(
        ["openssl", "req", "-x509", *key, "-subj", "/CN=weak", "-out", path], check=True, capture_output=True
    )
    with pytest.raises(ValueError, match=r"OpenSSL refuses the certificate \(ee key too small\)"):
        tls.check_certificate(path.read_bytes())


def test_check_name() -> None:
    """A name that no certificate could have is refused, be it the host's or tls_server_name."""
    for name in ("mc", "mc-1.example.com.", "my_host", "192.0.2.1", "2001:db8::1"):
        tls.check_name(name)
    for name in ("", "a b", "bücher", "-a", "a..b", "x" * 64, "a/b", "*.example"):
        with pytest.raises(ValueError, match="is no name that a certificate could have"):
            tls.check_name(name)
