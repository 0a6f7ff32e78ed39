"""Certificates for one test run, made with openssl(1)."""

from __future__ import annotations

import subprocess
from pathlib import Path

import attrs

from .processes import find_program


@attrs.frozen
class Certificate:
    """A certificate, with those between it and its CA, and its key, in PEM files."""

    path: Path
    key_path: Path

    def copy_to(self, other: Certificate) -> None:
        """Renew another one on disk: its files get this one's contents."""
        other.path.write_bytes(self.path.read_bytes())
        other.key_path.write_bytes(self.key_path.read_bytes())

    def locked_key(self, passphrase: str) -> bytes:
        """Give the key as it would be in a file with a passphrase."""
        locked = self.key_path.with_suffix(".locked")
        _openssl("pkey", "-in", self.key_path, "-aes128", "-passout", f"pass:{passphrase}", "-out", locked)
        return locked.read_bytes()


class Authority:
    """A certificate authority of our own.

    :ivar path: its certificate, which a client is to trust.
    """

    def __init__(self, directory: Path, name: str = "ca", parent: Authority | None = None) -> None:
        """:param directory: gets all files."""
        self._directory = directory
        self._parent = parent
        if parent is None:
            self._own = self._make(name, "-x509", "-days", "2", "-subj", f"/CN={name}")
        else:
            self._own = parent._sign(name, "basicConstraints=critical,CA:TRUE", "2")
        self.path = self._own.path

    def intermediate(self, name: str) -> Authority:
        """Make an authority whose own certificate is of this one; those that it issues have it in their files."""
        return Authority(self._directory, name, self)

    def issue(self, name: str, names: str = "", *, expired: bool = False) -> Certificate:
        """Make a certificate.

        :param name: the stem of its files' names, and its common name.
        :param names: its ``subjectAltName``, for example ``DNS:localhost,IP:127.0.0.1``; empty for none.
        """
        extensions = f"subjectAltName={names}" if names else "basicConstraints=CA:FALSE"
        made = self._sign(name, extensions, "-1" if expired else "2")
        if self._parent is not None:
            made.path.write_bytes(made.path.read_bytes() + self.path.read_bytes())
        return made

    def _sign(self, name: str, extensions: str, days: str) -> Certificate:
        request = self._directory / f"{name}.csr"
        made = self._make(name, "-new", "-subj", f"/CN={name}", out=request)
        extension_file = self._directory / f"{name}.ext"
        extension_file.write_text(f"{extensions}\n")
        _openssl(
            *("x509", "-req", "-in", request, "-out", made.path, "-CA", self._own.path, "-CAkey", self._own.key_path),
            *("-CAcreateserial", "-extfile", extension_file, "-days", days),
        )
        return made

    def _make(self, name: str, *arguments: str, out: Path | None = None) -> Certificate:
        made = Certificate(self._directory / f"{name}.pem", self._directory / f"{name}.key")
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", made.key_path)
        _openssl("req", *key, "-out", out or made.path, *arguments)
        return made


def _openssl(*arguments: str | Path) -> None:
    done = subprocess.run([find_program("openssl"), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
