"""``proxy:type:name``: any table of Postfix's, through its own proxymap(8) servers."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from typing import Any

from twisted.internet.defer import Deferred, DeferredLock, fail, inlineCallbacks, succeed
from twisted.python.failure import Failure
from zope.interface import implementer

from socketmap_memcache.errors import ConfigurationError, PermanentError, Problem, TableError
from socketmap_memcache.protocols.proxymap import Function, Reply, Request, Status
from socketmap_memcache.tables.folding import fold, valid
from socketmap_memcache.tables.interface import ICursor, ITable, RefusedError, check_entry
from socketmap_memcache.tables.proxymap_client import TIMEOUT, DeniedError, ProxymapClient, Walk
from socketmap_memcache.tables.registry import TableContext

_PREFIX = "proxy:"


def open_proxy(name: str, context: TableContext) -> ProxyTable:
    """Open ``proxy:type:name``. Nothing is connected before the first operation.

    The servers' sockets are the context's. Postfix lets only root and its own user come to them.

    :raises ConfigurationError: the name is not ``type:name``.
    """
    while name.startswith(_PREFIX):  # as Postfix does
        name = name[len(_PREFIX) :]
    kind, _, rest = name.partition(":")
    if not kind or not rest or "\0" in name:
        text = f"table '{_PREFIX}{name}': write proxy:type:name, for example proxy:btree:/var/lib/postfix/greylist"
        raise ConfigurationError([Problem(text)])
    sockets = context.proxymap_socket, context.proxywrite_socket
    return ProxyTable(name, *sockets, context.reactor, context.timeout, context.fold_keys)


@implementer(ITable)
class ProxyTable:
    """A table that proxymap(8) has open.

    Look-ups go to the service ``proxymap``, where the table is in ``proxy_read_maps``. When that is not so, and once
    the table has been changed from here, they go to ``proxywrite``: the one process that changes the table is also
    sure to have its newest content. A key is folded if the server says that the table is one of fixed strings.

    What cannot be had: a ``ttl`` is not kept. The place of a walk is kept by the server, so there can be one walk at a
    time, by anybody: one that begins ends the one before, which fails, if both were begun here. A walk that loses its
    connection fails, too.
    """

    def __init__(
        self,
        table: str,
        read_socket: str,
        write_socket: str,
        reactor: Any,
        timeout: float = TIMEOUT,
        fold_keys: bool = True,
    ) -> None:
        """Make a table.

        :param table: ``type:name``, without ``proxy:``.
        :param read_socket: the path of the socket of the service ``proxymap``.
        :param write_socket: that of ``proxywrite``.
        :param timeout: seconds that an operation may take, waiting for its turn included.
        :param fold_keys: whether keys are folded, if the server says that the table is one of fixed strings.
        """
        self.name = f"{_PREFIX}{table}"
        wire = table.encode("utf-8", "surrogateescape")
        rest = reactor, timeout, fold_keys
        self._proxymap = ProxymapClient(self.name, wire, read_socket, "proxy_read_maps", *rest)
        self._proxywrite = ProxymapClient(self.name, wire, write_socket, "proxy_write_maps", *rest)
        self._reader = self._proxymap
        #: The walk that is under way: the last that has begun and not ended.
        self.walk: ProxyCursor | None = None

    def lookup(self, key: bytes) -> Deferred[bytes | None]:
        """See :class:`ITable`."""
        if key and not _can_be(key):  # some tables have a value for any key, also the empty one
            return succeed(None)
        return self.read(Request(Function.LOOKUP, key)).addCallback(self._value)

    def update(self, key: bytes, value: bytes, ttl: int | None = None) -> Deferred[bool]:
        """See :class:`ITable`; the ttl is ignored."""
        try:
            if b"\0" in check_entry(self.name, key, value, None, fold_keys=False):
                raise RefusedError(f"{self.name}: a key with NUL cannot be stored")
        except TableError:
            return fail()
        return self._write(Request(Function.UPDATE, key, value))

    def delete(self, key: bytes) -> Deferred[bool]:
        """See :class:`ITable`."""
        if not _can_be(key):
            return succeed(False)
        request = Request(Function.DELETE, key)
        walk = self.walk
        return self._write(request) if walk is None else walk.step_off(key).addCallback(lambda _: self._write(request))

    def cursor(self) -> ICursor:
        """See :class:`ITable`; the first ``next`` of a walk ends the one before."""
        return ProxyCursor(self)

    def close(self) -> None:
        """See :class:`ITable`."""
        self._proxymap.close()
        self._proxywrite.close()

    def read(self, request: Request, walk: ProxyCursor | None = None) -> Deferred[Reply]:
        """Ask for what needs no right to write.

        :param walk: of a sequence: the walk that it begins.
        """
        reader = self._reader
        asked = reader.ask(request, walk)
        return asked.addErrback(self._denied, request, walk) if reader is self._proxymap else asked

    def _denied(self, failure: Failure, request: Request, walk: ProxyCursor | None) -> Deferred[Reply]:
        failure.trap(DeniedError)
        asked = self._proxywrite.ask(request, walk)
        return asked.addCallbacks(self._changed, lambda other: failure if other.check(DeniedError) else other)

    def _write(self, request: Request) -> Deferred[bool]:
        return self._proxywrite.ask(request).addCallback(self._changed).addCallback(lambda r: r.status is Status.OK)

    def _changed(self, reply: Reply) -> Reply:
        self._reader = self._proxywrite
        return reply

    def _value(self, reply: Reply) -> bytes | None:
        if reply.status is Status.NOKEY:
            return None
        if not valid(reply.value):
            raise PermanentError(f"{self.name}: a value is not UTF-8")  # for Postfix, too
        return reply.value


@implementer(ICursor)
class ProxyCursor(Walk):
    """A walk that is at least one entry ahead of its user.

    An entry may be deleted once the walk has left it: Postfix's lmdb: loses its place with the entry that it is at, and
    takes the rest of the table for empty.
    """

    def __init__(self, table: ProxyTable) -> None:
        """Begin before the first entry."""
        self._table = table
        self._steps = DeferredLock()  # one at a time
        self._ahead: deque[tuple[bytes, bytes]] = deque()  # the server's place is the last of these
        self._ended = False
        self._failure: Failure | None = None

    def next(self) -> Deferred[tuple[bytes, bytes] | None]:
        """See :class:`ICursor`. A walk that has failed goes on failing."""
        return self._steps.run(self._next)

    def step_off(self, key: bytes) -> Deferred[None]:
        """Make sure that the walk is not at the entry with this key; fires when that is so, also if the walk fails."""
        return self._steps.run(self._step_off, key)

    @inlineCallbacks
    def _next(self) -> Generator[Deferred[None], None, tuple[bytes, bytes] | None]:
        while not self._ended and self._failure is None and len(self._ahead) < 2:
            yield self._step()
        if self._ahead and (self._ended or len(self._ahead) > 1):
            return self._ahead.popleft()
        if self._failure is not None:
            self._failure.raiseException()
        return None

    def _step_off(self, key: bytes) -> Deferred[None]:
        at = bool(self._ahead) and fold(self._ahead[-1][0]) == fold(key)
        return self._step() if at and not self._ended and self._failure is None else succeed(None)

    def _step(self) -> Deferred[None]:
        if self.client is None:
            self._table.walk = self
            asked = self._table.read(Request(Function.SEQUENCE, first=True), self)
        else:
            asked = self.client.ask(Request(Function.SEQUENCE), self)
        return asked.addCallbacks(self._take, self._fail)

    def _take(self, reply: Reply) -> None:
        if reply.status is Status.OK:
            self._ahead.append((reply.key, reply.value))
        else:
            self._ended = True
            self._leave()

    def _fail(self, failure: Failure) -> None:
        self._failure = failure
        self._leave()

    def _leave(self) -> None:
        if self._table.walk is self:
            self._table.walk = None


def _can_be(key: bytes) -> bool:
    """Whether a table could have the key. One with NUL would make another request of what follows it."""
    return bool(key) and b"\0" not in key and valid(key)
