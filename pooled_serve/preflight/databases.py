"""Check DATABASES: types, because values from environment variables are often text by mistake, and
values that mean something else than they seem to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.machinery import PathFinder
from typing import Any

from pooled_serve.errors import Finding, Level, startup_error
from pooled_serve.preflight.reports import DatabaseReport

_TEXTS = ("NAME", "USER", "PASSWORD")  # or None, Django's default for some
_SWITCHES = ("ATOMIC_REQUESTS", "AUTOCOMMIT", "CONN_HEALTH_CHECKS")


def check(alias: str, settings: Mapping[str, Any]) -> None:
    """Check that the settings of a MySQL database have types that Django and PyMySQL accept.

    :raises StartupError: PS110, for the first that has not. Django would fail in every request.
    """
    for name in _TEXTS:
        if name == "PASSWORD" and callable(settings[name]):
            continue  # called at each connect
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


def of_manage(report: DatabaseReport, settings: Mapping[str, Any]) -> Iterator[Finding]:
    """Values that manage.py takes for something else, if it uses PyMySQL: no mysqlclient is there,
    and PyMySQL by itself knows fewer words, and takes ``localhost`` for TCP."""
    from pooled_serve.driver import parameters

    # MySQLdb is PyMySQL here: look for a module of that name.
    if PathFinder.find_spec("MySQLdb") is not None:
        return
    use = "install mysqlclient for manage.py, or write"
    for word in parameters.unknown_to_plain_pymysql(settings["OPTIONS"])[:1]:
        text = (
            f"manage.py fails with PyMySQL: OPTIONS has {word!r}, which only mysqlclient and "
            f"pooled-serve know; {use} it in PyMySQL's words"
        )
        yield Finding(Level.NOTE, "", report.alias, text)
    named = settings["OPTIONS"].keys() & {"unix_socket", "read_default_file", "read_default_group"}
    if report.server.startswith("/") and settings["HOST"] in ("", "localhost") and not named:
        text = (
            f"HOST {settings['HOST']!r} means the socket {report.server}, and to manage.py with "
            f"PyMySQL TCP; {use} OPTIONS['unix_socket']"
        )
        yield Finding(Level.NOTE, "", report.alias, text)


def other_meanings(report: DatabaseReport, settings: Mapping[str, Any]) -> Iterator[Finding]:
    """Values of a MySQL database that PyMySQL leaves out, or that may mean another server than
    they look like."""
    from pooled_serve.driver import parameters  # and PyMySQL, which --help does without

    options = settings["OPTIONS"]
    if parameters.is_compressed(options):
        text = "connections are not compressed: PyMySQL cannot do what OPTIONS ask for"
        yield Finding(Level.NOTE, "", report.alias, text)
    if file := parameters.missing_file(options):
        text = f"OPTIONS name the option file {file}, which cannot be read, so it is left out"
        hint = "correct read_default_file, or let this user read it"
        yield Finding(Level.WARN, "PS112", report.alias, text, hint)
    host, port = settings["HOST"], settings["PORT"]
    if parameters.lacks_socket({"host": host, **options}):
        text = (
            f"HOST {host!r} means a Unix socket, and there is none in the usual places, so TCP is "
            f"used ({report.server}); with mysqlclient manage.py would fail there: use 127.0.0.1 "
            "as HOST, or set OPTIONS['unix_socket']"
        )
        yield Finding(Level.NOTE, "", report.alias, text)
    at_socket = report.server.startswith("/") and host in ("", "localhost")
    if at_socket and port and report.facts and int(port) != report.facts.port:
        text = (
            f"HOST {host!r} stands for the socket {report.server}, whose server has port "
            f"{report.facts.port}; PORT {port} is not used"
        )
        hint = "use 127.0.0.1 as HOST if you mean that port, or leave PORT empty"
        yield Finding(Level.WARN, "PS310", report.alias, text, hint)
