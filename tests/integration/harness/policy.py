"""A small blocking client of the policy protocol, in the role of Postfix's smtpd."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from .processes import PATIENCE, connect

if TYPE_CHECKING:
    from typing_extensions import Self

#: Names and values.
Attributes = Mapping[str, str | bytes] | Mapping[bytes, str | bytes]


def request(attributes: Attributes) -> bytes:
    """Return a request as Postfix writes it; it begins with ``request=smtpd_access_policy`` if not told otherwise."""
    named = {_bytes(name): _bytes(value) for name, value in attributes.items()}
    named = {b"request": b"smtpd_access_policy"} | named
    return b"".join(b"%b=%b\n" % item for item in named.items()) + b"\n"


class PolicyClient:
    """One connection; a context manager."""

    def __init__(self, address: str, seconds: float = PATIENCE) -> None:
        """:param address: as Postfix writes it, ``unix:/path`` or ``inet:host:port``.

        :raises OSError: nobody accepts there.
        """
        self.socket = connect(address, seconds)
        self._replies = self.socket.makefile("rb")

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
        line = self._replies.readline()
        if not line:
            raise EOFError("the server has closed the connection")
        name, _, action = line.partition(b"=")
        assert name == b"action", line
        assert action.endswith(b"\n"), line
        assert (end := self._replies.readline()) == b"\n", line + end
        return action[:-1]

    def closed(self) -> bool:
        """Wait until the server closes the connection; false if it sends something before."""
        return self._replies.read(1) == b""

    def close(self) -> None:
        self._replies.close()
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text
