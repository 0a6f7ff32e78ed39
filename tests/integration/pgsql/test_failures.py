"""``pgsql:`` tables whose servers, or the connections to them, fail."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from socketmap_memcache.errors import LookupTimeout, TemporaryError
from tests.integration.harness.memcached import Memcached
from tests.integration.harness.policy import PolicyClient
from tests.integration.harness.postgresql import Postgresql
from tests.integration.harness.processes import free_port, wait_until
from tests.integration.harness.service import Service
from tests.integration.harness.socketmap import SocketmapClient

from .cases import QUERIES
from .site import Site


class TestFailures:
    def test_session_ended(self, server: Postgresql, site: Site) -> None:
        """When its connection is ended a table goes on with another, as if nothing had happened."""
        table = site.open(f"{server.cf}store_table = ended\n", create=True)
        looked_up = site.open(f"{server.cf}{QUERIES[0]}\n")
        for number in range(3):
            server.end_sessions()
            value = b"%d" % number
            assert site.results([table.update(b"k", value), table.lookup(b"k")]) == [True, value]
            assert site.result(looked_up.lookup(b"user")) == b"U"

    def test_ended_in_the_middle(self, server: Postgresql, site: Site) -> None:
        """Connections that are ended while they are used change no answer, and lose nothing that was acknowledged.

        An operation that meets two of them may fail.
        """
        table = site.open(f"{server.cf}store_table = middle\n", create=True)
        keys = [b"%d" % number for number in range(100)]
        stored: dict[bytes, set[bytes]] = {key: set() for key in keys}  # what each may have
        with ThreadPoolExecutor(1) as pool:
            for value in (b"%d" % number for number in range(15)):
                ended = pool.submit(server.end_sessions)
                while not ended.done():
                    for key, done in zip(keys, site.outcomes([table.update(key, value) for key in keys]), strict=True):
                        stored[key] = {value} if done is True else stored[key] | {value}
                    for key, found in zip(keys, site.outcomes([table.lookup(key) for key in keys]), strict=True):
                        assert isinstance(found, TemporaryError) or found in stored[key]
                ended.result()
        site.result_at_last(lambda: table.lookup(b"0"))  # perhaps on the connection that was ended last
        assert all(value in stored[key] for key, value in site.walk(table))

    def test_restart(self, second: Postgresql, site: Site) -> None:
        """While the server is dead all fails, with the reason; then what was acknowledged is there."""
        table = site.open(f"{second.cf}store_table = kept\n", create=True)
        assert site.results([table.update(b"%d" % number, b"v") for number in range(50)]) == [True] * 50
        second.stop()
        failing: list[Deferred[Any]] = [table.lookup(b"1"), table.update(b"x", b"v")]
        for answer in failing:
            with pytest.raises(TemporaryError, match=rf"host 127.0.0.1:{second.port}: Connection refused"):
                site.result(answer)
        second.start()
        assert site.result_at_last(lambda: table.lookup(b"1")) == b"v"
        assert len(site.walk(table)) == 50

    def test_failover(self, server: Postgresql, second: Postgresql, site: Site) -> None:
        """With one of two servers dead look-ups and updates go to the other, and no answer is wrong."""
        second.execute("CREATE TABLE t (k text, v text); INSERT INTO t VALUES ('user', 'U')")
        hosts = f"hosts = {second.uri} {server.uri}\n"
        rows = site.open(f"{hosts}{QUERIES[0]}\n")
        store = site.open(f"{hosts}store_table = two\n", create=True)
        assert site.results([rows.lookup(b"user"), store.update(b"k", b"in the second")]) == [b"U", True]
        second.stop()
        assert site.results([rows.lookup(b"user"), rows.lookup(b"no")]) == [b"U", None]
        assert site.result(store.update(b"k", b"in the first"))
        assert site.result(store.lookup(b"k")) == b"in the first"

    def test_read_only(self, server: Postgresql, second: Postgresql, site: Site) -> None:
        """A table of this service is kept where it can be written, also when that becomes another server."""
        table = site.open(f"hosts = {second.uri} {server.uri}\nstore_table = moved\n", create=True)
        assert site.result(table.update(b"k", b"v"))
        second.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        second.execute("SELECT pg_reload_conf()")
        wait_until(lambda: second.execute("SHOW default_transaction_read_only") == [("on",)], "it is read-only")
        assert site.result(table.update(b"l", b"v"))
        assert server.execute("SELECT key FROM moved") == [("l",)]

    def test_hanging(self, server: Postgresql, second: Postgresql, site: Site) -> None:
        """A server that hangs takes no more time than it may, and then another one is asked."""
        alone = site.open(f"hosts = {second.uri}\nquery = SELECT '%s'\n", timeout=1)
        both = site.open(f"hosts = {second.uri} {server.uri}\nstore_table = hung\n", create=True, timeout=3)
        assert site.results([alone.lookup(b"k"), both.lookup(b"k")]) == [b"k", None]
        second.freeze()
        began = time.monotonic()
        with pytest.raises(LookupTimeout):
            site.result(alone.lookup(b"k"))
        assert site.result(both.update(b"k", b"v"))
        assert time.monotonic() - began < 5
        second.thaw()

    def test_slow_statement(self, server: Postgresql, site: Site) -> None:
        """A statement that nobody waits for any more is ended by the server, too."""
        table = site.open(f"{server.cf}query = SELECT pg_sleep(30)::text || '%s'\n", timeout=0.5)
        with pytest.raises(TemporaryError):
            site.result(table.lookup(b"k"))
        query = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(30)%' AND state = 'active'"
        wait_until(lambda: server.execute(f"{query} AND pid <> pg_backend_pid()") == [(0,)], "it has ended")

    def test_slow_statement_of_several(self, server: Postgresql, second: Postgresql, site: Site) -> None:
        """A key that takes too long is a failure of its own: no server of several is taken for dead."""
        query = "query = SELECT pg_sleep('%s'::float)::text || 'slept'\n"
        table = site.open(f"hosts = {second.uri} {server.uri}\n{query}", timeout=2)
        with pytest.raises(TemporaryError):
            site.result(table.lookup(b"30"))
        assert site.result(table.lookup(b"0")) == b"slept"

    def test_wrong_password(self, server: Postgresql, site: Site) -> None:
        """A wrong password is the reason of a failure, and is not in it."""
        cf = server.cf.replace("password = ", "password = sesame")
        with pytest.raises(TemporaryError, match="password authentication failed") as caught:
            site.result(site.open(f"{cf}{QUERIES[0]}\n").lookup(b"user"))
        assert "sesame" not in str(caught.value)

    def test_backup_of_memcached(self, place: Path, site: Site, server: Postgresql) -> None:
        """A database that is down or away does nothing to what memcached has; the rest fails and is never missing."""
        folder = place / "service"
        folder.mkdir()
        with Memcached(folder) as memcached:
            up = site.write(f"{server.cf}{QUERIES[0]}\n")
            down = site.write(server.cf.replace(str(server.port), str(free_port())) + f"{QUERIES[0]}\n")
            caches = [
                site.write(f"memcache = {memcached.address}\nkey_format = {name}-%s\nbackup = pgsql:{cf}\n")
                for name, cf in (("up", up), ("down", down))
            ]
            memcached.set(b"down-cached", b"hit")
            tables = " ".join(f"{name}=memcache:{cf}" for name, cf in zip(("up", "down"), caches, strict=True))
            with Service(folder, f"tables = {tables}\n") as service, SocketmapClient(service.addresses[0]) as client:
                assert client.ask("up", b"user") == b"OK U"
                assert memcached.get(b"up-user") == b"U"
                assert client.ask("up", b"nobody") == b"NOTFOUND "
                for _ in range(3):
                    assert client.ask("down", b"cached") == b"OK hit"
                    assert client.ask("down", b"user").startswith(b"TEMP ")
            assert "Connection refused" in service.log

    def test_greylist_of_two(self, place: Path, site: Site, server: Postgresql) -> None:
        """Two services with one table have one greylist, each with a cache of its own in front of it."""
        services = []
        for name in ("mx1", "mx2"):
            folder = place / name
            folder.mkdir()
            database = site.write(f"{server.cf}store_table = greylist\n")
            table = site.write(f"memcache = memory:\nttl = 0\nbackup = pgsql:{database}\n")
            config = f"policies = greylist\ngreylist_table = memcache:{table}\ngreylist_delay = 1s\n"
            services.append(Service(folder, config, policy_listen=[f"inet:127.0.0.1:{free_port()}"]))
        mail = {"protocol_state": "RCPT", "client_address": "192.0.2.7", "client_name": "mx.example.com"}
        mail |= {"sender": "a@example.com", "recipient": "b@example.org"}
        with services[0] as first, services[1] as second, PolicyClient(first.policy_addresses[0]) as one:
            assert one.ask(mail).startswith(b"DEFER_IF_PERMIT ")
            with PolicyClient(second.policy_addresses[0]) as two:
                wait_until(lambda: not two.ask(mail).startswith(b"DEFER"), "the delay is over there, too")
        assert server.execute("SELECT count(*) > 0, min(expires) > now() FROM greylist") == [(True, True)]
