"""Which Redis to use: the only one, the one of several that is master, or the one that the sentinels name."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred, inlineCallbacks
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from socketmap_memcache.errors import LookupTimeout, TableError, TemporaryError
from socketmap_memcache.memcache.security import PLAIN, Security
from socketmap_memcache.memcache.server import Server
from socketmap_memcache.tables.redis_connection import RedisConnection


class _TooLateError(Exception):
    """One server has used up its share of the time; the text may say what was waited for."""


@attrs.frozen
class Login:
    """How to begin a connection.

    :ivar username: empty for the default user's, or where there is no password.
    :ivar password: empty for none.
    :ivar db: the number of the database.
    """

    username: bytes = b""
    password: bytes = attrs.field(default=b"", repr=False)
    db: int = 0


class Hosts:
    """Servers of which the first that can be used is used, beginning with the one that was used last.

    Where there are several, only a master can be: what is written to one must be read there.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        login: Login,
        reactor: Any,
        masters_only: bool,
        security: Security = PLAIN,
    ) -> None:
        """Make it; nothing connects.

        :param security: for servers that speak TLS.
        """
        self._servers = list(servers)
        self._login = login
        self._reactor = reactor
        self._masters_only = masters_only
        self._security = security

    def connect(self, timeout: float) -> Deferred[RedisConnection]:
        """Give a connection that commands may be sent on.

        :return: fails within the time with :class:`TemporaryError`, which has the reason for each server.
        """
        return _first(self._servers, self._use, self._reactor, timeout)

    @inlineCallbacks
    def _use(self, server: Server, timeout: float) -> Generator[Deferred[Any], Any, RedisConnection]:
        connection: RedisConnection = yield _open(server, self._security, self._reactor, timeout)
        try:
            yield greet(connection, self._login, self._masters_only)
        except Exception:
            connection.drop(TemporaryError("of no use"))
            raise
        return connection


class Sentinels:
    """The master that the first sentinel names whose word turns out to be true, beginning with the one used last.

    https://redis.io/docs/latest/develop/reference/sentinel-clients/ has the rules.
    """

    def __init__(
        self,
        sentinels: Sequence[Server],
        name: str,
        login: Login,
        of_sentinels: Login,
        reactor: Any,
        security: Security = PLAIN,
    ) -> None:
        """Make it; nothing connects.

        :param name: of the master, as the sentinels know it.
        :param login: for the master.
        :param of_sentinels: for the sentinels.
        :param security: for sentinels that speak TLS; the masters that these name do so, too.
        """
        self._sentinels = list(sentinels)
        self._name = name.encode(errors="surrogateescape")
        self._login = login
        self._of_sentinels = of_sentinels
        self._security = security
        self._reactor = reactor

    def connect(self, timeout: float) -> Deferred[RedisConnection]:
        """See :meth:`Hosts.connect`."""
        return _first(self._sentinels, self._use, self._reactor, timeout)

    @inlineCallbacks
    def _use(self, sentinel: Server, timeout: float) -> Generator[Deferred[Any], Any, RedisConnection]:
        connection: RedisConnection = yield _open(sentinel, self._security, self._reactor, timeout)
        try:
            yield log_in(connection, self._of_sentinels)
            address = yield connection.ask(b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", self._name)
        finally:
            connection.drop(TemporaryError("asked"))
        master = self._master(address, "tls" if sentinel.tls else "inet")
        try:
            hosts = Hosts([master], self._login, self._reactor, masters_only=True, security=self._security)
            used: RedisConnection = yield hosts.connect(timeout)
        except TemporaryError as error:
            raise TemporaryError(f"names the master {error}") from None
        return used

    def _master(self, address: object, kind: str) -> Server:
        name = self._name.decode(errors="replace")
        if address is None:
            raise TemporaryError(f"knows no master {name!r}")
        try:
            host, port = (word.decode() for word in address)  # type: ignore[attr-defined]
            return Server.parse(f"{kind}:{host}:{port}" if host and ":" not in host else f"{kind}:[{host}]:{port}")
        except (AttributeError, TypeError, ValueError):
            raise TemporaryError(f"gave no address for the master {name!r}: {address!r}") from None


@inlineCallbacks
def log_in(connection: RedisConnection, login: Login) -> Generator[Deferred[Any], Any, None]:
    """Tell the server who is there, and find out whether it talks to us.

    :return: fails with :class:`TableError`.
    """
    if login.password:
        yield connection.ask(*filter(None, (b"AUTH", login.username, login.password)))
    if login.db:
        yield connection.ask(b"SELECT", b"%d" % login.db)
    yield connection.ask(b"PING")
    connection.has_answered = True


@inlineCallbacks
def greet(connection: RedisConnection, login: Login, masters_only: bool) -> Generator[Deferred[Any], Any, None]:
    """Log in, and see whether the server may be used.

    :return: fails with :class:`TableError`.
    """
    yield log_in(connection, login)
    if masters_only:
        role = yield connection.ask(b"ROLE")
        if not isinstance(role, list) or role[:1] != [b"master"]:
            raise TemporaryError(f"redis {connection.server}: is not a master")


def _open(server: Server, security: Security, reactor: Any, timeout: float) -> Deferred[RedisConnection]:
    if server.tls:
        from socketmap_memcache.tables.redis_tls import connect_securely

        return connect_securely(server, security, reactor, 2 * timeout)
    factory = Factory.forProtocol(lambda: RedisConnection(server.name, reactor))
    factory.noisy = False
    # It is stopped in time by _first; this way it is known that whatever else stops it is the end.
    return server.connect(reactor, factory, 2 * timeout)


@inlineCallbacks
def _first(
    servers: list[Server], use: Callable[[Server, float], Deferred[RedisConnection]], reactor: Any, timeout: float
) -> Generator[Deferred[Any], Any, RedisConnection]:
    """Give the first connection that one of the servers leads to, and put that server first.

    Each has an equal share of the time that is left.
    """
    end = reactor.seconds() + timeout
    reasons = []
    kind = TemporaryError
    for place, server in enumerate(list(servers)):
        share = max((end - reactor.seconds()) / (len(servers) - place), 0)
        try:
            connection: RedisConnection = yield use(server, share).addTimeout(share, reactor, _too_late)
        except (CancelledError, ConnectingCancelledError):
            raise
        except _TooLateError as error:
            kind = LookupTimeout
            reasons.append(f"{server.name}: {str(error) or f'no answer within {share:.3g} s'}")
        except Exception as error:  # noqa: BLE001 (whatever it is, it is a reason)
            reasons.append(f"{server.name}: {_reason(error, server)}")
        else:
            servers.remove(server)
            servers.insert(0, server)
            return connection
    raise kind("; ".join(reasons))


def _too_late(result: Any, _timeout: float) -> Any:
    if isinstance(result, Failure):
        raise _TooLateError(result.getErrorMessage() if result.check(CancelledError) else "")
    return result


def _reason(error: Exception, server: Server) -> str:
    text = Failure(error).getErrorMessage()
    if isinstance(error, TableError):
        text = text.removeprefix(f"redis {server.name}: ")
    return text.rstrip(".")
