"""A certificate authority of one's own, with the server's and the client's certificates."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent


@dataclass(frozen=True)
class Certificate:
    cert: Path
    key: Path


class Authority:
    """Writes into `folder`, with the openssl program; what it signs is valid for a day.

    `own` is what it signs with, a new certificate by default.
    """

    def __init__(self, folder: Path, own: Certificate | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.own = own or self._make("authority")

    def issue(self, name: str) -> Certificate:
        """For localhost, by any of its names."""
        return self._make(name, "-CA", str(self.own.cert), "-CAkey", str(self.own.key))

    def _make(self, name: str, *signed_by: str) -> Certificate:
        made = Certificate(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        config = self._folder / f"{name}.cnf"
        config.write_text(
            dedent(f"""
                [req]
                distinguished_name = who
                x509_extensions = extensions
                prompt = no
                [who]
                CN = {name}
                [extensions]
                basicConstraints = critical,CA:{"false" if signed_by else "true"}
                subjectAltName = DNS:localhost,IP:127.0.0.1,IP:::1
            """)
        )
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
        files = ["-config", str(config), "-out", str(made.cert), "-keyout", str(made.key)]
        subprocess.run([*command, *signed_by, *files], capture_output=True, check=True)
        return made
