"""Listening addresses: as text, as sockets, and why a server cannot listen on one.

Gunicorn tries an address five times, with a second and two log lines in between, and prints a
traceback for any error but an OSError. Here it is tried once. Gunicorn's retries are for an old
instance that is about to exit; the preflight takes longer than its workers need to stop listening.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from glob import glob, iglob
from pathlib import Path
from typing import Any

from gunicorn import systemd, util
from gunicorn.sock import TCP6Socket, TCPSocket, UnixSocket, create_sockets

from pooled_serve.errors import EXIT_SERVER, Finding, Level, StartupError

Address = Any
"""As gunicorn parses it: (host, port), the path of a Unix socket, or a file descriptor."""


def text(address: Address) -> str:
    """Returns an address for messages: HOST:PORT, a path, or a number."""
    if not isinstance(address, tuple):
        return str(address)
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def next_to(address: Address) -> str:
    """Returns another address, near one that is taken, for messages."""
    if not isinstance(address, tuple):
        return "127.0.0.1:8001"
    host, port = address[:2]
    return text((host, port + 1 if port < 65535 else port - 1))


def url(address: Address, scheme: str) -> str:
    """Returns an address as gunicorn's log has it."""
    if isinstance(address, str):
        return f"unix:{address}"
    return f"fd://{address}" if isinstance(address, int) else f"{scheme}://{text(address)}"


def page(address: Address) -> str:
    """Returns where the status page is."""
    return url(address, "http") + ("/" if isinstance(address, tuple) else "")


def is_at(name: Any, address: Address) -> bool:
    """Whether a socket with this name listens on a configured address."""
    if not isinstance(address, tuple) or not isinstance(name, tuple):
        return bool(name == address)
    if name[1] != address[1]:
        return False
    with contextlib.suppress(OSError, UnicodeError):
        return name[0] in {found[4][0] for found in socket.getaddrinfo(*address)}
    return False


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host."""
    with contextlib.suppress(OSError, UnicodeError):  # "127.0..1" has an empty label
        found = {ipaddress.ip_address(found[4][0]) for found in socket.getaddrinfo(host, None)}
        return all(address.is_loopback for address in found)
    return False


def listen(
    addresses: Iterable[Address], status: Sequence[Address], cfg: Any, log: Any
) -> list[Any]:
    """Listen on all addresses, or on none. Returns gunicorn's sockets.

    :param status: the addresses of the status page, for messages.
    :raises StartupError: with a PS501 for each address that cannot be listened on.
    """
    sockets, problems = [], []
    for address in addresses:
        try:
            sockets.append(_listen(address, cfg, log, is_status=address in status))
        except (OSError, ValueError) as error:
            problems.append(_problem(address, error, is_status=address in status))
    if problems:
        for made in sockets:
            made.close()
            if isinstance(made, UnixSocket):
                util.unlink(made.cfg_addr)
        raise StartupError(EXIT_SERVER, problems)
    return sockets


def check(addresses: Iterable[Address], status: Sequence[Address], *, reuse_port: bool) -> None:
    """Check that it is possible to listen there, without listening: no client is accepted, and no
    file removed.

    :raises StartupError: as :func:`listen`.
    """
    problems, probes = [], []
    for address in addresses:
        try:
            probes.append(_bind(address, reuse_port=reuse_port))
        except (OSError, ValueError) as error:
            problems.append(_problem(address, error, is_status=address in status))
    for probe in probes:  # not earlier: two of them may exclude each other
        if probe is not None:
            probe.close()
    if problems:
        raise StartupError(EXIT_SERVER, problems)


def doubts(
    addresses: Iterable[Address], status: Sequence[Address], *, reuse_port: bool
) -> Iterator[Finding]:
    """What would be in the way of listening there, for who does not mean to do so now, and perhaps
    not on this machine: a note where somebody listens, a warning of anything else."""
    for address in addresses:
        if isinstance(address, int):
            continue  # inherited from whoever starts the server
        try:
            probe = _bind(address, reuse_port=reuse_port)
        except (OSError, ValueError) as error:
            if getattr(error, "errno", None) == errno.EADDRINUSE:
                said = f"{text(address)} is in use: a running instance may hold it"
                yield Finding(Level.NOTE, "", "", said)
            else:
                problem = _problem(address, error, is_status=address in status)
                yield replace(problem, level=Level.WARN)
        else:
            if probe is not None:
                probe.close()


def check_inherited(descriptors: Iterable[int]) -> None:
    """Check that the inherited descriptors are sockets.

    :raises StartupError: with a PS501 for each that is not.
    """
    problems = []
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                continue
        why = f"fd://{descriptor} is no socket that this process has inherited"
        hint = "see what starts it, or listen elsewhere with -b HOST:PORT"
        problems.append(Finding(Level.FAIL, "PS501", "", why, hint))
    if problems:
        raise StartupError(EXIT_SERVER, problems)


def _listen(address: Address, cfg: Any, log: Any, *, is_status: bool) -> Any:
    kind = UnixSocket
    if isinstance(address, tuple):
        kind = TCP6Socket if util.is_ipv6(address[0]) else TCPSocket
    if is_status:
        kind = _as_status(kind, address)
    there = not isinstance(address, tuple) and _exists(address)
    try:
        return kind(address, cfg, log)
    except OSError:
        is_path = not isinstance(address, tuple)
        if is_path and not there and _exists(address):  # bound, but chown to --user failed
            os.unlink(address)
        raise


def _as_status(kind: type, address: Address) -> type:
    """Returns a class of gunicorn's sockets that says what it is for: gunicorn's log lists all
    addresses, and two alike look like two copies of the site."""
    shown = f" status page at {url(address, 'http')}"
    return type("StatusSocket", (kind,), {"__str__": lambda _: shown})


def inherit(arbiter: Any, cfg: Any) -> None:
    """Listen on the sockets that this process has inherited: from the old master after USR2, from
    systemd, or as fd://. Gunicorn would do the same, but could not know that of the status page.

    :raises StartupError: with a PS501 for each fd:// that is no socket.
    """
    if cfg.reuse_port:
        return  # each worker makes its own
    descriptors: list[int] = []
    if passed := systemd.listen_fds():
        arbiter.systemd = True
        first = systemd.SD_LISTEN_FDS_START
        descriptors = list(range(first, first + passed))
    elif arbiter.master_pid:
        descriptors = list(map(int, os.environ.pop("GUNICORN_FD").split(",")))
    else:
        check_inherited(address for address in cfg.address if isinstance(address, int))
    arbiter.LISTENERS = create_sockets(cfg, arbiter.log, descriptors)
    for each in filter(cfg.is_status_listener, arbiter.LISTENERS):
        name = each.getsockname()
        each.__class__ = _as_status(type(each), name[:2] if isinstance(name, tuple) else name)


def _bind(address: Address, *, reuse_port: bool) -> socket.socket | None:
    if isinstance(address, tuple):
        family = socket.AF_INET6 if util.is_ipv6(address[0]) else socket.AF_INET
        probe = socket.socket(family)
        try:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuse_port and hasattr(socket, "SO_REUSEPORT"):
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            probe.bind(address)
        except BaseException:
            probe.close()
            raise
        return probe
    if not _exists(address):  # gunicorn removes an existing socket
        with socket.socket(socket.AF_UNIX) as probe:
            probe.bind(address)
        if not address.startswith("\0"):
            os.unlink(address)
    elif not stat.S_ISSOCK(os.stat(address).st_mode):
        raise ValueError("not a socket")
    elif not os.access(os.path.dirname(address) or ".", os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return None


def _exists(address: str) -> bool:
    return not address.startswith("\0") and os.path.lexists(address)


# --- Why not -----------------------------------------------------------------------------------


def _problem(address: Address, error: Exception, *, is_status: bool) -> Finding:
    flag = "--status" if is_status else "-b"
    name = text(address) + (" (--status)" if is_status else "")
    said = getattr(error, "strerror", None) or str(error)
    why, hint = _explain(address, flag, getattr(error, "errno", None), error)
    return Finding(
        Level.FAIL, "PS501", "", f"{name} {why or f'cannot be listened on: {said}'}", hint
    )


def _explain(address: Address, flag: str, number: int | None, error: Exception) -> tuple[str, str]:
    """Returns what is wrong (empty: the system's own message will do), and the hint."""
    if isinstance(address, tuple):
        return _explain_tcp(address, flag, number, error)
    folder = os.path.dirname(os.path.abspath(address))
    elsewhere = f"listen elsewhere with {flag} unix:PATH"
    if isinstance(error, ValueError):
        return "exists and is no socket", f"remove that file, or {elsewhere}"
    if number in (errno.ENOENT, errno.ENOTDIR):
        return f"is in {folder}, which is no directory", f"create it, or {elsewhere}"
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "", f"let user {os.geteuid()} write to {folder}, or {elsewhere}"
    return "", elsewhere


def _explain_tcp(
    address: Address, flag: str, number: int | None, error: Exception
) -> tuple[str, str]:
    host, port = address[:2]
    elsewhere = f"listen elsewhere with {flag} HOST:PORT"
    if isinstance(error, socket.gaierror):
        why = f"cannot be listened on: the host is unknown ({error.strerror})"
        return why, f"correct the name, or use {flag} 0.0.0.0:{port} for all addresses"
    if number == errno.EADDRINUSE:
        found = _listener(port)
        if found is None:
            return "is in use", f"stop the process that listens there, or {elsewhere}"
        pid, command = found
        if pid == os.getpid():
            return "is listened on by this server already", f"leave it out, or {elsewhere}"
        return f"is in use by process {pid} ({command})", f"stop that process, or {elsewhere}"
    if number == errno.EADDRNOTAVAIL:
        hint = f"use {flag} 0.0.0.0:{port} for all of them, or one that it has (ip addr)"
        return f"cannot be listened on: {host} is no address of this machine", hint
    if number in (errno.EACCES, errno.EPERM):
        hint = f"use a port from 1024 on, or give it CAP_NET_BIND_SERVICE; or {elsewhere}"
        return f"cannot be listened on: user {os.geteuid()} may not use port {port}", hint
    return "", elsewhere


def _listener(port: int) -> tuple[int, str] | None:
    """Returns id and name of the process that listens on a port, from Linux's /proc; None if this
    user may not see it."""
    tables = "".join(Path(name).read_text() for name in glob("/proc/net/tcp*"))
    rows = [line.split() for line in tables.splitlines()]
    listening = "0A"
    sockets = {
        f"socket:[{row[9]}]"
        for row in rows
        if row[3] == listening and row[1].endswith(f":{port:04X}")
    }
    for fd in iglob("/proc/[0-9]*/fd/*"):
        with contextlib.suppress(OSError):  # the process has ended
            if os.readlink(fd) in sockets:
                process = Path(fd).parents[1]
                return int(process.name), (process / "comm").read_text().strip()
    return None
