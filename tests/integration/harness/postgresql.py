"""A real PostgreSQL server with a cluster of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg

from .processes import PATIENCE, Server, free_port, wait_until

#: The superuser of each server; over TCP it needs the password.
USER = "postgres"
PASSWORD = "o'clock\\ secret"


def _programs() -> Path:
    """Return where Debian keeps the server's programs.

    :raises RuntimeError: it is not installed.
    """
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        raise RuntimeError("PostgreSQL is not installed; run: tests/install-packages postgresql")
    return found[-1].parent


def _as_user() -> list[str]:
    """Return what to put before a command: PostgreSQL does not run as root."""
    return ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.geteuid() == 0 else []


def make_cluster(directory: Path) -> Path:
    """Make a cluster, which takes a second or two, for servers to begin with a copy of."""
    cluster = directory / "cluster"
    password = directory / "postgresql-password"
    password.write_text(PASSWORD)
    cluster.mkdir()
    if os.geteuid() == 0:
        shutil.chown(cluster, "nobody", "nogroup")
    options = ["--no-sync", "--encoding=UTF8", "--locale=C", f"--username={USER}", f"--pwfile={password}"]
    access = ["--auth-local=trust", "--auth-host=scram-sha-256"]
    argv = [*_as_user(), str(_programs() / "initdb"), "-D", str(cluster), *options, *access]
    subprocess.run(argv, check=True, capture_output=True, timeout=120, cwd="/")
    return cluster


class Postgresql(Server):
    """A server on a UNIX socket and on a TCP port of 127.0.0.1; it keeps both when it is started again.

    :ivar address: ``inet:127.0.0.1:port``, where the password is needed.
    :ivar uri: of its UNIX socket, where everybody may log in as any user.
    """

    def __init__(self, directory: Path, cluster: Path, options: Sequence[str] = ()) -> None:
        """:param options: of ``postgres``, for example ``("-c", "log_statement=all")``."""
        self.port = free_port()
        self._data = directory / "data"
        self.address = f"inet:127.0.0.1:{self.port}"
        self.uri = f"postgresql://{USER}@/postgres?host={self._data}&port={self.port}"
        subprocess.run(["cp", "-a", str(cluster), str(self._data)], check=True, timeout=60)
        settings = [f"port={self.port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={self._data}"]
        settings += ["fsync=off", "shared_buffers=8MB", "max_connections=30", "autovacuum=off"]
        argv = [*_as_user(), str(_programs() / "postgres"), "-D", str(self._data)]
        for setting in settings:
            argv += ["-c", setting]
        super().__init__([*argv, *options], directory / "postgresql.log", cwd=Path("/"))

    @property
    def cf(self) -> str:
        """The lines of a ``.cf`` file that lead here, except for ``query`` or ``store_table``."""
        return f"hosts = {self.address}\nuser = {USER}\npassword = {PASSWORD}\ndbname = postgres\n"

    def ready(self) -> bool:
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def connect(self) -> psycopg.Connection[Any]:
        """Return a connection that commits each statement."""
        place = {"host": str(self._data), "port": self.port, "user": USER, "dbname": "postgres"}
        return psycopg.connect(**place, autocommit=True, connect_timeout=int(PATIENCE))  # type: ignore[arg-type]

    def execute(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Execute statements, and return the rows of the last, if it has any."""
        with self.connect() as connection:
            cursor = connection.execute(sql, values or None)
            return cursor.fetchall() if cursor.description else []

    def end_sessions(self) -> None:
        """End the connections of all others, as an administrator may."""
        self.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")

    def stop(self) -> int:
        """End it at once, in the middle of whatever it does; it recovers when it is started again."""
        if self.running:
            self.thaw()
            self.send_signal(signal.SIGQUIT)
            self.child.wait(PATIENCE)
        return 0

    def freeze(self) -> None:
        """Let it hang (SIGSTOP): connections are accepted by the kernel, and nothing answers."""
        for pid in self._processes():
            os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: all(map(_is_stopped, self._processes())), "all processes have stopped")

    def thaw(self) -> None:
        """End :meth:`freeze`."""
        for pid in self._processes():
            with suppress(ProcessLookupError):  # of a session that ends as soon as it goes on
                os.kill(pid, signal.SIGCONT)

    def _processes(self) -> list[int]:
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return [self.pid, *map(int, children.split())]


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
