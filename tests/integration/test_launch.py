"""The service as an administrator starts, reloads and stops it."""

from __future__ import annotations

import os
import pwd
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from .harness.launch import TWISTD, assert_clean, check, run, start_in_vain
from .harness.processes import (
    PATIENCE,
    accepts,
    free_port,
    scratch_directory,
    wait_until,
    write_config,
)
from .harness.scripted import Get, scripted_memcached, value
from .harness.service import Service
from .harness.socketmap import SocketmapClient, ask

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may change to another user")


@pytest.fixture
def scratch() -> Iterator[Path]:
    with scratch_directory() as directory:
        yield directory


class TestStart:
    def test_foreground(self, scratch: Path) -> None:
        """In the foreground it says what is served and where, serves it, and SIGTERM ends it without an error."""
        addresses = [f"inet:127.0.0.1:{free_port()}", f"unix:{scratch}/socket"]
        with Service(scratch, "tables = one=static:1, two=inline:{key=2}\n", listen=addresses) as service:
            assert [ask(address, name) for address in addresses for name in ("one", "two")] == [b"OK 1", b"OK 2"] * 2
            assert service.stop() == -signal.SIGTERM  # twistd stops all services, then lets the signal end the process
        assert "serving one = static:1" in service.log
        assert "serving two = inline:{key=2}" in service.log
        for address in addresses:
            assert f"listening on {address} (socketmap)" in service.log
            assert not accepts(address)
        assert not (scratch / "socket").exists()
        assert_clean(service.log)

    def test_interrupt(self, scratch: Path) -> None:
        """Ctrl-C stops it like SIGTERM does."""
        with Service(scratch, "tables = t=static:1\n") as service:
            service.send_signal(signal.SIGINT)
            service.child.wait(PATIENCE)
        assert not (scratch / "socketmap.sock").exists()
        assert_clean(service.log)

    def test_set(self, scratch: Path) -> None:
        """``--set name=value`` replaces what the file says, also after a reload, and may be given many times."""
        options = ["--set", "tables=t=static:set", "--set", "client_idle_timeout = 200s"]
        with Service(scratch, "tables = t=static:file\n", options=options) as service:
            assert ask(service.addresses[0], "t") == b"OK set"
            service.reload()
            wait_until(lambda: "reloaded" in service.log, "the reload")
            assert ask(service.addresses[0], "t") == b"OK set"

    def test_warning(self, scratch: Path) -> None:
        """What may be a slip in a table's file is a warning in the log, with file and line, and no hindrance."""
        cf = write_config(scratch / "t.cf", "memcache = memory:\nbackup = static:1\ntimeot = 5\n")
        with Service(scratch, f"tables = t=memcache:{cf}\n") as service:
            assert f"{cf}:3: unknown parameter 'timeot'; did you mean 'timeout'?" in service.log
            assert ask(service.addresses[0], "t") == b"OK 1"

    def test_twisted_endpoint(self, scratch: Path) -> None:
        """A server endpoint description of Twisted's is an address, too."""
        port = free_port()
        service = Service(scratch, "tables = t=static:1\n", listen=[f"tcp:{port}:interface=127.0.0.1"])
        service.addresses[:] = [f"inet:127.0.0.1:{port}"]
        with service:
            assert ask(service.addresses[0], "t") == b"OK 1"

    def test_daemon(self, scratch: Path) -> None:
        """Without -n it is a daemon with a pidfile, which is removed at the end."""
        config = write_config(
            scratch / "main.cf", "socketmap_listen = unix:$config_directory/socket\ntables = t=static:1\n"
        )
        pidfile, logfile = scratch / "pid", scratch / "log"
        started = run(
            *TWISTD,
            f"--pidfile={pidfile}",
            f"--logfile={logfile}",
            "socketmap-memcache",
            "--config",
            config.name,
            cwd=scratch,
        )
        assert (started.returncode, started.stdout, started.stderr) == (0, "", "")
        pid = int(pidfile.read_text())
        try:
            assert ask(f"unix:{scratch}/socket", "t") == b"OK 1"
            write_config(config, config.read_text().replace("static:1", "static:2"))
            os.kill(pid, signal.SIGHUP)
            wait_until(lambda: ask(f"unix:{scratch}/socket", "t") == b"OK 2", "the reload")
            os.kill(pid, signal.SIGTERM)
            wait_until(lambda: not pidfile.exists(), "the end")
        finally:
            if pidfile.exists():
                os.kill(pid, signal.SIGKILL)
        assert not accepts(f"unix:{scratch}/socket")
        assert_clean(logfile.read_text())


class TestBadConfiguration:
    TEXT = """\
socketmap_listen = unix:$config_directory/socket
tabels = x=static:1
client_idle_timeout = 5
tables =
    good=static:1
    bad=memcache:{directory}/bad.cf
    none=memcache:{directory}/none.cf
"""
    TABLE = "memcache = unix:/nowhere\nmax_try = 0\ntimeot = 5\n"

    @pytest.fixture
    def errors(self, scratch: Path) -> list[str]:
        """Write a bad configuration, and return what is to be said of it."""
        write_config(scratch / "main.cf", self.TEXT.format(directory=scratch))
        write_config(scratch / "bad.cf", self.TABLE)
        return [
            f"{scratch}/main.cf:2: unknown parameter 'tabels'; did you mean 'tables'?",
            f"{scratch}/main.cf:3: client_idle_timeout = 5: must be at least 101s",
            f"{scratch}/bad.cf:2: invalid max_try parameter value 0 < 1",
            f"{scratch}/main.cf:4: tables: {scratch}/none.cf: cannot be read: No such file or directory",
        ]

    def test_start(self, scratch: Path, errors: list[str]) -> None:
        """A start with a bad configuration fails, and stderr has every error with file and line, and no traceback."""
        started = start_in_vain(scratch / "main.cf")
        assert started.returncode == 1
        for error in errors:
            assert error in started.stderr
        assert "Traceback" not in started.stderr
        assert not (scratch / "socket").exists()

    def test_check(self, scratch: Path, errors: list[str]) -> None:
        """``check`` prints every error and warning with file and line at once, and exits with 1."""
        checked = check(scratch / "main.cf")
        assert checked.returncode == 1
        for error in errors:
            assert f"error: {error}" in checked.stderr
        assert f"warning: {scratch}/bad.cf:3: unknown parameter 'timeot'; did you mean 'timeout'?" in checked.stderr
        assert len(checked.stderr.splitlines()) == len(errors) + 1

    def test_bad_set(self, scratch: Path) -> None:
        """A bad ``--set`` is an error as well, for the start and for ``check``."""
        config = write_config(scratch / "main.cf", "tables = t=static:1\n")
        checked = check(config, "--set", "shutdown_timout=5s")
        assert checked.returncode == 1
        assert "unknown parameter 'shutdown_timout'; did you mean 'shutdown_timeout'?" in checked.stderr
        started = start_in_vain(config, "--set", "tables")
        assert started.returncode == 1
        assert "write --set name=value" in started.stderr

    def test_check_good(self, scratch: Path) -> None:
        """``check`` of a good configuration says what would be served, exits with 0, and leaves nothing behind."""
        write_config(scratch / "t.cf", "memcache = unix:/nowhere\n")
        text = f"socketmap_listen = unix:{scratch}/socket\ntables = t=memcache:{scratch}/t.cf\n"
        checked = check(write_config(scratch / "main.cf", text))
        assert (checked.returncode, checked.stderr) == (0, "")
        assert f"t = memcache:{scratch}/t.cf" in checked.stdout
        assert sorted(path.name for path in scratch.iterdir()) == ["main.cf", "t.cf"]


class TestReload:
    def test_new_table(self, scratch: Path) -> None:
        """SIGHUP brings new and changed tables, and connections are kept."""
        with Service(scratch, "tables = t=static:old\n") as service, SocketmapClient(service.addresses[0]) as client:
            assert client.ask("t", b"key") == b"OK old"
            service.configure("tables = t=static:new, more=inline:{key=value}\n")
            service.reload()
            wait_until(lambda: client.ask("t", b"key") == b"OK new", "the reload")
            assert client.ask("more", b"key") == b"OK value"
            service.configure("tables = more=inline:{key=value}\n")
            service.reload()
            wait_until(lambda: client.ask("t", b"key").startswith(b"PERM map 't'"), "the reload")
            assert client.ask("more", b"key") == b"OK value"

    def test_bad_configuration(self, scratch: Path) -> None:
        """A configuration with errors is refused, with file and line in the log, and the old one goes on."""
        cf = write_config(scratch / "t.cf", "memcache = memory:\nbackup = static:old\n")
        good = f"tables = t=memcache:{cf}\n"
        with Service(scratch, good) as service, SocketmapClient(service.addresses[0]) as client:
            service.configure(f"{good}nonsense = 1\n")
            service.reload()
            wait_until(lambda: "reload refused" in service.log, "the refusal")
            assert f"{service.config_path}:3: unknown parameter 'nonsense'" in service.log
            assert client.ask("t", b"key") == b"OK old"

            service.configure(good)
            write_config(cf, "memcache = memory:\nbackup = static:new\nttl = long\n")
            service.reload()
            wait_until(lambda: service.log.count("reload refused") == 2, "the second refusal")
            assert f"{cf}:3: bad numerical configuration: ttl = long" in service.log
            assert client.ask("t", b"key2") == b"OK old"

            cf.unlink()
            service.reload()
            wait_until(lambda: service.log.count("reload refused") == 3, "the third refusal")
            assert f"{cf}: cannot be read" in service.log
            assert client.ask("t", b"key3") == b"OK old"

            write_config(cf, "memcache = memory:\nbackup = static:new\nttl = 5\n")
            service.reload()
            wait_until(lambda: client.ask("t", b"key") == b"OK new", "the reload")

    def test_many_signals(self, scratch: Path) -> None:
        """However fast the signals come, in the end the last configuration counts."""
        with Service(scratch, "tables = t=static:0\n") as service, SocketmapClient(service.addresses[0]) as client:
            for number in range(1, 21):
                text = service.config_path.read_text().replace(f"static:{number - 1}", f"static:{number}")
                write_config(scratch / "new.cf", text).rename(service.config_path)  # never half written
                service.reload()
            wait_until(lambda: client.ask("t", b"key") == b"OK 20", "the last reload")
            service.stop()
            assert_clean(service.log)

    def test_other_addresses(self, scratch: Path) -> None:
        """Another socketmap_listen counts from the next start on, as the log says; all else counts at once."""
        with Service(scratch, "tables = t=static:old\n") as service, SocketmapClient(service.addresses[0]) as client:
            service.configure(f"tables = t=static:new\nsocketmap_listen = unix:{scratch}/other.sock\n")
            service.reload()
            wait_until(lambda: client.ask("t", b"key") == b"OK new", "the reload")
            assert ask(service.addresses[0], "t") == b"OK new"
            wait_until(lambda: "socketmap_listen has changed" in service.log, "the warning")
            assert not accepts(f"unix:{scratch}/other.sock")

    def test_look_up_under_way(self, scratch: Path) -> None:
        """A look-up that is under way at the reload is finished by the table that it began with."""
        with scripted_memcached(scratch / "slow.sock", slow) as memcached:
            cf = write_config(scratch / "t.cf", f"memcache = {memcached.address}\ntimeout = 10\n")
            with Service(scratch, f"tables = t=memcache:{cf}\n") as service:
                with SocketmapClient(service.addresses[0]) as client:
                    client.send("t", b"key")
                    wait_until(lambda: memcached.gets, "the look-up is under way")
                    service.configure("tables = t=static:new\n")
                    service.reload()
                    wait_until(lambda: "reloaded" in service.log, "the reload")
                    client.send("t", b"key")
                    assert [client.receive(), client.receive()] == [b"OK slow", b"OK new"]
                service.stop()
                assert_clean(service.log)


def slow(get: Get) -> bool:
    """Take a second for the answer."""
    get.wait(1)
    get.send(value(get.key, b"slow"))
    return True


def never(get: Get) -> bool:
    """Give no answer."""
    get.hang()
    return False


class TestStop:
    def test_look_up_under_way(self, scratch: Path) -> None:
        """SIGTERM answers what has been asked, accepts nobody new meanwhile, and then ends."""
        with scripted_memcached(scratch / "slow.sock", slow) as memcached:
            cf = write_config(scratch / "t.cf", f"memcache = {memcached.address}\ntimeout = 10\n")
            with Service(scratch, f"tables = t=memcache:{cf}, fast=static:1\n") as service:
                with SocketmapClient(service.addresses[0]) as client, SocketmapClient(service.addresses[0]) as idle:
                    assert idle.ask("fast", b"key") == b"OK 1"
                    client.send("t", b"key", b"key2")
                    wait_until(lambda: memcached.gets, "the look-up is under way")
                    service.send_signal(signal.SIGTERM)
                    assert idle.closed()
                    wait_until(lambda: not service.ready(), "nobody new is accepted")
                    assert [client.receive(), client.receive()] == [b"OK slow", b"OK slow"]
                    assert client.closed()
                assert service.child.wait(PATIENCE) == -signal.SIGTERM
            assert_clean(service.log)

    def test_shutdown_timeout(self, scratch: Path) -> None:
        """What cannot be answered within shutdown_timeout does not hold up the end."""
        with scripted_memcached(scratch / "hangs.sock", never) as memcached:
            cf = write_config(scratch / "t.cf", f"memcache = {memcached.address}\ntimeout = 60\n")
            service = Service(scratch, f"tables = t=memcache:{cf}\nshutdown_timeout = 1s\n")
            with service, SocketmapClient(service.addresses[0]) as client:
                client.send("t", b"key")
                wait_until(lambda: memcached.gets, "the look-up is under way")
                begun = time.monotonic()
                assert service.stop() == -signal.SIGTERM
                assert 0.9 < time.monotonic() - begun < 5
                with suppress(ConnectionResetError):
                    assert client.closed()


@needs_root
class TestUnprivileged:
    def test_uid(self, scratch: Path) -> None:
        """With --uid and --gid the socket may be where only root can make one; nobody serves, reloads and stops."""
        place = scratch / "root-only"
        place.mkdir(mode=0o755)
        options = ["--uid", "nobody", "--gid", "nogroup"]
        service = Service(scratch, "tables = t=static:1\n", listen=[f"unix:{place}/socket"], twistd_options=options)
        # What coverage measures could not be saved by nobody, and that would be an error in the log.
        service._env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
        for _ in range(2):  # the second one finds a socket that the first one could not remove
            service.log_path.unlink(missing_ok=True)
            with service:
                wait_until(lambda: "listening on" in service.log, "the start is complete")
                assert Path(f"/proc/{service.pid}").stat().st_uid == pwd.getpwnam("nobody").pw_uid
                assert ask(service.addresses[0], "t") == b"OK 1"
                service.configure("tables = t=inline:{key=new}\n")
                service.reload()
                wait_until(lambda: ask(service.addresses[0], "t") == b"OK new", "the reload")
                assert service.stop() == -signal.SIGTERM
            assert not service.ready()
            assert_clean(service.log)
            service.configure("tables = t=static:1\n")
