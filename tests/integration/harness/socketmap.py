"""A small blocking socketmap client, for what postmap is too slow or too well-behaved for."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from .processes import PATIENCE, connect

if TYPE_CHECKING:
    from typing_extensions import Self


def request(name: str, key: bytes) -> bytes:
    """Return the netstring that asks a map for a key."""
    payload = b"%b %b" % (name.encode(), key)
    return b"%d:%b," % (len(payload), payload)


class SocketmapClient:
    """One connection; a context manager."""

    def __init__(self, address: str, seconds: float = PATIENCE) -> None:
        """:param address: as Postfix writes it, ``unix:/path`` or ``inet:host:port``.

        :raises OSError: nobody accepts there.
        """
        self.socket = connect(address, seconds)
        self._replies = self.socket.makefile("rb")

    def ask(self, name: str, key: bytes) -> bytes:
        """Return the payload of the reply to one look-up, for example ``b"OK value"``."""
        self.send(name, key)
        return self.receive()

    def ask_all(self, name: str, keys: list[bytes]) -> list[bytes]:
        """Return the replies to look-ups that are all sent before the first reply is read."""
        self.send(name, *keys)
        return [self.receive() for _ in keys]

    def send(self, name: str, *keys: bytes) -> None:
        """Ask for keys; :meth:`receive` each reply."""
        self.socket.sendall(b"".join(request(name, key) for key in keys))

    def receive(self) -> bytes:
        """Return the payload of the next reply.

        :raises EOFError: the server has closed the connection.
        :raises TimeoutError: there was none in time.
        """
        digits = b""
        while (character := self._replies.read(1)).isdigit():
            digits += character
        if not character:
            raise EOFError("the server has closed the connection")
        assert digits, character
        assert character == b":", character
        payload = self._replies.read(int(digits) + 1)
        assert payload[-1:] == b",", payload
        return payload[:-1]

    def read(self, size: int) -> bytes:
        """Return so many bytes of the replies as they are, or fewer if the server closes the connection."""
        return self._replies.read(size)

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


def ask(address: str, name: str, key: bytes = b"key") -> bytes:
    """Return the payload of the reply to one look-up on a connection of its own."""
    with SocketmapClient(address) as client:
        return client.ask(name, key)
