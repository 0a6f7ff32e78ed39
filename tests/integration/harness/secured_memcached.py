"""A real memcached that speaks TLS, or wants to be logged in to, or both."""

from __future__ import annotations

import ssl
from pathlib import Path

from .certificates import Authority, Certificate
from .memcached import Memcached
from .processes import accepts, connect


class SecuredMemcached(Memcached):
    """A memcached on a free port.

    :ivar address: ``tls:127.0.0.1:port``, or ``inet:...`` without TLS, as a ``.cf`` file wants it.
    :ivar clear_address: the same place, as if there were no TLS.
    """

    def __init__(
        self,
        directory: Path,
        *,
        shown: Certificate | None = None,
        clients: Authority | None = None,
        user: tuple[str, str] | None = None,
    ) -> None:
        """Make a directory for it; nothing is started.

        :param shown: its certificate, for TLS.
        :param clients: who issues the certificates that its clients must have.
        :param user: the name and the password of the only user.
        """
        directory.mkdir()
        options = ["-t", "1"]
        if shown is not None:
            extended = f"ssl_chain_cert={shown.path},ssl_key={shown.key_path}"
            if clients is not None:
                extended += f",ssl_verify_mode=2,ssl_ca_cert={clients.path}"
            options += ["-Z", "-o", extended]
        if user is not None:
            user_file = directory / "users"
            user_file.write_text(":".join(user) + "\n")
            options += ["-Y", str(user_file)]
        super().__init__(directory, tcp=True, options=options)
        self.clear_address = self.address
        if shown is not None:
            self.address = self.address.replace("inet:", "tls:")
        self._user = user

    def ready(self) -> bool:
        return accepts(self.clear_address)

    def fill(self, key: bytes, value: bytes, client: Certificate | None = None) -> None:
        """Store a value, on a connection of its own.

        :param client: the client certificate to show.
        """
        with connect(self.clear_address) as plain:
            connection = plain
            if self.address != self.clear_address:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
                if client is not None:
                    context.load_cert_chain(client.path, client.key_path)
                connection = context.wrap_socket(plain)
            with connection, connection.makefile("rb") as replies:
                commands = []
                if self._user is not None:
                    login = " ".join(self._user).encode()
                    commands.append(b"set auth 0 0 %d\r\n%b\r\n" % (len(login), login))
                commands.append(b"set %b 0 0 %d\r\n%b\r\n" % (key, len(value), value))
                for command in commands:
                    connection.sendall(command)
                    reply = replies.readline()
                    assert reply == b"STORED\r\n", reply
