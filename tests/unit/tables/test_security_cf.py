from __future__ import annotations

import re
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent
from unittest.mock import patch

import pytest
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from socketmap_memcache.config.parameters import Parameters
from socketmap_memcache.config.syntax import parse
from socketmap_memcache.errors import ConfigurationError, Problem
from socketmap_memcache.memcache.pool import ClientPool
from socketmap_memcache.memcache.security import PLAIN, Security
from socketmap_memcache.memcache.server import Server
from socketmap_memcache.tables.registry import TableContext
from socketmap_memcache.tables.security_cf import PARAMETERS, read_security
from tests.integration.harness.certificates import Authority

CLEAR = [Server.parse("inet:192.0.2.1:11211")]
TLS = [*CLEAR, Server.parse("tls:mc.example:11211")]


class SecurityCase(SynchronousTestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory(prefix="security-")
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)
        self.password_file = self.directory / "password"
        self.password_file.write_bytes(b"secret\n")
        self.password_file.chmod(0o600)

    def read(self, lines: str, servers: list[Server] | None) -> Security:
        parameters = Parameters(parse(lines.format(d=self.directory).encode(), "x.cf"))
        security = read_security(parameters, servers)
        warnings: list[Problem] = []
        parameters.unknown(fatal=False)
        parameters.finish(warnings)
        assert warnings == []
        return security

    def errors(self, lines: str, servers: list[Server]) -> list[str]:
        caught = self.assertRaises(ConfigurationError, self.read, lines, servers)
        return [str(problem).replace(str(self.directory), "D") for problem in caught.problems]


class TestLogin(SecurityCase):
    def test_none(self) -> None:
        """Without parameters nothing is secured, and nothing is read."""
        assert self.read("", CLEAR) == PLAIN

    def test_good(self) -> None:
        """A username with the password of a file is the login for all servers."""
        security = self.read("username = postfix\npassword_file = {d}/password\n", CLEAR)
        assert security == Security(username=b"postfix", password=b"secret")

    def test_one_without_the_other(self) -> None:
        """A username without a password, or the reverse, is an error with its line."""
        assert self.errors("\nusername = postfix\n", CLEAR) == [
            "x.cf:2: username needs a password_file, whose first line is the password"
        ]
        assert self.errors("password_file = {d}/password", CLEAR) == ["x.cf:1: password_file needs a username"]

    def test_bad(self) -> None:
        """What cannot be a username, and a file that cannot be used, are errors with their lines."""
        self.password_file.chmod(0o644)
        assert self.errors("username = a:b\npassword_file = {d}/password", CLEAR) == [
            "x.cf:1: username 'a:b': blanks, colons and control characters are not possible",
            "x.cf:2: D/password: others than its owner may read or write it (mode 0644): chmod 600 D/password",
        ]
        (error,) = self.errors("username = a\npassword_file = {d}/missing", CLEAR)
        assert error == "x.cf:2: D/missing: cannot be read: No such file or directory"

    def test_no_memcached(self) -> None:
        """Where there is no memcached, each parameter is an error; nothing is said where it could not be read."""
        lines = "username = postfix\npassword_file = {d}/missing\ntls_server_name = mc\n"
        assert self.errors(lines, []) == [
            f"x.cf:{line}: {name} is for the connection to a memcached; here is none"
            for line, name in enumerate(("username", "password_file", "tls_server_name"), 1)
        ]
        assert self.read(lines, None) == PLAIN

    def test_no_tls_server(self) -> None:
        """Each parameter of TLS is an error where no server is spoken to in TLS: it would protect nothing."""
        names = ("tls_ca_file", "tls_cert_file", "tls_key_file", "tls_server_name")
        assert self.errors("".join(f"{name} = x\n" for name in names), CLEAR) == [
            f"x.cf:{line}: {name} is of no use: memcache names no server as tls:host:port"
            for line, name in enumerate(names, 1)
        ]

    def test_no_library(self) -> None:
        """Without the libraries the error says how to get them."""
        with patch.dict(sys.modules, {"socketmap_memcache.memcache.tls": None}):
            (error,) = self.errors("tls_server_name = x\n", TLS)
        assert error.startswith("x.cf: tls: needs pyOpenSSL and service-identity (")
        assert error.endswith("): pip install 'socketmap-memcache[tls]'")


@pytest.mark.skipif(find_spec("service_identity") is None, reason="needs the extra tls")
class TestTls(SecurityCase):
    def setUp(self) -> None:
        super().setUp()
        self.ca = Authority(self.directory)
        self.client = self.ca.issue("client")

    def test_none(self) -> None:
        """A server that is spoken to in TLS needs no parameter: the system's CAs count."""
        assert self.read("", TLS) == PLAIN

    def test_good(self) -> None:
        """The contents of all files are read."""
        lines = "tls_ca_file = {d}/ca.pem\ntls_cert_file = {d}/client.pem\ntls_key_file = {d}/client.key\n"
        security = self.read(lines + "tls_server_name = mc\nusername = u\npassword_file = {d}/password\n", TLS)
        assert security == Security(
            self.ca.path.read_bytes(),
            self.client.path.read_bytes(),
            self.client.key_path.read_bytes(),
            "mc",
            b"u",
            b"secret",
        )

    def test_one_without_the_other(self) -> None:
        """A certificate without a key, or the reverse, is an error."""
        assert self.errors("tls_cert_file = {d}/client.pem", TLS) == ["x.cf:1: tls_cert_file needs a tls_key_file"]
        assert self.errors("tls_key_file = {d}/client.key", TLS) == ["x.cf:1: tls_key_file needs a tls_cert_file"]

    def test_bad_files(self) -> None:
        """Files that cannot be read or used are errors that name the file, each with its line."""
        (self.directory / "empty").touch(mode=0o600)
        lines = "tls_ca_file = {d}/missing\ntls_cert_file = {d}/client.key\ntls_key_file = {d}/empty\n"
        assert self.errors(lines, TLS) == [
            "x.cf:1: D/missing: cannot be read: No such file or directory",
            "x.cf:2: D/client.key: there is no certificate in it (-----BEGIN CERTIFICATE-----)",
            "x.cf:3: D/empty: there is no private key in it that can be read",
        ]

    def test_open_key(self) -> None:
        """A private key that every user can read is an error."""
        (self.directory / "client.key").chmod(0o644)
        lines = "tls_cert_file = {d}/client.pem\ntls_key_file = {d}/client.key\n"
        try:
            assert self.errors(lines, TLS) == [
                "x.cf:2: D/client.key: every user may read or write this key (mode 0644): chmod o= D/client.key"
            ]
        finally:
            (self.directory / "client.key").chmod(0o600)

    def test_expired(self) -> None:
        """A certificate that has expired is an error that says since when."""
        self.ca.issue("old", expired=True)
        lines = "tls_ca_file = {d}/old.pem\ntls_cert_file = {d}/old.pem\ntls_key_file = {d}/old.key\n"
        first, second = self.errors(lines, TLS)
        assert first.startswith("x.cf:1: D/old.pem: the certificate has expired on 20")
        assert second.startswith("x.cf:2: D/old.pem: the certificate has expired on 20")

    def test_wrong_key(self) -> None:
        """A key that is not that of the certificate is an error."""
        lines = "tls_cert_file = {d}/client.pem\ntls_key_file = {d}/ca.key\n"
        assert self.errors(lines, TLS) == ["x.cf:2: the key is not that of the certificate"]

    def test_names(self) -> None:
        """A name that no certificate could have is an error, where it is written."""
        (error,) = self.errors("tls_server_name = *.example\n", TLS)
        assert error.startswith("x.cf:1: '*.example' is no name")
        (error,) = self.errors("\nmemcache = tls:a..b:1\n", [Server.parse("tls:a..b:1")])
        assert error.startswith("x.cf:2: 'a..b' is no name that a certificate could have (set tls_server_name)")
        self.read("tls_server_name = mc", [Server.parse("tls:a..b:1")])

    def test_documentation(self) -> None:
        """Each file that docs/tls.rst shows can be used; the parameters that it describes are those that there are."""
        text = (Path(__file__).parents[3] / "docs" / "tls.rst").read_text()
        shown = re.findall(r"^    (memcache = .*\n(?:    .*\n)*)", text, re.MULTILINE)
        assert len(shown) == 3
        names = {"memcached-ca.pem": "ca.pem", "mx1-cert.pem": "client.pem", "mx1-key.pem": "client.key"}
        names["memcached-password"] = "password"
        for lines in shown:
            used = re.sub(
                r"/etc/postfix/(\S+)", lambda match: f"{self.directory}/{names[match[1]]}", dedent(f"    {lines}")
            )
            path = self.directory / "shown.cf"
            path.write_text(used)
            context = TableContext(ClientPool(MemoryReactorClock()))
            context.open_table(f"memcache:{path}").close()
            assert context.warnings == []
        described = re.findall(r"^``(\w+)``(?:, ``(\w+)``)? \(default: empty\)$", text, re.MULTILINE)
        assert {name for row in described for name in row if name} == set(PARAMETERS)
