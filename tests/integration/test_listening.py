"""Where the service listens: UNIX sockets that it makes, and sockets that systemd made."""

from __future__ import annotations

import errno
import grp
import os
import re
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .harness.launch import ACTIVATE, assert_clean, check, start_in_vain
from .harness.processes import accepts, free_port, scratch_directory, wait_until
from .harness.service import Service
from .harness.socketmap import ask


@pytest.fixture
def scratch() -> Iterator[Path]:
    with scratch_directory() as directory:
        yield directory


class TestUnixSocket:
    def test_second_instance(self, scratch: Path) -> None:
        """A second instance on the socket of one that runs is refused and says why, and the first goes on."""
        with Service(scratch, "tables = t=static:1\n") as service:
            second = start_in_vain(service.config_path)
            assert second.returncode == 1
            assert (
                f"{scratch}/socketmap.sock: [Errno {errno.EADDRINUSE}] another process listens there" in second.stdout
            )
            assert ask(service.addresses[0], "t") == b"OK 1"

    def test_port_in_use(self, scratch: Path) -> None:
        """A port that another process listens on is an error that names it."""
        with Service(scratch, "tables = t=static:1\n", listen=[f"inet:127.0.0.1:{free_port()}"]) as service:
            second = start_in_vain(service.config_path)
            assert second.returncode == 1
            assert re.search(rf"listen on 127.0.0.1:{service.addresses[0].rpartition(':')[2]}.*in use", second.stdout)
            assert "Traceback" not in second.stdout

    def test_stale(self, scratch: Path) -> None:
        """The socket that a killed instance has left is replaced."""
        with Service(scratch, "tables = t=static:1\n") as service:
            service.kill()
            assert (scratch / "socketmap.sock").exists()
            service.start()
            assert ask(service.addresses[0], "t") == b"OK 1"

    def test_not_a_socket(self, scratch: Path) -> None:
        """A file that is no socket is left alone, and is an error."""
        (scratch / "socketmap.sock").write_text("precious")
        service = Service(scratch, "tables = t=static:1\n")
        started = start_in_vain(service.config_path)
        assert started.returncode == 1
        assert "the file exists and is not a socket" in started.stdout
        assert (scratch / "socketmap.sock").read_text() == "precious"

    def test_everybody(self, scratch: Path) -> None:
        """By default every user may connect, whatever the umask: who may enter the directory decides."""
        with Service(scratch, "tables = t=static:1\n", twistd_options=["--umask=077"]):
            assert stat.S_IMODE((scratch / "socketmap.sock").stat().st_mode) == 0o666

    def test_mode_and_group(self, scratch: Path) -> None:
        """``mode`` and ``group`` in the address are those of the socket."""
        group = grp.getgrgid(os.getegid()) if os.geteuid() else grp.getgrnam("nogroup")
        path = scratch / "socket"
        service = Service(scratch, "tables = t=static:1\n", listen=[f"unix:{path}:mode=640:group={group.gr_name}"])
        service.addresses[:] = [f"unix:{path}"]
        with service:
            found = path.stat()
            assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o640, group.gr_gid)
            assert ask(service.addresses[0], "t") == b"OK 1"


@contextmanager
def activated(scratch: Path, listening: socket.socket, address: str, connect_to: str) -> Iterator[Service]:
    """Run the service on a socket that it inherits."""
    listening.listen()
    service = Service(scratch, "tables = t=static:1\n", listen=[address])
    service.argv = [sys.executable, "-c", ACTIVATE, str(listening.fileno()), *service.argv]
    service._pass_fds = [listening.fileno()]
    # A connection is taken before the service runs, as with systemd; so it is ready when it says so.
    service.addresses.clear()
    with service:
        wait_until(lambda: "listening on" in service.log or not service.running, "the service listens")
        assert service.running, service.log
        service.addresses.append(connect_to)
        yield service


class TestSystemd:
    @pytest.mark.parametrize("address", ["systemd:domain=UNIX:index=0", "systemd:domain=UNIX:name=maps"])
    def test_unix(self, scratch: Path, address: str) -> None:
        """A UNIX socket of systemd's keeps its mode, is served, and is there, and open, after the end."""
        path = scratch / "systemd.sock"
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
            path.chmod(0o620)
            with activated(scratch, listening, address, f"unix:{path}") as service:
                assert ask(service.addresses[0], "t") == b"OK 1"
                assert stat.S_IMODE(path.stat().st_mode) == 0o620
                service.reload()
                wait_until(lambda: "reload" in service.log, "the reload")
                assert ask(service.addresses[0], "t") == b"OK 1"
                service.stop()
            assert stat.S_IMODE(path.stat().st_mode) == 0o620
            assert accepts(f"unix:{path}")  # by the kernel, for the next one that systemd starts
            assert_clean(service.log)

    def test_inet(self, scratch: Path) -> None:
        """A TCP socket of systemd's is served."""
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            connect_to = f"inet:127.0.0.1:{listening.getsockname()[1]}"
            with activated(scratch, listening, "systemd:domain=INET:index=0", connect_to) as service:
                assert ask(service.addresses[0], "t") == b"OK 1"
                service.stop()
            assert accepts(connect_to)
            assert_clean(service.log)

    def test_nothing_passed(self, scratch: Path) -> None:
        """Without systemd, an address of systemd's is an error with file and line."""
        service = Service(scratch, "tables = t=static:1\n", listen=["systemd:domain=UNIX:index=0"])
        checked = check(service.config_path)
        assert checked.returncode == 1
        assert (
            f"{service.config_path}:1: socketmap_listen: 'systemd:domain=UNIX:index=0': systemd passed 0"
            in checked.stderr
        )
