"""TLS and authentication with real memcacheds: what is right is served, what is not has its reason in the log, once."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import attrs
import pytest

from .harness.certificates import Authority
from .harness.launch import check
from .harness.map_command import run_map
from .harness.memcached import Memcached
from .harness.postfix import Postfix
from .harness.processes import scratch_directory, wait_until, write_config
from .harness.secured_memcached import SecuredMemcached
from .harness.service import Service
from .harness.socketmap import ask

pytest.importorskip("socketmap_memcache.memcache.tls")

USER = ("postfix", "hidden-password")
CA = "tls_ca_file = {d}/ca.pem\n"
CLIENT = CA + "tls_cert_file = {d}/client.pem\ntls_key_file = {d}/client.key\n"
STRANGER = CA + "tls_cert_file = {d}/stranger.pem\ntls_key_file = {d}/stranger.key\n"
LOGIN = "username = postfix\npassword_file = {d}/password\n"
WRONG_LOGIN = "username = postfix\npassword_file = {d}/wrong-password\n"

#: What is served: the memcached that is asked, and the lines of the .cf file.
GOOD = {
    "address": ("tls", CA),
    "name": ("tls by name", CA),
    "other-name": ("tls", CA + "tls_server_name = mc.example\n"),
    "client-certificate": ("mutual", CLIENT),
    "login": ("user", LOGIN),
    "both": ("both", CLIENT + LOGIN),
    "login-not-wanted": ("plain", LOGIN),
}

#: What is not, and the reason.
BAD = {
    "wrong-name": ("tls", CA + "tls_server_name = mx.example\n", "certificate verify failed: it is not for mx.example"),
    "wrong-ca": ("tls", "tls_ca_file = {d}/other.pem\n", "verify failed: the certificate of its CA is not known."),
    "no-ca": ("mutual", "", "certificate verify failed: the CA at the end of its chain is not known"),
    "expired": ("expired", CA, "certificate verify failed: it has expired."),
    "no-name": ("nameless", CA, "certificate verify failed: it is not for 127.0.0.1 (but for no name)."),
    "no-client-certificate": ("mutual", CA, "the server wants a client certificate (tls_cert_file)."),
    "strange-client-certificate": ("mutual", STRANGER, "does not accept the certificate in tls_cert_file ("),
    "wrong-login": ("user", WRONG_LOGIN, "wrong username or password."),
    "no-login": ("user", "", "the server wants a username and a password (username, password_file)."),
    "both-wrong-login": ("both", CLIENT + WRONG_LOGIN, "wrong username or password."),
    "both-no-login": ("both", CLIENT, "the server wants a username and a password (username, password_file)."),
    "both-no-client-certificate": ("both", CA + LOGIN, "the server wants a client certificate (tls_cert_file)."),
    "tls-to-clear": ("plain as tls", CA, "the server does not speak TLS (wrong version number)."),
    "clear-to-tls": ("tls as clear", "", "It never answered anything: does the server expect tls:?"),
    "login-to-tls": ("tls as clear", LOGIN, "without an answer to the login; does it expect tls:?"),
    "tls-to-silence": ("silent as tls", CA, "no TLS handshake in time; does the server speak TLS?"),
    "login-to-silence": ("silent", LOGIN, "no answer to the login in time."),
}


@attrs.frozen
class Site:
    """The service in front of all kinds of memcached, and the directory with all certificates."""

    directory: Path
    ca: Authority
    service: Service
    places: dict[str, str]

    def ask(self, name: str) -> bytes:
        return ask(self.service.addresses[0], name)

    def down(self, name: str) -> list[str]:
        """Give the log lines that say that the memcached of a table is down, and why."""
        place, _, reason = BAD[name]
        start = f"memcached {self.places[place]} is down: "
        return [line for line in self.service.log.splitlines() if start in line and reason in line]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with scratch_directory() as directory, ExitStack() as stack:
        ca, other = Authority(directory), Authority(directory, "other")
        names = "DNS:localhost,DNS:mc.example,IP:127.0.0.1"
        shown, client = ca.issue("server", names), ca.issue("client")
        other.issue("stranger")
        for name, password in (("password", USER[1]), ("wrong-password", "hidden-mistake")):
            (directory / name).write_text(password + "\n")
            (directory / name).chmod(0o600)
        memcacheds = {
            "tls": SecuredMemcached(directory / "tls", shown=shown),
            "expired": SecuredMemcached(directory / "expired", shown=ca.issue("expired", names, expired=True)),
            "nameless": SecuredMemcached(directory / "nameless", shown=ca.issue("127.0.0.1")),
            "mutual": SecuredMemcached(directory / "mutual", shown=shown, clients=ca),
            "user": SecuredMemcached(directory / "user", user=USER),
            "both": SecuredMemcached(directory / "both", shown=shown, clients=ca, user=USER),
            "plain": SecuredMemcached(directory / "plain"),
        }
        for memcached in memcacheds.values():
            stack.enter_context(memcached).fill(b"key", b"value", client)
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        places = {name: memcached.address for name, memcached in memcacheds.items()}
        places["tls by name"] = places["tls"].replace("127.0.0.1", "localhost")
        places["tls as clear"] = memcacheds["tls"].clear_address
        places["plain as tls"] = places["plain"].replace("inet:", "tls:")
        places["silent"] = f"inet:127.0.0.1:{silent.getsockname()[1]}"
        places["silent as tls"] = places["silent"].replace("inet:", "tls:")
        tables = []
        for name, (place, lines, *_) in {**GOOD, **BAD}.items():
            text = f"memcache = {places[place]}\ntimeout = 1\nmax_try = 1\n{lines.format(d=directory)}"
            tables.append(f"{name}=memcache:{write_config(directory / f'{name}.cf', text)}")
            cf = write_config(directory / f"{name}-backed.cf", f"{text}backup = inline:{{key=backup}}\n")
            tables.append(f"{name}-backed=memcache:{cf}")
        service = stack.enter_context(Service(directory, f"tables = {', '.join(tables)}\n"))
        yield Site(directory, ca, service, places)


@pytest.mark.parametrize("name", GOOD)
def test_good(site: Site, name: str) -> None:
    """Who is what it should be is served, again and again."""
    assert [site.ask(name) for _ in range(3)] == [b"OK value"] * 3


@pytest.mark.parametrize("name", BAD)
def test_bad(site: Site, name: str) -> None:
    """Who is not is told why at once, and the log has the reason once; a backup answers in the cache's place."""
    reason = BAD[name][2].encode()
    begun = time.monotonic()
    assert site.ask(name).split()[0] in {b"TEMP", b"TIMEOUT"}
    assert time.monotonic() - begun < 3
    wait_until(lambda: reason in site.ask(name), f"{reason!r} is in {site.ask(name)!r}")
    assert site.ask(f"{name}-backed") == b"OK backup"
    for _ in range(3):
        begun = time.monotonic()
        assert reason in site.ask(name)
        assert time.monotonic() - begun < 0.5
    assert len(site.down(name)) == 1


def test_login_leaves_nothing(site: Site) -> None:
    """A memcached that did not want the login has not stored it."""
    assert site.ask("login-not-wanted") == b"OK value"
    plain = Memcached(site.directory)
    plain.address = site.places["plain"]
    assert plain.get(b"auth") is None


def test_renewed(site: Site) -> None:
    """A client certificate that is renewed on the disk is shown after a reload; one that is not is a reload refused."""
    name, password_file = "strange-client-certificate", site.directory / "password"
    assert b"tls_cert_file" in site.ask(name)
    password_file.chmod(0o644)
    site.service.reload()
    wait_until(lambda: "reload refused" in site.service.log, "the reload is refused")
    place = f"{site.directory}/both.cf:8: {password_file}: others than its owner may read"
    assert place in site.service.log
    assert site.ask("both") == b"OK value"
    password_file.chmod(0o600)
    for kind in ("pem", "key"):
        (site.directory / f"stranger.{kind}").write_bytes((site.directory / f"client.{kind}").read_bytes())
    site.service.reload()
    wait_until(lambda: site.ask(name) == b"OK value", "the new certificate is shown")
    assert site.ask("both") == b"OK value"


def test_postmap(site: Site) -> None:
    """Postfix finds what is in a memcached with TLS, a client certificate and a login."""
    with scratch_directory() as directory:
        postfix = Postfix(directory)
        found = postfix.postmap("-q", "key", site.service.map("both"))
        assert (found.returncode, found.stdout) == (0, b"value\n")
        missing = postfix.postmap("-q", "missing", site.service.map("both"))
        assert (missing.returncode, missing.stdout, missing.stderr) == (1, b"", b"")


def test_map_command(site: Site) -> None:
    """The map command, too, speaks TLS and logs in; where that cannot be it says why."""
    found = run_map("-q", "key", f"memcache:{site.directory}/both.cf")
    assert (found.returncode, found.stdout) == (0, b"value\n")
    failed = run_map("-q", "key", f"memcache:{site.directory}/both-wrong-login.cf")
    assert failed.returncode == 1
    assert b"wrong username or password" in failed.stderr
    assert b"hidden" not in failed.stderr


def test_nothing_is_shown(site: Site) -> None:
    """Neither a password nor a key is in the log."""
    assert "hidden" not in site.service.log
    assert "PRIVATE" not in site.service.log


def test_check(site: Site) -> None:
    """``check`` finds what can be found without a connection, each with its file and line."""
    cf = write_config(
        site.directory / "bad.cf",
        "memcache = tls:mc.example:11211\n"
        f"tls_ca_file = {site.directory}/expired.pem\n"
        f"tls_cert_file = {site.directory}/client.pem\n"
        f"tls_key_file = {site.directory}/server.key\n"
        "username = postfix\n",
    )
    config = write_config(site.directory / "bad-main.cf", f"tables = bad=memcache:{cf}\n")
    done = check(config)
    output = done.stdout + done.stderr
    assert done.returncode == 1
    for line, text in (
        (2, f"{site.directory}/expired.pem: the certificate has expired on 20"),
        (4, "the key is not that of the certificate"),
        (5, "username needs a password_file"),
    ):
        assert f"{cf}:{line}: {text}" in output, output
