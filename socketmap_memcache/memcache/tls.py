"""TLS to a memcached. The only module that imports OpenSSL, and imported only where a server is ``tls:host:port``."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from typing import Any

import attrs
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL, crypto
from service_identity import CertificateError, VerificationError
from service_identity.cryptography import verify_certificate_hostname, verify_certificate_ip_address
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator, IProtocolFactory
from twisted.protocols.tls import TLSMemoryBIOFactory
from zope.interface import implementer

from socketmap_memcache.memcache.security import Security
from socketmap_memcache.memcache.server import is_address

_CERTIFICATE = re.compile(rb"-----BEGIN ((?:TRUSTED |X509 )?CERTIFICATE)-----\s.*?-----END \1-----", re.DOTALL)
_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")

# X509_V_ERR_... of <openssl/x509_vfy.h>; pyOpenSSL has no function for their texts.
_PROBLEMS = {
    2: "the certificate of its CA is not known",
    7: "the signature is wrong",
    9: "it is not valid yet",
    10: "it has expired",
    18: "it is signed by itself, and not in tls_ca_file",
    19: "the CA at the end of its chain is not known",
    20: "the certificate of its CA is not known",
    21: "the certificate of its CA is not known",
    24: "its CA's certificate is not one of a CA",
    26: "it is not for servers",
    66: "its key is too short",
    67: "its CA's key is too short",
    68: "its signature is made with a digest that is not safe any more",
}

# How many of the names of a certificate that has the wrong ones are shown.
_NAMES_SHOWN = 5

# What OpenSSL says of bytes that are no TLS.
_NO_TLS = ("wrong version number", "unknown protocol", "http request", "packet length too long", "record layer failure")


class CertificateVerifyError(SSL.Error):
    """The chain of a server's certificate does not hold; raised by the callback, it is how the handshake ends."""


def load_certificates(pem: bytes) -> list[x509.Certificate]:
    """Read all certificates, in their order.

    :raises ValueError: there is none, or one that cannot be read.
    """
    certificates = []
    for match in _CERTIFICATE.finditer(pem):
        try:
            certificates.append(x509.load_pem_x509_certificate(match[0]))
        except ValueError:
            raise ValueError(f"certificate {len(certificates) + 1} of the file cannot be read") from None
    if not certificates:
        raise ValueError("there is no certificate in it (-----BEGIN CERTIFICATE-----)")
    return certificates


def check_ca(pem: bytes) -> None:
    """See whether there is a certificate that can vouch for others.

    :raises ValueError: there is none, or one that cannot be read, or all have expired.
    """
    certificates = load_certificates(pem)
    if all(map(_has_expired, certificates)):
        raise ValueError(_expired(certificates[0]))


def check_certificate(pem: bytes) -> None:
    """See whether a client could show this certificate.

    :raises ValueError: there is none, or one that cannot be read or used, or the first has expired.
    """
    certificate = load_certificates(pem)[0]
    if _has_expired(certificate):
        raise ValueError(_expired(certificate))
    _use_certificate(SSL.Context(SSL.TLS_METHOD), pem)


def load_key(pem: bytes) -> Any:
    """Read a private key.

    :raises ValueError: there is none, or one with a passphrase, which nobody could be asked for.
    """
    try:
        return load_pem_private_key(pem, None)
    except TypeError:
        raise ValueError("the key has a passphrase, which the service cannot ask for") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("there is no private key in it that can be read") from None


def check_pair(certificate: bytes, key: bytes) -> None:
    """See whether a key is that of a certificate.

    :raises ValueError: it is not, or one of them cannot be read or used.
    """
    _show(SSL.Context(SSL.TLS_METHOD), certificate, key)


def check_name(name: str) -> None:
    """See whether a certificate could have this name or address in it.

    :raises ValueError: it could not.
    """
    if not is_address(name) and not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name that a certificate could have (set tls_server_name)")


@implementer(IOpenSSLClientConnectionCreator)
@attrs.frozen
class ServerVerification:
    """Makes TLS connections to one server, version 1.2 or later, which are of use only after :meth:`verify`.

    The chain is verified by OpenSSL, during the handshake; the name is verified here, and not by Twisted's
    ``optionsForClientTLS``: that of Twisted 26.10 lets a certificate pass that has no name to compare with.

    :ivar name: the name or address that has to be in the server's certificate.
    """

    name: str
    _context: SSL.Context = attrs.field(repr=False)
    _has_certificate: bool = False

    @classmethod
    def make(cls, security: Security, host: str) -> ServerVerification:
        """Make one for a server at this host.

        :raises ValueError: a certificate, the key or the name cannot be used, or the key is not the certificate's.
        """
        name = security.server_name or host
        check_name(name)
        context = SSL.Context(SSL.TLS_METHOD)
        context.set_min_proto_version(SSL.TLS1_2_VERSION)
        context.set_verify(SSL.VERIFY_PEER, _verify_chain)
        if security.ca:
            store = context.get_cert_store()
            assert store is not None
            for certificate in load_certificates(security.ca):
                store.add_cert(crypto.X509.from_cryptography(certificate))
        else:
            context.set_default_verify_paths()
        if security.certificate:
            _show(context, security.certificate, security.key)
        return cls(name, context, bool(security.certificate))

    def wrap(self, factory: IProtocolFactory) -> IProtocolFactory:
        """Give a factory of TLS connections; what ``factory`` builds for one is its ``wrappedProtocol``."""
        return TLSMemoryBIOFactory(self, True, factory)

    def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        """Begin a connection, for Twisted."""
        connection = SSL.Connection(self._context, None)
        if not is_address(self.name):
            connection.set_tlsext_host_name(self.name.rstrip(".").encode())
        return connection

    def verify(self, connection: SSL.Connection) -> None:
        """See whether the certificate that the server has shown is for its name.

        :raises ValueError: it is not, and for which it is; or that cannot be told.
        """
        certificate = connection.get_peer_certificate(as_cryptography=True)
        if certificate is None:
            raise ValueError(f"certificate verify failed: {self.name} has shown no certificate.")
        verify = verify_certificate_ip_address if is_address(self.name) else verify_certificate_hostname
        try:
            verify(certificate, self.name.rstrip("."))
        except (VerificationError, CertificateError):
            names = _names(certificate)
            raise ValueError(f"certificate verify failed: it is not for {self.name} (but for {names}).") from None
        except Exception as error:  # noqa: BLE001 (the errors of cryptography's parser have no common base)
            raise ValueError(
                f"certificate verify failed: the names (subjectAltName) in the certificate of {self.name} cannot be "
                f"read ({error})."
            ) from None

    def explain(self, error: BaseException | None, shaken: bool) -> str:
        """Say why there is no connection that is of use.

        :param error: that ended it.
        :param shaken: whether there was a handshake; in TLS 1.3 a server looks at the client's certificate after it.
        """
        text = _texts(error)
        if isinstance(error, CertificateVerifyError):
            return f"certificate verify failed: {text}."
        if "certificate required" in text:
            return "the server wants a client certificate (tls_cert_file)."
        if any(sign in text for sign in _NO_TLS):
            return f"the server does not speak TLS ({text})."
        if self._has_certificate and any(word in text for word in ("certificate", "unknown ca", "decrypt error")):
            return f"the server does not accept the certificate in tls_cert_file ({text})."
        if not self._has_certificate and (shaken or "handshake failure" in text):
            hint = "; does the server want a client certificate (tls_cert_file)?"
        else:
            hint = "." if shaken or text else "; does the server speak TLS?"
        said = f" ({text})" if text else ""
        return f"the connection ended {'after' if shaken else 'during'} the TLS handshake{said}{hint}"


def _show(context: SSL.Context, certificate: bytes, key: bytes) -> None:
    """Let a context show a certificate to servers that ask for it."""
    _use_certificate(context, certificate)
    private = load_key(key)
    try:
        context.use_privatekey(private)
        context.check_privatekey()
    except (SSL.Error, TypeError):  # TypeError: of a kind that is for no certificate
        raise ValueError("the key is not that of the certificate") from None


def _use_certificate(context: SSL.Context, pem: bytes) -> None:
    own, *between = load_certificates(pem)
    try:
        context.use_certificate(own)
        for each in between:
            context.add_extra_chain_cert(each)
    except SSL.Error as error:
        raise ValueError(f"OpenSSL refuses the certificate ({_texts(error)})") from None


def _has_expired(certificate: x509.Certificate) -> bool:
    return certificate.not_valid_after_utc < datetime.now(timezone.utc)


def _expired(certificate: x509.Certificate) -> str:
    return f"the certificate has expired on {certificate.not_valid_after_utc:%Y-%m-%d}"


def _verify_chain(_connection: SSL.Connection, _certificate: crypto.X509, number: int, depth: int, ok: int) -> bool:
    if not ok:
        problem = _PROBLEMS.get(number, f"error {number}, see openssl-verify(1)")
        raise CertificateVerifyError([("", "", f"{problem} (certificate {depth} of its chain)" if depth else problem)])
    return True


def _names(certificate: x509.Certificate) -> str:
    """Give the names of a certificate; they can be read."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return "no name"
    return ", ".join(repr(str(name.value)) for name in list(names)[:_NAMES_SHOWN]) or "no name"


def _texts(error: BaseException | None) -> str:
    """Give OpenSSL's texts; empty where it is not an error of OpenSSL's or it has none."""
    if not isinstance(error, SSL.Error) or not error.args or not isinstance(error.args[0], list):
        return ""
    return ", ".join(str(entry[-1]) for entry in error.args[0])
