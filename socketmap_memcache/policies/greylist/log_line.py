"""The line in the log for each decision, in postgrey's format, so that its users' tools understand it."""

from __future__ import annotations

from collections.abc import Mapping

from socketmap_memcache.policies.greylist.key import ATTRIBUTE_LIMIT

PASS, GREYLIST = b"pass", b"greylist"

_SHOWN = tuple((name, name + b"=") for name in (b"client_name", b"client_address", b"sender", b"recipient"))


def decision_line(
    request: Mapping[bytes, bytes], action: bytes, reason: bytes, delay: int | None = None, training: bool = False
) -> str:
    """Give the line, without the name of the program before it.

    :param request: what Postfix sent: any bytes. What is empty is left out, and what is long is cut.
    :param action: :data:`PASS` or :data:`GREYLIST`.
    :param delay: seconds that the message was delayed, if that is told in a header.
    :param training: whether what is logged was not done.
    """
    parts = [b"action=" + action, b"reason=" + reason]
    if delay is not None:
        parts.append(b"delay=%d" % delay)
    for name, shown in _SHOWN:
        value = request.get(name)
        if value:
            parts.append(shown + value[:ATTRIBUTE_LIMIT])
    if training:
        parts.append(b"training=yes")
    line = b", ".join(parts)
    queue_id = request.get(b"queue_id")
    if queue_id:
        line = b"%b: %b" % (queue_id[:ATTRIBUTE_LIMIT], line)
    return printable(line)


def printable(text: bytes) -> str:
    """Show any bytes in one line: what is not UTF-8, and what is not printable, as Python's escapes."""
    shown = text.decode(errors="backslashreplace")
    if shown.isprintable():
        return shown
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in shown)
