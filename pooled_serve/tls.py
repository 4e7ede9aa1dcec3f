"""TLS sockets that do not take the failure of another connection for their own.

OpenSSL notes errors in a queue of the thread, in a gevent worker that of all greenlets, where the
next operation of any of them finds them. Python leaves the error of a failed system call in it
(https://github.com/python/cpython/issues/148594; seen with OpenSSL 3.4 and later, which Debian 13
has). One connection that the server has closed is enough: until something happens to clear the
queue, every other TLS connection of the worker fails with "Broken pipe" where it had to wait.
"""

from __future__ import annotations

import contextlib
import functools
import ssl
from collections.abc import Callable
from typing import Any


def guard(context: Any) -> None:
    """Let a context make sockets that clear the queue of errors, and look again."""
    context.sslsocket_class = _guarded(context.sslsocket_class)


def clear_errors() -> None:
    """Empty the queue of this thread."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    # Python does it after an operation of which it knows that it has to go on later.
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO()).do_handshake()


class _Guarded:
    """A mixin for a socket class: what receives and sends in it uses these."""

    def read(self, *args: Any, **kwargs: Any) -> Any:
        return _own(super().read, *args, **kwargs)  # type: ignore[misc]

    def send(self, *args: Any, **kwargs: Any) -> Any:
        return _own(super().send, *args, **kwargs)  # type: ignore[misc]

    def do_handshake(self, *args: Any, **kwargs: Any) -> Any:
        return _own(super().do_handshake, *args, **kwargs)  # type: ignore[misc]


@functools.lru_cache(maxsize=16)
def _guarded(base: type) -> type:
    return base if issubclass(base, _Guarded) else type("TLSSocket", (_Guarded, base), {})


def _own(operate: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Do it, and again if it fails: an error of another connection is gone then, and one of this
    connection comes again."""
    try:
        return operate(*args, **kwargs)
    except (ssl.SSLError, TimeoutError):
        raise
    except OSError as error:
        clear_errors()  # it may be another's
        try:
            result = operate(*args, **kwargs)
        except TimeoutError:
            raise
        except OSError:
            clear_errors()
            raise error from None
        if result == b"" or result == 0:  # the end, after this error
            raise
        return result
