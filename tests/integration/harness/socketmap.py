"""A small blocking socketmap client, for what postmap is too slow or too well-behaved for."""

from __future__ import annotations

from .client import Client


def request(name: str, key: bytes) -> bytes:
    """Return the netstring that asks a map for a key."""
    payload = b"%b %b" % (name.encode(), key)
    return b"%d:%b," % (len(payload), payload)


class SocketmapClient(Client):
    """One connection; a context manager."""

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
        while (character := self.replies.read(1)).isdigit():
            digits += character
        if not character:
            raise EOFError("the server has closed the connection")
        assert digits, character
        assert character == b":", character
        payload = self.replies.read(int(digits) + 1)
        assert payload[-1:] == b",", payload
        return payload[:-1]

    def read(self, size: int) -> bytes:
        """Return so many bytes of the replies as they are, or fewer if the server closes the connection."""
        return self.replies.read(size)


def ask(address: str, name: str, key: bytes = b"key") -> bytes:
    """Return the payload of the reply to one look-up on a connection of its own."""
    with SocketmapClient(address) as client:
        return client.ask(name, key)
