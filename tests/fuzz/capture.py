"""Makes the corpus anew, from what real programs say to each other: ``python -m tests.fuzz.capture`` as root.

Postfix, postmap, memcached, Redis and the service run as in the integration tests; a relay between each two writes down
what passes. Files that people write (configurations, whitelists, tables) are in the corpus as they are.
"""

from __future__ import annotations

import shutil
import smtplib
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Thread

from socketmap_memcache.protocols import redis
from tests.integration.harness.certificates import Authority
from tests.integration.harness.memcached import Memcached
from tests.integration.harness.postfix import Postfix
from tests.integration.harness.processes import connect, free_port, scratch_directory, write_config
from tests.integration.harness.redis import RedisServer
from tests.integration.harness.service import Service
from tests.integration.harness.smtp import ask_recipients

CORPUS = Path(__file__).with_name("corpus")

KEYS = ["alice@example.com", "bob+list@example.org", "example.net", "@example.com", "müller@exämple.com", "x" * 300]

_MEMCACHED_COMMANDS = [
    b"get a\r\n",
    b"get missing\r\n",
    b"get empty\r\n",
    b"get long\r\n",
    b"get lines\r\n",
    b"get a empty lines missing\r\n",
    b"set b 0 0 1\r\nx\r\n",
    b"set toolong 0 0 99999999\r\n",
    b"delete a\r\n",
    b"delete missing\r\n",
    b"bogus\r\n",
    b"get " + b"k" * 251 + b"\r\n",
]

_META_COMMANDS = [
    b"mg a v k c\r\n",
    b"mg a v k c t f s h l O123\r\n",
    b"mg lines v k c\r\n",
    b"mg long v k c\r\n",
    b"mg missing v k c\r\n",
    b"mg leased v k c N30\r\nmg leased v k c N30\r\n",
    b"mg a v k c R2000000000\r\nmg a v k c\r\n",
    b"mg YQ== b v k c\r\n",
    b"mg a q v k c\r\nmn\r\n",
    b"mg a v k k\r\n",
    b"ms b 1 C1 F0 T60\r\nx\r\n",
    b"ms a 1 C999 F0 T60\r\nx\r\n",
    b"ms c 1 T60 k c\r\nx\r\n",
    b"ms toolong 99999999 T60\r\n",
    b"md missing C1\r\n",
    b"md a C999\r\n",
    b"md c\r\n",
    b"me a\r\n",
    b"mg " + b"k" * 251 + b" v\r\n",
]

_REDIS_COMMANDS = [
    (b"GET", b"a"),
    (b"GET", b"empty"),
    (b"GET", b"lines"),
    (b"GET", b"long"),
    (b"GET", b"missing"),
    (b"GET", b"list"),
    (b"MGET", b"a", b"missing", b"lines", b"list"),
    (b"SET", b"b", b"x", b"EX", b"60"),
    (b"DEL", b"b"),
    (b"SCAN", b"0", b"MATCH", b"l*", b"COUNT", b"10"),
    (b"SCAN", b"0", b"MATCH", b"none", b"COUNT", b"1"),
    (b"PING",),
    (b"AUTH", b"user", b"password"),
    (b"SELECT", b"99"),
    (b"ROLE",),
    (b"HELLO", b"2"),
    (b"EVAL", b"return {1, {2, {false, {'deep'}}}, redis.status_reply('OK'), redis.error_reply('NO')}", b"0"),
    (b"BOGUS",),
]

_STAGES = ("client", "helo", "sender", "recipient", "data", "end_of_data", "etrn")

_PROXYMAP_REQUESTS = (b"request=open", b"request=lookup key=a", b"request=lookup key=missing", b"request=bogus")


class Relay:
    """Passes on what comes to a TCP port, and remembers it.

    :ivar asked: what the client sent, for each connection.
    :ivar replied: what the server sent.
    """

    def __init__(self, address: str) -> None:
        """:param address: of the server, as Postfix writes it."""
        self._address = address
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.asked: list[bytearray] = []
        self.replied: list[bytearray] = []
        Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listening.accept()
            server = connect(self._address)
            for source, target, record in ((client, server, self.asked), (server, client, self.replied)):
                passed = bytearray()
                record.append(passed)
                Thread(target=_pass, args=(source, target, passed), daemon=True).start()


def _pass(source: socket.socket, target: socket.socket, passed: bytearray) -> None:
    while data := source.recv(65536):
        passed += data
        target.sendall(data)
    target.shutdown(socket.SHUT_WR)


def _write(kind: str, samples: list[bytes]) -> None:
    directory = CORPUS / kind
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    unique = sorted({bytes(sample[:3000]) for sample in samples if sample}, key=lambda sample: (len(sample), sample))
    for number, sample in enumerate(unique):
        (directory / f"{number:02}").write_bytes(sample)


@contextmanager
def _memcached(directory: Path) -> Iterator[Memcached]:
    with Memcached(directory, tcp=True) as memcached:
        for key, value in ((b"a", b"value"), (b"empty", b""), (b"long", b"x" * 2000), (b"lines", b"one\r\nEND\r\n")):
            memcached.set(key, value)
        for address in KEYS[:3]:
            memcached.set(address.encode(), b"found %b" % address.encode())
        yield memcached


def _capture_memcached(memcached: Memcached) -> None:
    _write("memcache-meta-replies", [_ask(memcached.address, command) for command in _META_COMMANDS])
    _write("memcache-replies", [_ask(memcached.address, command) for command in _MEMCACHED_COMMANDS])


def _capture_redis(directory: Path) -> None:
    with RedisServer(directory) as server:
        for key, value in ((b"a", b"value"), (b"empty", b""), (b"long", b"x" * 2000), (b"lines", b"one\r\n+OK\r\n")):
            server.command("SET", key, value)
        server.command("RPUSH", "list", "item")
        commands = [redis.command(*words) for words in _REDIS_COMMANDS]
        commands.append(b"".join(commands[-4:] + commands[:3]))
        _write("redis-replies", [_ask(server.address, command) for command in commands])


def _capture_lookups(directory: Path, memcached: Memcached) -> None:
    write_config(directory / "cache.cf", f"memcache = {memcached.address}\n")
    tables = f"tables = aliases=memcache:{directory}/cache.cf fixed=inline:{{a=b}} broken=fail:x\n"
    tcp = f"inet:127.0.0.1:{free_port()}"
    with Service(directory, f"{tables}tcp_table_listen = aliases={tcp}\n") as service:
        socketmap, tcp_table = Relay(service.addresses[0]), Relay(tcp)
        tables_asked = [
            f"socketmap:inet:127.0.0.1:{socketmap.port}:{name}" for name in ("aliases", "fixed", "broken", "-")
        ]
        tables_asked.append(f"tcp:127.0.0.1:{tcp_table.port}")
        postfix = Postfix(directory)
        for table in tables_asked:
            for key in KEYS[:5]:
                postfix.postmap("-q", key, table)
            postfix.postmap("-q", "-", table, stdin="\n".join(KEYS).encode())
    _write("socketmap-requests", [*map(bytes, socketmap.asked)])
    _write("socketmap-replies", [*map(bytes, socketmap.replied)])
    _write("tcp-table-requests", [*map(bytes, tcp_table.asked)])


def _capture_postfix(directory: Path) -> None:
    config = "policies = greylist\ngreylist_table = memory:\ngreylist_delay = 0\n"
    policy = f"inet:127.0.0.1:{free_port()}"
    with Service(directory, config, policy_listen=[policy]) as service, ExitStack() as stack:
        relay = Relay(service.policy_addresses[0])
        write_config(directory / "table", "a b\nlonger@example.com one, two\n")
        authority = Authority(directory)
        server, client = authority.issue("server"), authority.issue("client")
        check = f"check_policy_service inet:127.0.0.1:{relay.port}"
        main_cf = {
            "relay_domains": "example.org",
            "local_recipient_maps": "",
            "inet_protocols": "all",
            "smtpd_delay_reject": "no",
            **{f"smtpd_{stage}_restrictions": check for stage in _STAGES},
            "smtpd_policy_service_policy_context": "context",
            "smtpd_authorized_xclient_hosts": "127.0.0.1",
            "smtpd_tls_security_level": "may",
            "smtpd_tls_cert_file": str(server.path),
            "smtpd_tls_key_file": str(server.key_path),
            "smtpd_tls_CAfile": str(authority.path),
            "smtpd_tls_ask_ccert": "yes",
            "smtpd_tls_fingerprint_digest": "sha256",
            "smtputf8_enable": "yes",
            "proxy_read_maps": f"proxy:texthash:{directory}/table proxy:static:x",
        }
        postfix = Postfix(directory, main_cf)
        with (postfix.config_directory / "master.cf").open("a") as master_cf:
            master_cf.write("tlsmgr unix - - n 1000? 1 tlsmgr\n")
        stack.enter_context(postfix)
        for sender in ("", "o'brien+x@example.com"):
            ask_recipients(postfix.port, ["a@example.org", "b@example.org"], sender)
        context = ssl.create_default_context(cafile=authority.path)
        context.check_hostname = False
        context.load_cert_chain(client.path, client.key_path)
        _send_mail(postfix.port, context)
        requests = b"".join(map(bytes, relay.asked)).split(b"\n\n")[:-1]
        _write("policy-requests", [*_one_of_each_kind(requests), b"\n\n".join([*requests[:3], b""])])
        proxymap = Relay(f"unix:{postfix.proxy_sockets[0]}")
        replies = []
        for name in ("texthash:" + str(directory / "table"), "static:x", "texthash:/not/allowed"):
            replies += [_ask_proxymap(proxymap.port, name.encode(), function) for function in _PROXYMAP_REQUESTS]
        _write("proxymap-replies", replies)


def _send_mail(port: int, context: ssl.SSLContext) -> None:
    """Send a mail, after most of what smtpd asks a policy about: TLS, a login, IPv6, SMTPUTF8, VRFY, ETRN."""
    with smtplib.SMTP("127.0.0.1", port, local_hostname="client.elsewhere.example", timeout=120) as session:
        session.ehlo()
        session.vrfy("a@example.org")
        session.docmd("ETRN", "example.org")
        session.starttls(context=context)
        session.ehlo()
        session.docmd("XCLIENT", "NAME=mail.example.net ADDR=IPV6:2001:db8::25 PORT=4711 LOGIN=alice@example.org")
        session.ehlo()
        session.mail("müller@exämple.com", ["SMTPUTF8", "SIZE=1000"])
        session.rcpt("grüße@example.org")
        session.rcpt("b@example.org")
        session.data("Subject: test\r\n\r\ntext\r\n")


def _one_of_each_kind(requests: list[bytes]) -> list[bytes]:
    """Return the first request of each protocol state, with TLS and without, with a sender and without."""
    kinds: dict[tuple[bytes, ...], bytes] = {}
    for request in requests:
        attributes = dict(line.split(b"=", 1) for line in request.splitlines())
        kind = (attributes[b"protocol_state"], attributes[b"encryption_protocol"], attributes[b"sender"])
        kinds.setdefault(kind, request + b"\n\n")
    return [*kinds.values()]


def _ask_proxymap(port: int, table: bytes, function: bytes) -> bytes:
    request, *key = (word.partition(b"=")[2] for word in function.split())
    attributes = [(b"request", request), (b"table", table), (b"flags", b"448"), *[(b"key", value) for value in key]]
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"".join(name + b"\0" + value + b"\0" for name, value in attributes) + b"\0")
        return _received(connection)


def _ask(address: str, command: bytes) -> bytes:
    with connect(address) as connection:
        connection.sendall(command)
        return _received(connection)


def _received(connection: socket.socket) -> bytes:
    """Return what comes until nothing more comes."""
    connection.settimeout(0.3)
    received = b""
    with suppress(TimeoutError):
        while data := connection.recv(65536):
            received += data
    return received


def main() -> None:
    """Write all of it."""
    for capture in (_capture_with_memcached, _capture_redis, _capture_postfix):
        with scratch_directory() as directory:
            capture(directory)


def _capture_with_memcached(directory: Path) -> None:
    with _memcached(directory) as memcached:
        _capture_memcached(memcached)
        _capture_lookups(directory, memcached)


if __name__ == "__main__":
    main()
