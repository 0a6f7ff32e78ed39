"""What the small blocking clients share: a connection that is a context manager."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from .processes import PATIENCE, connect

if TYPE_CHECKING:
    from typing_extensions import Self


class Client:
    """One connection."""

    def __init__(self, address: str, seconds: float = PATIENCE) -> None:
        """:param address: as Postfix writes it, ``unix:/path`` or ``inet:host:port``.

        :raises OSError: nobody accepts there.
        """
        self.socket = connect(address, seconds)
        self.replies = self.socket.makefile("rb")

    def closed(self) -> bool:
        """Wait until the server closes the connection; false if it sends something before."""
        return self.replies.read(1) == b""

    def close(self) -> None:
        self.replies.close()
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
