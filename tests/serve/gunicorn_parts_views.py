"""Views of test_gunicorn_parts.py, beside those of support/site_views.py."""

import base64
import hashlib
from typing import Any

from django.db import connection
from django.http import HttpRequest, HttpResponse

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3


def ask(sql: str) -> str:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return str(cursor.fetchone()[0])


def pieces(request: HttpRequest) -> HttpResponse:
    """A body, and a statement whose answer must be this request's."""
    number = int(request.GET["n"])
    return HttpResponse(ask(f"SELECT SLEEP(0.02) + {number}") + "\n" + "x" * 40_000)


def websocket(request: HttpRequest) -> HttpResponse:
    """Talks on the socket itself: answers each message, a number, from the database."""
    sock: Any = request.META["gunicorn.socket"]
    key = request.META["HTTP_SEC_WEBSOCKET_KEY"].encode()
    accept = base64.b64encode(hashlib.sha1(key + GUID).digest()).decode()
    sock.sendall(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept}\r\n\r\n".encode()
    )
    while (head := sock.recv(2)) and head[0] & 15 != 8:  # 8: close
        size = head[1] & 127
        mask, data = sock.recv(4), sock.recv(size)
        text = bytes(byte ^ mask[i % 4] for i, byte in enumerate(data)).decode()
        answer = ask(f"SELECT {int(text)} * 2").encode()
        sock.sendall(bytes([0x81, len(answer)]) + answer)
    return HttpResponse()
