"""Programs of Debian's that a few tests run, without installing their packages: those bring
services that start, and what the tests have no use for."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path


class ProgramMissing(Exception):
    """This program cannot be had here; str() is one line that says why."""


def program(name: str, package: str, *needed: str) -> Path:
    """The one that is installed, or else the one in the package, downloaded once per user.

    `needed` are packages without which it does not run, unpacked into the same folder.

    :raises ProgramMissing: it is neither here nor to be had.
    """
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin"))
    if installed := shutil.which(name, path=path):
        return Path(installed)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "pooled-serve-tests" / package
    if not folder.exists():
        _unpack((package, *needed), folder)
    for found in folder.glob(f"usr/*bin/{name}"):
        return found
    raise ProgramMissing(f"there is no {name} here, nor in Debian's package {package}")


def _unpack(packages: Sequence[str], folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        try:
            _run("apt-get", "download", "--quiet", *packages, cwd=scratch)
            for archive in Path(scratch).glob("*.deb"):
                _run("dpkg-deb", "--extract", archive.name, "root", cwd=scratch)
        except (OSError, subprocess.SubprocessError):
            raise ProgramMissing(
                f"there is no {packages[0]} here, and apt-get cannot download it"
            ) from None
        try:
            # At once, because two test runs may want it at the same time.
            (Path(scratch) / "root").rename(folder)
        except OSError:
            assert folder.exists()


def _run(*command: str, cwd: str) -> None:
    subprocess.run(
        command, cwd=cwd, timeout=120, check=True, stdin=subprocess.DEVNULL, capture_output=True
    )
