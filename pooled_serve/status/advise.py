"""``--advise``: asks a running instance for its numbers, and prints what they say."""

from __future__ import annotations

import http.client
import json
import re
import socket
from typing import Any
from urllib.parse import urlsplit

from pooled_serve import options
from pooled_serve.errors import EXIT_SERVER, Finding, Level, StartupError, startup_error
from pooled_serve.status.text import advice_page

TIMEOUT_SECONDS = 10.0

DEFAULT_PORT = 80

_OTHER = "give the address of --status of an instance of pooled-serve, not that of the site"


def advise(address: str) -> str:
    """Returns what ``--advise`` prints.

    :param address: of a status listener: HOST:PORT, http://HOST:PORT or unix:PATH.
    :raises StartupError: PS401, it is no address; PS505, nobody answers there, or somebody else.
    """
    connection, where = _connection(address)
    try:
        connection.request("GET", "/stats.json")
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.IncompleteRead) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        hint = "see that it runs, and give the address of its --status"
        raise _failure(f"no instance answers at {where}: {why}", hint) from None
    except http.client.HTTPException:  # its text is what was received, which may be anything
        raise _failure(f"something else answers at {where}, and not in HTTP", _OTHER) from None
    finally:
        connection.close()
    try:
        stats: dict[str, Any] = json.loads(body)
        return advice_page(stats)
    except (ValueError, KeyError, TypeError, AttributeError):
        what = f"{where} answers {response.status}, and not with the numbers of this version"
        raise _failure(what, _OTHER) from None


def _failure(message: str, hint: str) -> StartupError:
    return StartupError(EXIT_SERVER, [Finding(Level.FAIL, "PS505", "", message, hint)])


def _connection(address: str) -> tuple[http.client.HTTPConnection, str]:
    """Returns a connection that is not open yet, and the address in words."""
    if path := re.sub(r"^unix:(//)?", "", address) if address.startswith("unix:") else "":
        return _UnixConnection(path), f"unix:{path}"
    try:
        if "://" not in address:  # as --status has it
            text = options.address(address)
            address = f"http://{'127.0.0.1' if text.startswith(':') else ''}{text}"
        url = urlsplit(address)
        host, port = url.hostname, url.port or DEFAULT_PORT
        if not host or url.scheme != "http":
            raise ValueError(f"must be HOST:PORT, http://HOST:PORT or unix:PATH, not {address!r}")
    except ValueError as error:
        message, _, hint = options.complaint(error, "--advise ").partition(options.REMEDY)
        raise startup_error(
            "PS401", f"--advise: {message}", hint or "give the address of --status"
        ) from None
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return http.client.HTTPConnection(host, port, timeout=TIMEOUT_SECONDS), where


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_SECONDS)
        self._path = path

    def connect(self) -> None:
        sock: Any = socket.socket(socket.AF_UNIX)
        try:
            sock.settimeout(self.timeout)
            sock.connect(self._path)
        except BaseException:
            sock.close()
            raise
        self.sock = sock
