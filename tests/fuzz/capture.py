"""Makes the corpus anew, from what real programs say to each other: ``python -m tests.fuzz.capture`` as root.

Postfix, postmap, memcached and the service run as in the integration tests; a relay between each two writes down what
passes. Files that people write (configurations, whitelists, tables) are in the corpus as they are.
"""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Thread

from tests.integration.harness.memcached import Memcached
from tests.integration.harness.postfix import Postfix
from tests.integration.harness.processes import connect, free_port, scratch_directory, write_config
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
    samples = []
    for command in _MEMCACHED_COMMANDS:
        with connect(memcached.address) as connection:
            connection.sendall(command)
            samples.append(_received(connection))
    _write("memcache-replies", samples)


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
    config = "policies = greylist\ngreylist_table = memory:\n"
    policy = f"inet:127.0.0.1:{free_port()}"
    with Service(directory, config, policy_listen=[policy]) as service, ExitStack() as stack:
        relay = Relay(service.policy_addresses[0])
        write_config(directory / "table", "a b\nlonger@example.com one, two\n")
        main_cf = {
            "relay_domains": "example.org",
            "local_recipient_maps": "",
            "smtpd_recipient_restrictions": f"check_policy_service inet:127.0.0.1:{relay.port}",
            "proxy_read_maps": f"proxy:texthash:{directory}/table proxy:static:x",
        }
        postfix = Postfix(directory, main_cf)
        stack.enter_context(postfix)
        for sender in ("sender@elsewhere.example", "", "o'brien+x@example.com"):
            ask_recipients(postfix.port, ["a@example.org", "b@example.org"], sender)
        _write("policy-requests", [*map(bytes, relay.asked)])
        proxymap = Relay(f"unix:{postfix.proxy_sockets[0]}")
        replies = []
        for name in ("texthash:" + str(directory / "table"), "static:x", "texthash:/not/allowed"):
            replies += [_ask_proxymap(proxymap.port, name.encode(), function) for function in _PROXYMAP_REQUESTS]
        _write("proxymap-replies", replies)


def _ask_proxymap(port: int, table: bytes, function: bytes) -> bytes:
    request, *key = (word.partition(b"=")[2] for word in function.split())
    attributes = [(b"request", request), (b"table", table), (b"flags", b"448"), *[(b"key", value) for value in key]]
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"".join(name + b"\0" + value + b"\0" for name, value in attributes) + b"\0")
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
    for capture in (_capture_with_memcached, _capture_postfix):
        with scratch_directory() as directory:
            capture(directory)


def _capture_with_memcached(directory: Path) -> None:
    with _memcached(directory) as memcached:
        _capture_memcached(memcached)
        _capture_lookups(directory, memcached)


if __name__ == "__main__":
    main()
