"""Check DATABASES: types, because values from environment variables are often text by mistake, and
values that mean something else than they seem to."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from importlib.machinery import PathFinder
from typing import Any

from pooled_serve.errors import Finding, Level, StartupError, startup_error
from pooled_serve.preflight import origins
from pooled_serve.preflight.reports import DatabaseReport

_TEXTS = ("NAME", "USER", "PASSWORD")  # or None, Django's default for some
_NUMBERS = {  # of OPTIONS, and the most that each may be
    **dict.fromkeys(("connect_timeout", "read_timeout", "write_timeout"), 365 * 24 * 3600),
    "port": 65535,
    "client_flag": 2**32 - 1,
    "max_allowed_packet": 2**30,
}
_BOOLEANS = (  # of OPTIONS
    *("autocommit", "binary_prefix", "compress", "local_infile", "multi_statements"),
    *("ssl_disabled", "ssl_verify_cert", "ssl_verify_identity", "use_unicode"),
)
_MYSQL = "django.db.backends.mysql"
_SWITCHES = ("ATOMIC_REQUESTS", "AUTOCOMMIT", "CONN_HEALTH_CHECKS")


def refuse_malformed(databases: object, settings: str) -> None:
    """Check that DATABASES is what Django goes through before it connects: else each model fails in
    Django's words, somewhere in the project.

    :param settings: the name of their module.
    :raises StartupError: PS110, for the first thing that is wrong. It contains no value: a URL has
        a password in it.
    """
    where = f"DATABASES of {settings}"
    one = f'{{"ENGINE": "{_MYSQL}", "NAME": ..., "USER": ..., "PASSWORD": ..., "HOST": ...}}'
    if not isinstance(databases, Mapping):
        hint = _BY_URL if _is_url(databases) else f'write DATABASES = {{"default": {one}}}'
        raise startup_error("PS110", f"{where} is {_kind(databases)}, not a dict", hint)
    if databases and "default" not in databases:
        raise startup_error("PS110", *_no_default(where, databases))
    for alias, settings_of_one in databases.items():
        if not isinstance(settings_of_one, Mapping):
            text = f"DATABASES[{alias!r}] of {settings} is {_kind(settings_of_one)}, not a dict"
            hint = f"write {one}"
            if _is_url(settings_of_one):
                hint += ", or dj_database_url.parse(...) around the URL"
            raise startup_error("PS110", text, hint)
        if not isinstance(settings_of_one.get("TEST", {}), Mapping):
            text = f"TEST of the database {alias!r} is {_kind(settings_of_one['TEST'])}, not a dict"
            raise startup_error("PS110", text, f"leave TEST out of {where}")


_BY_URL = 'write DATABASES = {"default": dj_database_url.parse(...)} around the URL'


def _is_url(value: object) -> bool:
    return isinstance(value, str) and "://" in value


def _kind(value: object) -> str:
    if value is None:
        return "None"
    return "a string" if isinstance(value, str) else f"of type {type(value).__name__}"


def _no_default(where: str, databases: Mapping[Any, Any]) -> tuple[str, str]:
    """Returns what is wrong with databases of which none is the default one, and the remedy."""
    if keys := [key for key in origins.KEYS if not isinstance(databases.get(key, {}), Mapping)]:
        text = f"{where} has {keys[0]!r} where the name of a database belongs"
        return text, 'put one more dict around it: DATABASES = {"default": {...}}'
    aliases = ["a URL" if _is_url(alias) else repr(alias) for alias in databases]
    text = f"{where} has no 'default', which Django requires, only {', '.join(aliases)}"
    if "a URL" in aliases:
        return text, _BY_URL
    near = [a for a in aliases if difflib.get_close_matches("'default'", [a.lower()])] or aliases
    if len(near) == 1:
        return text, f"rename {near[0]} to 'default'"
    return text, "rename the one to 'default' that queries use if they name none"


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
        port = int(settings["PORT"] or 0)
    except (TypeError, ValueError, OverflowError):
        raise _wrong(
            alias, settings, "PORT", "a number", "the server's port, usually 3306"
        ) from None
    # The system would cut it to 16 bits, and so connect to another server than the one shown.
    if not 0 <= port <= _NUMBERS["port"]:
        wanted = "a number from 1 to 65535"
        raise _wrong(alias, settings, "PORT", wanted, "the server's port, usually 3306")
    if not isinstance(settings["CONN_MAX_AGE"], int | float | None):
        raise _wrong(alias, settings, "CONN_MAX_AGE", "a number", "int(...), or None for no limit")

    _check_options(alias, settings["OPTIONS"])


def _check_options(alias: str, options: Mapping[str, Any]) -> None:
    for name, most in _NUMBERS.items():
        value = options.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            hint = "a number without quotes, or int(...) around what comes from the environment"
            raise _wrong_option(alias, name, value, "a number", hint)
        if not 0 <= value <= most:
            raise _wrong_option(alias, name, value, f"from 0 to {most}", "a number in between")
    for name in _BOOLEANS:
        if isinstance(options.get(name), str | bytes):
            hint = (
                'True or False without quotes, or == "true" behind what comes from the environment'
            )
            raise _wrong_option(alias, name, options[name], "True or False", hint)
    if not callable(options.get("cursorclass", dict)):
        hint = "the class itself, imported and without quotes"
        raise _wrong_option(alias, "cursorclass", options["cursorclass"], "a class", hint)
    _check_cursor(alias, options.get("cursorclass"))


def check_isolation(alias: str, options: Mapping[str, Any], levels: Collection[str]) -> None:
    """Check the isolation level.

    :param levels: those that the engine knows.
    :raises StartupError: PS110, if it is none of them.
    """
    value = options.get("isolation_level")
    if not value or (isinstance(value, str) and value.lower() in levels):
        return
    word = re.sub(r"[\s_-]+", " ", value.lower()) if isinstance(value, str) else ""
    near = difflib.get_close_matches(word, sorted(levels), n=1, cutoff=origins.KEY_CUTOFF)
    # What is near to none may be a password in the wrong place.
    shown = repr(value) if near else f"of type {type(value).__name__}"
    text = f"OPTIONS['isolation_level'] of the database {alias!r} is {shown}, not one of its levels"
    hint = f"use one of {', '.join(map(repr, sorted(levels)))}"
    if near:
        hint = f"did you mean {near[0]!r}? {hint.capitalize()}"
    raise startup_error("PS110", text, hint)


_NO_TUPLES = "one with rows that are tuples, as Django needs"
_NO_CURSOR = "one of PyMySQL's cursor classes, as this driver needs"
_OTHER_CURSOR = "none, or another class"
_DICTS = {"DictCursorMixin", "CursorDictRowsMixIn"}  # PyMySQL's, mysqlclient's


def _check_cursor(alias: str, cursor: Any) -> None:
    # By name: of PyMySQL's cursors there are two copies here, because "import MySQLdb.cursors"
    # loads them once more. mysqlclient's own may be left from before PyMySQL stood in for it.
    if not isinstance(cursor, type):
        return  # a function that makes one; wrong_rows() sees what that is
    bases = {(base.__module__, base.__name__) for base in cursor.__mro__}
    names = {name for module, name in bases if module in ("pymysql.cursors", "MySQLdb.cursors")}
    if names & _DICTS:
        raise _wrong_option(alias, "cursorclass", cursor, _NO_TUPLES, _OTHER_CURSOR)
    if "Cursor" not in names or "BaseCursor" in names:
        raise _wrong_option(alias, "cursorclass", cursor, _NO_CURSOR, _OTHER_CURSOR)


class WrongRows(Exception):
    """A cursor has returned rows that are no tuples."""


def wrong_rows(alias: str, cursor: Any) -> Finding:
    """Returns the finding for that cursor's class."""
    error = _wrong_option(alias, "cursorclass", cursor, _NO_TUPLES, _OTHER_CURSOR)
    return replace(error.problems[0], level=Level.WARN)


def _wrong_option(alias: str, name: str, value: Any, wanted: str, hint: str) -> StartupError:
    # A text may be a password in the wrong place, unless it looks like what belongs there.
    harmless = not isinstance(value, str | bytes) or _VALUE.fullmatch(str(value))
    shown = repr(value) if harmless else f"of type {type(value).__name__}"
    text = f"OPTIONS[{name!r}] of the database {alias!r} is {shown}, not {wanted}"
    return startup_error("PS110", text, f"correct DATABASES in the settings: use {hint}")


_VALUE = re.compile(r"\s*|[-+]?[0-9.]{1,9}s?|true|false|yes|no|on|off|none", re.I)


def option_behind(connection: Any, error: Exception) -> str | None:
    """Returns the one of OPTIONS for which a connect sent a statement that the server refused; None
    if it has refused something else."""
    statement = getattr(error, "statement", b"")
    if not statement:
        return None
    text = statement.decode("utf-8", "replace")
    if text == connection.init_command:
        return "init_command"
    if text.startswith("SET NAMES"):
        return "collation" if connection.collation else "charset"
    return "sql_mode" if connection.sql_mode and text.startswith("SET sql_mode") else None


def lacks_name(report: DatabaseReport) -> bool:
    """Whether neither NAME nor OPTIONS nor an option file say which database to use."""
    return report.address.endswith("/")


def _wrong(alias: str, settings: Mapping[str, Any], name: str, wanted: str, hint: str) -> Exception:
    value = settings[name]
    # No other value: OPTIONS may hold a password, and a misplaced value may be one.
    shown = repr(value) if name in ("PORT", "CONN_MAX_AGE") else f"of type {type(value).__name__}"
    text = f"{name} of the database {alias!r} is {shown}, not {wanted}"
    return startup_error("PS110", text, f"correct DATABASES in the settings: use {hint}")


def without_engine(settings: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    """Databases that Django takes for none, though something is said of them."""
    for alias, one in settings.items():
        said = [name for name in ("NAME", "HOST", "USER") if one[name]]
        if one["ENGINE"] == "django.db.backends.dummy" and said:
            text = f"there is {said[0]}, and no ENGINE, so each query will fail"
            hint = f'write "ENGINE": {_MYSQL!r} in DATABASES'
            if key := next(
                (key for key, meant in origins.misspelt(one).items() if meant == "ENGINE"), ""
            ):
                hint = f"rename {key!r} to 'ENGINE' in DATABASES"
            yield Finding(Level.WARN, "PS110", alias, text, hint)


def warnings(report: DatabaseReport, settings: Mapping[str, Any]) -> Iterator[Finding]:
    """Values that Django accepts, but takes for something else than they look like."""
    alias = report.alias
    if isinstance(settings["CONN_MAX_AGE"], bool):
        value = settings["CONN_MAX_AGE"]
        text = f"CONN_MAX_AGE is {value}, which counts as {value:d}s"
        yield Finding(Level.WARN, "PS110", alias, text, "write the seconds, or None for no limit")
    for name in _SWITCHES:
        if isinstance(settings[name], str):
            text = f"{name} is {settings[name]!r}, a string, which counts as {bool(settings[name])}"
            yield Finding(Level.WARN, "PS110", alias, text, "write True or False, without quotes")


def of_manage(report: DatabaseReport, settings: Mapping[str, Any]) -> Iterator[Finding]:
    """Values that manage.py takes for something else: mysqlclient, or PyMySQL if none is there,
    which by itself knows fewer words, and takes ``localhost`` for TCP."""
    from pooled_serve.driver import parameters

    # MySQLdb is PyMySQL here: look for a module of that name.
    if PathFinder.find_spec("MySQLdb") is not None:
        if found := origins.expanded_home(settings):
            text = (
                f"manage.py with mysqlclient does not find the option file {found[0]} if that uses "
                f"MariaDB's client library, which does not expand ~: write {found[1]} as "
                "OPTIONS['read_default_file']"
            )
            yield Finding(Level.NOTE, "", report.alias, text)
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

    options, origin = settings["OPTIONS"], origins.Origins(settings)
    yield from origin.findings(report)
    if lacks_name(report) and not origin.lost("database"):
        text = "NAME is empty, so no database is selected: queries fail with error 1046"
        hint = "write the name of the database as NAME in DATABASES"
        yield Finding(Level.WARN, "PS110", report.alias, text, hint)
    if parameters.is_compressed(options):
        text = "connections are not compressed: PyMySQL cannot do what OPTIONS ask for"
        yield Finding(Level.NOTE, "", report.alias, text)
    host, port = settings["HOST"], settings["PORT"]
    lost = origin.lost("host", "socket")  # else the remedy is another
    if not lost and parameters.lacks_socket({"host": host, **options}):
        said, file = f"HOST {host!r}", origin.file_of("host")
        use = "use 127.0.0.1 as HOST, or set OPTIONS['unix_socket']"
        if file:
            said, use = f"host in {file}", "use 127.0.0.1, or set socket there"
        text = (
            f"{said} means a Unix socket, and there is none in the usual places, so TCP is used "
            f"({report.server}); with mysqlclient manage.py would fail there: {use}"
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
