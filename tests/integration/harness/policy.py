"""A small blocking client of the policy protocol, in the role of Postfix's smtpd."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .client import Client

#: Names and values.
Attributes = Mapping[str, str | bytes] | Mapping[bytes, str | bytes]


def request(attributes: Attributes) -> bytes:
    """Return a request as Postfix writes it; it begins with ``request=smtpd_access_policy`` if not told otherwise."""
    named = {_bytes(name): _bytes(value) for name, value in attributes.items()}
    named = {b"request": b"smtpd_access_policy"} | named
    return b"".join(b"%b=%b\n" % item for item in named.items()) + b"\n"


class PolicyClient(Client):
    """One connection; a context manager."""

    def ask(self, attributes: Attributes) -> bytes:
        """Return the action that a request gets, for example ``b"DUNNO"``; see :func:`request` and :meth:`receive`."""
        self.send_raw(request(attributes))
        return self.receive()

    def ask_all(self, requests: Sequence[Attributes]) -> list[bytes]:
        """Return the actions for requests that are all sent before the first reply is read (postgrey cannot do it)."""
        self.send_raw(b"".join(request(attributes) for attributes in requests))
        return [self.receive() for _ in requests]

    def send_raw(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.socket.sendall(data)

    def receive(self) -> bytes:
        """Return the action of the next reply.

        :raises EOFError: the server has closed the connection.
        :raises TimeoutError: there was none in time.
        """
        line = self.replies.readline()
        if not line:
            raise EOFError("the server has closed the connection")
        name, _, action = line.partition(b"=")
        assert name == b"action", line
        assert action.endswith(b"\n"), line
        assert (end := self.replies.readline()) == b"\n", line + end
        return action[:-1]


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text
