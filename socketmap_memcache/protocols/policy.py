"""The policy delegation protocol of Postfix (SMTPD_POLICY_README).

Lines ``name=value`` and an empty line ask, ``action=`` and an empty line answer. Lines end with a newline only; before
one, a carriage return is left out here, for those who test by hand. Replies never have one, because Postfix would take
the empty line after it for the name of an attribute, and wait for more.
"""

from __future__ import annotations

from socketmap_memcache.errors import ProtocolError

#: The largest request accepted, in bytes without the empty line at its end. Postfix's have some 600 and the addresses.
REQUEST_LIMIT = 65536

#: Attributes in a request. Postfix sends some thirty.
ATTRIBUTE_LIMIT = 1000


class PolicyProtocolError(ProtocolError):
    """Bytes that are no request. There is no reply that says so: the connection has to be closed."""


class RequestReader:
    """Takes bytes in any chunks and gives back requests: what is before each empty line."""

    __slots__ = ("_buffer", "_searched", "_start")

    def __init__(self) -> None:
        """Start at the beginning of a stream."""
        # The newline before a request is kept, so that an empty line is found at the beginning, too.
        self._buffer = bytearray(b"\n")
        self._start = 1  # of the request
        self._searched = 0  # no empty line between the start and here

    def sole(self, data: bytes) -> bytes | None:
        """Give the lines of what was received if that is just one request and nothing is held, as always with Postfix.

        :return: ``None`` where that is not so, or the request needs a closer look; then the data is to be fed.
        """
        end = len(data) - 2
        if data.find(b"\n\n") != end or not 0 < end <= REQUEST_LIMIT:
            return None
        if data[0] == 0x0A or b"\r" in data or self.partial:
            return None
        return data[:end]

    def feed(self, data: bytes) -> None:
        """Take what was received."""
        done = self._start - 1
        if done:
            del self._buffer[:done]
            self._searched -= done
            self._start = 1
        self._buffer += data

    @property
    def partial(self) -> bool:
        """Whether bytes are held."""
        return self._start < len(self._buffer)

    def next_payload(self) -> bytes | None:
        """Give the lines of the next whole request, without the last newline; ``None`` until more is fed.

        :raises PolicyProtocolError: a request is larger than :data:`REQUEST_LIMIT`.
        """
        buffer, start = self._buffer, self._start
        last = start + REQUEST_LIMIT
        end = buffer.find(b"\n\n", self._searched, last + 2)
        following = end + 2
        with_return = buffer.find(b"\n\r\n", self._searched, following if end >= 0 else last + 3)
        if with_return >= 0:
            end, following = with_return, with_return + 3
        if end < 0:
            if len(buffer) >= last + 3:
                raise PolicyProtocolError(f"request of more than {REQUEST_LIMIT} bytes")
            self._searched = max(start - 1, len(buffer) - 2)
            return None
        self._start = following
        self._searched = following - 1
        return bytes(buffer[start:end])


def parse_request(payload: bytes) -> dict[bytes, bytes]:
    """Return the attributes of a request, known or not; of several with the same name the last one.

    :param payload: its lines, the empty one not included.
    :raises PolicyProtocolError: a line is no ``name=value``, or has a NUL; there are more than :data:`ATTRIBUTE_LIMIT`
        lines; or it is no request of smtpd's.
    """
    if b"\0" in payload:
        raise PolicyProtocolError("NUL in a request")
    if b"\r" in payload:
        payload = (payload + b"\n").replace(b"\r\n", b"\n")[:-1]
    lines = payload.split(b"\n")
    if len(lines) > ATTRIBUTE_LIMIT:
        raise PolicyProtocolError(f"request of more than {ATTRIBUTE_LIMIT} attributes")
    request = {}
    for line in lines:
        name, equals, value = line.partition(b"=")
        if not equals:
            raise PolicyProtocolError("a line of the request is not name=value")
        request[name] = value
    if request.get(b"request") != b"smtpd_access_policy":
        raise PolicyProtocolError("request=smtpd_access_policy is missing")
    return request


def reply(action: bytes) -> bytes:
    """Encode the reply with an action, one line of UTF-8 that is not empty."""
    return b"action=%b\n\n" % action
