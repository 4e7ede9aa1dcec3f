"""Check the types in DATABASES: values from environment variables are often text by mistake."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pooled_serve.errors import Finding, Level, startup_error

_TEXTS = ("NAME", "USER", "PASSWORD")  # or None, Django's default for some
_SWITCHES = ("ATOMIC_REQUESTS", "AUTOCOMMIT", "CONN_HEALTH_CHECKS")


def check(alias: str, settings: Mapping[str, Any]) -> None:
    """Check that the settings of a MySQL database have types that Django and PyMySQL accept.

    :raises StartupError: PS110, for the first that has not. Django would fail in every request.
    """
    for name in _TEXTS:
        if not isinstance(settings[name], str | bytes | None):
            raise _wrong(alias, settings, name, "text", f"str(...), or quotes around {name}")
    if not isinstance(settings["HOST"], str):
        raise _wrong(alias, settings, "HOST", "text", '"" for this machine')
    if not isinstance(settings["OPTIONS"], dict):
        raise _wrong(
            alias, settings, "OPTIONS", "a dict", '{"charset": "utf8mb4"}, or leave it out'
        )
    try:
        int(settings["PORT"] or 0)
    except (TypeError, ValueError):
        raise _wrong(
            alias, settings, "PORT", "a number", "the server's port, usually 3306"
        ) from None
    if not isinstance(settings["CONN_MAX_AGE"], int | float | None):
        raise _wrong(alias, settings, "CONN_MAX_AGE", "a number", "int(...), or None for no limit")


def _wrong(alias: str, settings: Mapping[str, Any], name: str, wanted: str, hint: str) -> Exception:
    value = settings[name]
    # No other value: OPTIONS may hold a password, and a misplaced value may be one.
    shown = repr(value) if name in ("PORT", "CONN_MAX_AGE") else f"of type {type(value).__name__}"
    text = f"{name} of the database {alias!r} is {shown}, not {wanted}"
    return startup_error("PS110", text, f"correct DATABASES in the settings: use {hint}")


def warnings(alias: str, settings: Mapping[str, Any]) -> Iterator[Finding]:
    """Values that Django accepts, but takes for something else than they look like."""
    if isinstance(settings["CONN_MAX_AGE"], bool):
        value = settings["CONN_MAX_AGE"]
        text = f"CONN_MAX_AGE is {value}, which counts as {value:d}s"
        yield Finding(Level.WARN, "PS110", alias, text, "write the seconds, or None for no limit")
    for name in _SWITCHES:
        if isinstance(settings[name], str):
            text = f"{name} is {settings[name]!r}, a string, which counts as {bool(settings[name])}"
            yield Finding(Level.WARN, "PS110", alias, text, "write True or False, without quotes")
