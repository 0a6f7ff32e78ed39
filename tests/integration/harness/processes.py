"""Children with bounded waits, free ports, and a scratch directory that other users may enter."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

#: How long anything may take to start, to stop, or to be seen.
PATIENCE = 20.0

# Where Debian keeps servers, which a normal user's PATH leaves out.
_SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])


def find_program(name: str) -> str:
    """Return the path of an installed program.

    :raises RuntimeError: it is not installed; a test that needs it must fail.
    """
    path = shutil.which(name, path=_SEARCH_PATH)
    if path is None:
        raise RuntimeError(f"{name} is not installed; run: tests/install-packages postfix memcached postgrey nc cc")
    return path


def unmeasured() -> dict[str, str]:
    """Give the environment of a command without coverage, with which it takes nearly twice as long.

    It is for those that unit tests run, too.
    """
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}


def wait_until(condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    """Poll until ``condition()`` is true.

    :raises AssertionError: it was not within the time; ``what`` says in words what was waited for.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(0.02)


def free_port() -> int:
    """Return a TCP port on which nobody listens on 127.0.0.1 just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def connect(address: str, seconds: float = PATIENCE) -> socket.socket:
    """Return a connected blocking socket.

    :param address: as Postfix writes it: ``unix:/path`` or ``inet:host:port``.
    :raises OSError: nobody accepts there.
    """
    kind, _, place = address.partition(":")
    if kind == "unix":
        connected = socket.socket(socket.AF_UNIX)
        connected.settimeout(seconds)
        try:
            connected.connect(place)
        except OSError:
            connected.close()
            raise
        return connected
    host, _, port = place.rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), seconds)


def accepts(address: str) -> bool:
    """Return whether somebody accepts connections at ``unix:/path`` or ``inet:host:port``."""
    try:
        connect(address).close()
    except OSError:
        return False
    return True


def write_config(path: Path, text: str) -> Path:
    """Write a file that Postfix reads, and return its path.

    It is back-dated by an hour: Postfix reads a file that is younger than two seconds again and again until it is not.
    """
    path.write_text(text)
    hour_ago = time.time() - 3600
    os.utime(path, (hour_ago, hour_ago))
    return path


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """Make a directory with a path short enough for UNIX sockets, which every user may enter, and remove it after."""
    directory = Path(tempfile.mkdtemp(prefix="smc-", dir="/tmp"))  # pytest's own is closed to Postfix
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


class Server:
    """A child process in a session of its own, with a file for all that it prints.

    ``start`` it and ``stop`` it, or use it as a context manager.

    :ivar log_path: what it has printed in all its lives.
    """

    def __init__(
        self,
        argv: Sequence[str],
        log_path: Path,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        """:param pass_fds: file descriptors that the process inherits beside the standard ones."""
        self.argv = list(argv)
        self.log_path = log_path
        self._env = env
        self._cwd = cwd
        self._pass_fds = pass_fds
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def child(self) -> subprocess.Popen[bytes]:
        """The running process, or the last one that ran."""
        if self._child is None:
            raise RuntimeError(f"{self.argv[0]} has not been started")
        return self._child

    @property
    def pid(self) -> int:
        return self.child.pid

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.poll() is None

    @property
    def log(self) -> str:
        """What it has printed until now."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def ready(self) -> bool:
        """Return whether it can be used; a server with a socket overrides this."""
        return True

    def start(self) -> Self:
        """Start it and wait until it is ready.

        :raises RuntimeError: it runs already.
        :raises AssertionError: it ended, or was not ready in time; the text has what it printed. It is dead then.
        """
        if self.running:
            raise RuntimeError(f"{self.argv[0]} is running already")
        with self.log_path.open("ab") as log:
            self._child = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._env,
                cwd=self._cwd,
                pass_fds=self._pass_fds,
                start_new_session=True,
            )
        try:
            wait_until(lambda: not self.running or self.ready(), f"{self.argv[0]} is ready")
            if (status := self.child.poll()) is not None:
                raise AssertionError(f"ended with status {status}")
        except AssertionError as error:
            self.kill()
            raise AssertionError(f"{' '.join(self.argv)}: {error}\n{self.log}") from error
        return self

    def send_signal(self, number: signal.Signals) -> None:
        self.child.send_signal(number)

    def freeze(self) -> None:
        """Let it hang (SIGSTOP): connections are accepted by the kernel, and nothing answers."""
        self.send_signal(signal.SIGSTOP)
        threads = list(Path(f"/proc/{self.pid}/task").glob("*/stat"))
        # Each thread stops when its turn comes; until then it may answer.
        wait_until(lambda: all(b") T " in thread.read_bytes() for thread in threads), "all threads have stopped")

    def thaw(self) -> None:
        """End :meth:`freeze`."""
        self.send_signal(signal.SIGCONT)

    def stop(self) -> int:
        """Ask it to end with SIGTERM and return its exit status (minus a signal's number); idempotent.

        :raises AssertionError: it did not end in time, and was killed.
        """
        if self._child is None:
            return 0
        self._child.terminate()
        try:
            return self._child.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.argv[0]} did not end at SIGTERM\n{self.log}") from None

    def kill(self) -> None:
        """End it with SIGKILL; idempotent."""
        if self._child is not None:
            self._child.kill()
            self._child.wait(PATIENCE)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
