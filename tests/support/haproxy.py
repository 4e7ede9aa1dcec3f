"""HAProxy in TCP mode in front of database servers."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent

import pytest

from support.ports import free_port, is_listening
from support.processes import wait_until
from support.servers import Server, tied_to_us

PROGRAM = shutil.which("haproxy", path=os.environ.get("PATH", os.defpath) + ":/usr/sbin")

needs_haproxy = pytest.mark.skipif(not PROGRAM, reason="there is no haproxy here")

CONFIG = """
    global
        stats socket ipv4@127.0.0.1:{admin} level admin
    defaults
        mode tcp
        timeout connect 5s
        timeout client {idle}s
        timeout server {idle}s
        {checks}
    listen db
        bind 127.0.0.1:{port}
        {servers}
"""

CHECKS = """
        option httpchk GET /
        timeout check 4s
        default-server check inter 200ms fall 2 rise 2 on-marked-down shutdown-sessions
"""


@contextmanager
def haproxy(
    folder: Path, *, idle: int = 60, checks: Sequence[int] = (), **servers: Server
) -> Iterator[tuple[int, Callable[[str], None]]]:
    """Its port, and a function that gives it orders. All servers but the first are disabled.

    :param idle: seconds after which it hangs up on both sides of a quiet connection.
    :param checks: for each server, the port that tells whether it is ready. With these, none is
        disabled; those that are ready take turns, and connections to one that is not are cut.
    """
    assert PROGRAM, "no haproxy"
    port, admin = free_port(), free_port()
    lines = [f"server {name} 127.0.0.1:{server.port} disabled" for name, server in servers.items()]
    lines[0] = lines[0].removesuffix(" disabled")
    if checks:
        lines = [
            f"{line.removesuffix(' disabled')} port {check}"
            for line, check in zip(lines, checks, strict=True)
        ]
    config = folder / "haproxy.cfg"
    config.write_text(
        dedent(CONFIG).format(
            admin=admin,
            port=port,
            idle=idle,
            checks=CHECKS if checks else "",
            servers="\n    ".join(lines),
        )
    )

    def order(text: str) -> None:
        with socket.create_connection(("127.0.0.1", admin), timeout=10) as connection:
            connection.sendall(text.encode() + b"\n")
            answer = b"".join(iter(lambda: connection.recv(4096), b""))
        assert not answer.strip(), answer

    program = tied_to_us([PROGRAM, "-db", "-f", str(config)])
    with subprocess.Popen(program, stdin=subprocess.DEVNULL, start_new_session=True) as process:
        try:
            wait_until(lambda: is_listening(admin))
            yield port, order
        finally:
            process.kill()
