"""A private Postfix: its own configuration and queue, a high port, nothing shared with the system's own."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from .processes import Server, accepts, find_program, free_port, write_config

#: For tests that start a Postfix: its master changes users. (:meth:`Postfix.postmap` works for everybody.)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="Postfix's master runs only as root")

# service, type, wakeup, process limit, command; the port is put before these.
_SERVICES = """\
{port}     inet  n - n -    - smtpd
cleanup    unix  n - n -    0 cleanup
qmgr       unix  n - n 300  1 qmgr
rewrite    unix  - - n -    - trivial-rewrite
bounce     unix  - - n -    0 bounce
defer      unix  - - n -    0 bounce
trace      unix  - - n -    0 bounce
verify     unix  - - n -    1 verify
proxymap   unix  - - n -    - proxymap
proxywrite unix  - - n -    1 proxymap
showq      unix  n - n -    - showq
error      unix  - - n -    - error
retry      unix  - - n -    - error
discard    unix  - - n -    - discard
anvil      unix  - - n -    1 anvil
postlog    unix-dgram n - n - 1 postlogd
"""

# Mail for anybody goes to the discard transport; only what a test configures makes an address known.
_PARAMETERS = {
    "compatibility_level": "3.6",
    "myhostname": "mx.harness.example",
    "mydestination": "",
    "mynetworks": "",
    "inet_interfaces": "127.0.0.1",
    "inet_protocols": "ipv4",
    "alias_maps": "",
    "alias_database": "",
    "local_transport": "discard",
    "virtual_transport": "discard",
    "relay_transport": "discard",
    "default_transport": "discard",
    "smtpd_relay_restrictions": "reject_unauth_destination",
    "smtpd_peername_lookup": "no",
    "smtpd_error_sleep_time": "0",
    "smtpd_soft_error_limit": "1000",
    "smtpd_hard_error_limit": "1000",
    "notify_classes": "",
}


class Postfix(Server):
    """One instance of Postfix below a directory that every user may enter.

    :ivar port: where its smtpd listens on 127.0.0.1 once it is started.
    :ivar config_directory: for ``-c``; ``main.cf`` and ``master.cf`` are there from the beginning.
    """

    def __init__(self, directory: Path, main_cf: Mapping[str, str] | None = None) -> None:
        """:param main_cf: parameters in addition to, or instead of, those that keep the instance private."""
        self.port = free_port()
        self.config_directory = directory / "postfix"
        self._queue = directory / "queue"
        self._data = directory / "data"
        self._maillog = directory / "maillog"
        for made in (self.config_directory, self._queue, self._data):
            made.mkdir()
        parameters = {
            **_PARAMETERS,
            "queue_directory": str(self._queue),
            "data_directory": str(self._data),
            "maillog_file": str(self._maillog),
            "maillog_file_prefixes": str(directory),
            **(main_cf or {}),
        }
        text = "".join(f"{name} = {value}\n" for name, value in parameters.items())
        write_config(self.config_directory / "main.cf", text)
        write_config(self.config_directory / "master.cf", _SERVICES.format(port=self.port))
        master = Path(self.postconf("-d", "-h", "daemon_directory")) / "master"
        super().__init__([str(master), "-c", str(self.config_directory), "-d"], directory / "master.log")

    @property
    def maillog(self) -> str:
        """What Postfix has logged until now."""
        return self._maillog.read_text(errors="replace") if self._maillog.exists() else ""

    @property
    def log(self) -> str:
        return super().log + self.maillog

    def ready(self) -> bool:
        return accepts(f"inet:127.0.0.1:{self.port}")

    def start(self) -> Postfix:
        """Start smtpd and all that it needs. Needs root."""
        self._make_queue()
        return super().start()

    def postconf(self, *arguments: str) -> str:
        """Return what postconf prints about this instance.

        :raises subprocess.CalledProcessError: postconf refused.
        """
        argv = [find_program("postconf"), "-c", str(self.config_directory), *arguments]
        return subprocess.run(argv, capture_output=True, check=True, timeout=60).stdout.decode().strip()

    def postmap(
        self, *arguments: str | bytes | Path, stdin: bytes | None = None, seconds: float = 120
    ) -> subprocess.CompletedProcess[bytes]:
        """Run postmap with this instance's configuration; the instance need not be started.

        :param arguments: for example ``"-q", key, "memcache:/path.cf"``; with ``"-q", "-"`` the keys are ``stdin``.
        :return: the exit status is 0 if a key was found and 1 if not; only a query error leaves a text in ``stderr``.
        :raises subprocess.TimeoutExpired: it took longer.
        """
        argv = [find_program("postmap"), "-c", self.config_directory, *arguments]
        return subprocess.run(argv, input=stdin or b"", capture_output=True, check=False, timeout=seconds)

    @property
    def proxy_sockets(self) -> tuple[Path, Path]:
        """Where proxymap and proxywrite listen; only root and postfix come to them."""
        private = self._queue / "private"
        return private / "proxymap", private / "proxywrite"

    def adopt(self, files: Iterable[Path]) -> None:
        """Give files to Postfix's user, who has to own what proxywrite is to change."""
        for file in files:
            shutil.chown(file, "postfix")

    def message(self, queue_id: str) -> str:
        """Return a message in the queue, as it was received.

        :raises subprocess.CalledProcessError: it is not there.
        """
        argv = [find_program("postcat"), "-c", str(self.config_directory), "-h", "-b", "-q", queue_id]
        return subprocess.run(argv, capture_output=True, check=True, timeout=60).stdout.decode()

    def children(self, command: str) -> list[int]:
        """Return the process ids of this instance's daemons of one kind."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):  # it has just ended
                pid, _, rest = stat.read_text().partition(" (")
                name, _, fields = rest.rpartition(") ")
                if name == command and int(fields.split()[1]) == self.pid:
                    found.append(int(pid))
        return found

    def signal_child(self, pid: int, number: signal.Signals) -> None:
        """Send a signal to one of :meth:`children`, if it still runs."""
        with suppress(ProcessLookupError):
            os.kill(pid, number)

    def _make_queue(self) -> None:
        """Make the directories that the package's scripts would make, with the owners that Postfix insists on."""
        owner = pwd.getpwnam("postfix").pw_uid
        postdrop = grp.getgrnam("postdrop").gr_gid
        private = "active bounce corrupt defer deferred flush hold incoming private saved trace"
        for name, mode, group in [*((name, 0o700, -1) for name in private.split()), ("public", 0o710, postdrop)]:
            directory = self._queue / name
            directory.mkdir(exist_ok=True)
            shutil.chown(directory, owner, None if group < 0 else group)
            directory.chmod(mode)
        maildrop = self._queue / "maildrop"
        maildrop.mkdir(exist_ok=True)
        shutil.chown(maildrop, owner, postdrop)
        maildrop.chmod(0o730)
        (self._queue / "pid").mkdir(exist_ok=True)
        shutil.chown(self._data, owner)
        self._data.chmod(0o700)
