"""Who a client is, for the log."""

from __future__ import annotations

import socket
import struct
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress


def peer_name(transport: Any) -> str:
    """Name the other side of a connection: its address and port, or the process at the other end of a UNIX socket."""
    peer = transport.getPeer()
    if isinstance(peer, (IPv4Address, IPv6Address)):
        return f"[{peer.host}]:{peer.port}"
    if isinstance(peer, UNIXAddress) and hasattr(socket, "SO_PEERCRED"):
        credentials = transport.getHandle().getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, uid, _ = struct.unpack("3i", credentials)
        return f"process {pid} of uid {uid}"
    return str(peer)
