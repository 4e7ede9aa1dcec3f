"""``--advise``: asks a running instance for its numbers, and prints what they say."""

from __future__ import annotations

import http.client
import json
import re
import socket
from typing import Any
from urllib.parse import urlsplit

from pooled_serve.errors import EXIT_SERVER, EXIT_USAGE, Finding, Level, StartupError
from pooled_serve.status.text import advice_page

TIMEOUT_SECONDS = 10.0

DEFAULT_PORT = 80


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
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        hint = "see that it runs, and give the address of its --status"
        raise _failure(f"no instance answers at {where}: {why}", hint) from None
    finally:
        connection.close()
    try:
        stats: dict[str, Any] = json.loads(body)
        return advice_page(stats)
    except (ValueError, KeyError, TypeError, AttributeError):
        what = f"{where} answers {response.status}, and not with the numbers of this version"
        hint = "give the address of --status of an instance of pooled-serve, not that of the site"
        raise _failure(what, hint) from None


def _failure(message: str, hint: str) -> StartupError:
    return StartupError(EXIT_SERVER, [Finding(Level.FAIL, "PS505", "", message, hint)])


def _connection(address: str) -> tuple[http.client.HTTPConnection, str]:
    """Returns a connection that is not open yet, and the address in words."""
    if path := re.sub(r"^unix:(//)?", "", address) if address.startswith("unix:") else "":
        return _UnixConnection(path), f"unix:{path}"
    plain = re.fullmatch(r"\[?[^/\[\]]+\]?(:\d+)?", address)
    try:
        url = urlsplit(f"http://{address}" if plain else address)
        host, port = url.hostname, url.port or DEFAULT_PORT
    except ValueError:
        host = None
    if not host or url.scheme != "http":
        message = f"--advise: {address!r} is no address of a status page"
        hint = "give what --status has: HOST:PORT, http://HOST:PORT or unix:PATH"
        raise StartupError(EXIT_USAGE, [Finding(Level.FAIL, "PS401", "", message, hint)])
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
