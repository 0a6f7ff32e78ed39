from __future__ import annotations

import os
import socket
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import ServerFactory
from twisted.trial.unittest import TestCase

from socketmap_memcache.listeners import endpoints
from socketmap_memcache.listeners.endpoints import UnixAddress


class TestSocketFile(TestCase):
    """The file of a UNIX socket."""

    def setUp(self) -> None:
        directory = TemporaryDirectory(prefix="socket-")
        self.addCleanup(directory.cleanup)
        self.path = f"{directory.name}/s"
        self.address = UnixAddress("", self.path)

    def test_removed_after_a_failure(self) -> None:
        """A file that cannot be given to its owner is removed."""

        def chown(*_arguments: Any, **_options: Any) -> None:
            raise PermissionError(1, "Operation not permitted")

        self.patch(os, "chown", chown)
        error = self.assertRaises(CannotListenError, self.address.bind)
        assert "Operation not permitted" in str(error)
        assert not os.path.lexists(self.path)

    def test_replaced_by_a_link(self) -> None:
        """Who may write to the directory cannot make root change another file, with a link in the socket's place."""
        precious = Path(f"{self.path}-precious")
        precious.touch(0o600)
        before = precious.stat()
        chown = os.chown

        def replace(path: str, *arguments: Any, **options: Any) -> None:
            Path(path).unlink()
            Path(path).symlink_to(precious)
            chown(path, *arguments, **options)

        self.patch(os, "chown", replace)
        owner = -1 if os.getuid() else 4711
        UnixAddress("", self.path, 0o666, owner, owner).bind().close()
        after = precious.stat()
        assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)

    def test_of_a_successor(self) -> None:
        """What listens there as soon as the former socket is closed keeps its file."""
        listening = self.address.bind()
        successors = []
        close = socket.socket.close

        def close_and_succeed(closed: socket.socket) -> None:
            close(closed)
            if closed is listening:
                successors.append(self.address.bind())

        self.patch(socket.socket, "close", close_and_succeed)
        self.address.unbind(listening)
        assert Path(self.path).is_socket()
        close(successors[0])

    def test_of_a_port(self) -> Deferred[Any]:
        """A port, too, removes the file before it closes the socket."""
        files_at_close = []
        port = self.address.listen(reactor, ServerFactory())
        lost = endpoints.AdoptedUnixPort.connectionLost

        def look(of: Any, reason: Any) -> None:
            files_at_close.append(os.path.lexists(self.path))
            lost(of, reason)

        self.patch(endpoints.AdoptedUnixPort, "connectionLost", look)

        def check(_: object) -> None:
            assert files_at_close == [False]

        stopped: Deferred[Any] = port.stopListening()  # type: ignore[assignment] # (it does give one)
        return stopped.addCallback(check)
