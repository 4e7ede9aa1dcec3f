"""Arguments for a connect in mysqlclient's words, put into PyMySQL's.

``manage.py`` may use mysqlclient where the web server uses PyMySQL. So that ``DATABASES`` means the
same to both, every connect is translated here. PyMySQL's own words keep the meaning that they have
for PyMySQL. What mysqlclient does was found by trying mysqlclient 2.3 with MariaDB's client library
3.3; where that differs from MySQL's manual (it accepts a server without TLS for
``ssl_mode=REQUIRED``), this follows the manual.
"""

from __future__ import annotations

import difflib
import inspect
import os
import pwd
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pymysql.charset import charset_by_name
from pymysql.connections import Connection
from pymysql.constants.CLIENT import COMPRESS, MULTI_STATEMENTS, SSL
from pymysql.err import NotSupportedError

from pooled_serve.driver import option_files, statements

SOCKET_VARIABLE = "MYSQL_UNIX_PORT"

SOCKETS = (
    "/run/mysqld/mysqld.sock",
    "/var/run/mysqld/mysqld.sock",
    "/var/lib/mysql/mysql.sock",
    "/tmp/mysql.sock",
)
"""Where a server's socket is looked for, if nothing names one: Debian's, Red Hat's, and MySQL's own
place."""

WORDS = {
    "host": "empty or `localhost`: the server's Unix socket; TCP if there is none, where "
    "mysqlclient fails",
    "user": "the same; without it the user that the process runs as",
    "passwd, db": "`password`, `database`",
    "ssl_mode": "`DISABLED`, `PREFERRED`: TLS if the server has it; `REQUIRED`: no connection "
    "without; `VERIFY_CA`: and a certificate of the authority in `ssl`'s `ca`, or of one that the "
    "system trusts; `VERIFY_IDENTITY`: and for this host name",
    "ssl": "`ca`, `capath`, `cert`, `key`, `cipher` are the same, any other is refused, True is "
    "`REQUIRED`; with a `ca` the host name is checked, too, unless `ssl_mode` says otherwise",
    "read_default_file": "the same, with all that mysqlclient reads in it: groups, `socket`, "
    "`protocol`, `ssl-mode`, `!include`; what `DATABASES` sets counts more; write the path without "
    "`~`, which MariaDB's client library does not expand",
    "unix_socket, read_default_group, charset, collation, sql_mode, local_infile, use_unicode": (
        "the same"
    ),
    "init_command": "the same, but one statement only: `SET a = 1, b = 2`",
    "connect_timeout, read_timeout, write_timeout": "the same; 0 means PyMySQL's default",
    "conv": "the same; a converter gets text where mysqlclient passes bytes",
    "client_flag": "the same, without COMPRESS and SSL, for which there are words of their own",
    "multi_statements": "True: the flag MULTI_STATEMENTS; it is off unless you ask for it",
    "server_public_key_path": "`server_public_key`: what is in that file",
    "compress": "left out with a note: PyMySQL cannot compress",
    "auth_plugin, executemany_fallback": "left out: the server names the plugin; it is about speed",
    "local_infile_dir, named_pipe": "refused: PyMySQL has nothing like them",
}
"""What becomes of mysqlclient's words, for the README."""

_PLUGINS = frozenset(
    {
        "auth_socket",
        "caching_sha2_password",
        "client_ed25519",
        "mysql_clear_password",
        "mysql_native_password",
        "sha256_password",
        "unix_socket",
    }
)
_SSL_FILE_NAMES = ("ca", "capath", "cert", "key", "cipher", "password")
_KNOWN = frozenset(inspect.signature(Connection.__init__).parameters) - {"self"}

_SSL_KEYS = frozenset({*_SSL_FILE_NAMES, "check_hostname", "verify_mode"})
"""Of the dictionary ``ssl``: all that PyMySQL looks at."""

_SERVERS = frozenset(
    {
        "innodb_lock_wait_timeout",
        "interactive_timeout",
        "lock_wait_timeout",
        "max_execution_time",
        "max_statement_time",
        "net_read_timeout",
        "net_write_timeout",
        "time_zone",
        "wait_timeout",
    }
)
"""Variables of a session that are given as options: wait_timeout is nearly write_timeout, but has
nothing to do with it."""

_CUTOFF = 0.8
"""Of difflib's ratio, for a name that may have been meant: a wrong guess is worse than none."""

# Once it was seen, it stays: a server that restarts removes it for a while, and what listens on
# the port meanwhile may be another server.
_seen: dict[str, str] = {}


class UnsupportedOption(NotSupportedError):  # type: ignore[misc]  # PyMySQL has no types
    """An argument has no translation. Its text is the problem and what helps."""

    def __init__(self, problem: str, hint: str) -> None:
        super().__init__(f"{problem} → {hint}")
        self.problem, self.hint = problem, hint


def translate(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments for PyMySQL.

    :raises UnsupportedOption: one of them means nothing to PyMySQL.
    """
    params = dict(given)
    for old, new in (("passwd", "password"), ("db", "database")):
        if old in params:
            params[new] = params.pop(old)
    over_tcp = _read_option_files(params)
    for name in [name for name in params if name in _TRANSLATORS]:
        _TRANSLATORS[name](params)
    _check_tls_keys(params)
    _translate_tls(params)
    _check_charset(params)
    _check_init_command(params)
    for name in params.keys() - _KNOWN:
        raise UnsupportedOption(
            f"neither PyMySQL nor mysqlclient knows {name!r}", _unknown(name, params[name])
        )
    if not params.get("unix_socket") and by_name(params) and not over_tcp:
        params["unix_socket"] = local_socket()
    if not params.get("user"):
        try:
            params["user"] = pwd.getpwuid(os.geteuid()).pw_name
        except KeyError:
            params.pop("user", None)
    return params


def _unknown(name: str, value: object) -> str:
    """Returns what helps against an option that nobody knows."""
    if name in _SERVERS:
        return f"it is a variable of the server: set it with init_command, SET {name} = {value!r}"
    near = nearest(name, _KNOWN | MYSQLCLIENTS)
    return f"did you mean {near!r}?" if near else "leave it out"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Returns the name that was meant: one that differs in its spelling only, or a little."""
    bare = {_bare(each): each for each in sorted(known)}
    if _bare(name) in bare:
        return bare[_bare(name)]
    found = difflib.get_close_matches(_bare(name), bare, n=1, cutoff=_CUTOFF)
    return bare[found[0]] if found else None


def _bare(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()


def unknown_to_plain_pymysql(given: Mapping[str, Any]) -> list[str]:
    """Returns mysqlclient's words in them: with PyMySQL by itself, as in ``manage.py``, each is a
    TypeError."""
    return sorted(given.keys() & MYSQLCLIENTS)


def is_compressed(given: Mapping[str, Any]) -> bool:
    """Whether they ask for a compression, which PyMySQL does without."""
    return bool(given.get("compress") or (given.get("client_flag") or 0) & COMPRESS)


def check_tls_files(params: Mapping[str, Any]) -> None:
    """Look whether translated arguments name files for TLS that can be read.

    :raises UnsupportedOption: one cannot.
    """
    tls = params.get("ssl")
    for name in ("ca", "cert", "key"):
        inside = tls.get(name) if isinstance(tls, dict) else None
        path = inside or params.get(f"ssl_{name}")
        if not path:
            continue
        try:
            Path(path).open("rb").close()
        except OSError as error:
            place = f"OPTIONS['ssl']['{name}']" if inside else f"OPTIONS['ssl_{name}']"
            raise UnsupportedOption(
                f"the file {path} cannot be read ({error.strerror})",
                f"correct {place} in DATABASES (or ssl-{name} in the option file)",
            ) from None


def has_authority(params: Mapping[str, Any]) -> bool:
    """Whether translated arguments name the authority for the server's certificate."""
    tls = params.get("ssl")
    if tls is not None and not isinstance(tls, dict | bool):
        return True  # a context, which has what it has
    inside = tls if isinstance(tls, dict) else {}
    return any(inside.get(name) or params.get(f"ssl_{name}") for name in ("ca", "capath"))


# --- Where the server is -----------------------------------------------------------------------


def by_name(params: Mapping[str, Any]) -> bool:
    """Whether the host is one that stands for the server's Unix socket."""
    return not params.get("host") or params["host"] == "localhost"


def lacks_socket(given: Mapping[str, Any]) -> bool:
    """Whether they mean the server's Unix socket, and there is none: TCP is used then, where
    mysqlclient would fail."""
    params = dict(given)
    over_tcp = _read_option_files(params)
    named = over_tcp or params.get("unix_socket") or not by_name(params)
    return not named and local_socket() is None


def local_socket() -> str | None:
    """Returns the path of the server's Unix socket on this machine, or None if there is none: the
    one that the environment names, or else one in the usual places."""
    named = os.environ.get(SOCKET_VARIABLE, "")
    if named in _seen:
        return _seen[named]
    for path in (named,) if named else SOCKETS:
        try:
            if stat.S_ISSOCK(os.stat(path).st_mode):
                _seen[named] = path
                return path
        except OSError:
            continue
    return None


# --- Option files ------------------------------------------------------------------------------


def _read_option_files(params: dict[str, Any]) -> bool:
    """Take from the option file what was not given. Returns whether it asks for TCP."""
    file, group = params.pop("read_default_file", None), params.pop("read_default_group", None)
    if not file and not group:
        return False
    found = option_files.read([file] if file else option_files.DEFAULT_FILES, group)
    for name, (word, kind) in FILE_WORDS.items():
        text = found.get(name)
        if not text or params.get(word):
            continue
        try:
            params[word] = kind(text)
        except ValueError:
            raise UnsupportedOption(
                f"{name} in the option file is {text!r}", "use a number"
            ) from None
    if "ssl-verify-server-cert" in found and _is_on(found["ssl-verify-server-cert"]):
        params.setdefault("ssl_mode", "VERIFY_IDENTITY")
    tls = {name: found[f"ssl-{name}"] for name in _SSL_FILE_NAMES if found.get(f"ssl-{name}")}
    if tls and isinstance(params.get("ssl") or {}, dict):
        params["ssl"] = {**tls, **(params.get("ssl") or {})}
    over_tcp = (found.get("protocol") or "").upper() == "TCP"
    if by_name(params) and not over_tcp and not params.get("unix_socket"):
        params["unix_socket"] = found.get("socket")
    return over_tcp


FILE_WORDS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "user": ("user", str),
    "password": ("password", str),
    "host": ("host", str),
    "database": ("database", str),
    "port": ("port", int),
    "bind-address": ("bind_address", str),
    "default-character-set": ("charset", str),
    "connect-timeout": ("connect_timeout", int),
    "init-command": ("init_command", str),
    "ssl-mode": ("ssl_mode", str.upper),
}


def _is_on(value: str | None) -> bool:
    return value is None or value.lower() not in ("0", "off", "false")


# --- TLS ---------------------------------------------------------------------------------------

_VERIFIED = {
    "REQUIRED": {"verify_mode": False, "check_hostname": False},
    "VERIFY_CA": {"verify_mode": True, "check_hostname": False},
    "VERIFY_IDENTITY": {"verify_mode": True, "check_hostname": True},
}


def _check_tls_keys(params: Mapping[str, Any]) -> None:
    """PyMySQL ignores the keys that it does not know, and then nothing is verified."""
    tls = params.get("ssl")
    for name in sorted(tls.keys() - _SSL_KEYS, key=str) if isinstance(tls, dict) else ():
        near = nearest(_bare(str(name)).removeprefix("ssl"), _SSL_KEYS)
        hint = "for TLS without verification use 'ssl': True"
        hint = f"did you mean {near!r}?" if near else hint
        raise UnsupportedOption(f"'ssl' has no key {name!r}, which PyMySQL would ignore", hint)


def _translate_tls(params: dict[str, Any]) -> None:
    mode, tls = params.pop("ssl_mode", None), params.get("ssl")
    if mode is None and tls is not True:
        return
    flat = sorted(name for name in params if name.startswith("ssl_"))
    if flat:
        raise UnsupportedOption(
            f"'ssl_mode' is mysqlclient's word, and {flat[0]!r} is PyMySQL's",
            "use ssl_mode and ssl, or the ssl_... words alone",
        )
    mode = mode or "REQUIRED"
    if mode == "PREFERRED" and tls:
        mode = "REQUIRED"  # PyMySQL cannot use files if the server has TLS, and do without if not
    if mode == "PREFERRED":
        params.pop("ssl", None)
    elif mode == "DISABLED":
        params.pop("ssl", None)
        params["ssl_disabled"] = True
    elif mode in _VERIFIED:
        if tls is None or isinstance(tls, bool | dict):
            params["ssl"] = {**(tls if isinstance(tls, dict) else {}), **_VERIFIED[mode]}
    else:
        modes = ", ".join(("DISABLED", "PREFERRED", *_VERIFIED))
        raise UnsupportedOption(f"there is no ssl_mode {mode!r}", f"use one of {modes}")


# --- Other words -------------------------------------------------------------------------------


def _leave_out(name: str) -> Callable[[dict[str, Any]], None]:
    def translator(params: dict[str, Any]) -> None:
        del params[name]

    return translator


def _refuse(name: str, hint: str) -> Callable[[dict[str, Any]], None]:
    def translator(params: dict[str, Any]) -> None:
        if params.pop(name):
            raise UnsupportedOption(f"PyMySQL has nothing like mysqlclient's {name!r}", hint)

    return translator


def _without_zero(name: str) -> Callable[[dict[str, Any]], None]:
    def translator(params: dict[str, Any]) -> None:
        if not params[name]:
            del params[name]

    return translator


def _translate_plugin(params: dict[str, Any]) -> None:
    plugin = params.pop("auth_plugin")
    if plugin and plugin not in _PLUGINS:
        raise UnsupportedOption(
            f"PyMySQL has no auth_plugin {plugin!r}", "use auth_plugin_map, PyMySQL's word for it"
        )


def _translate_flags(params: dict[str, Any]) -> None:
    # With either of them set the server would expect what PyMySQL does not send.
    params["client_flag"] = (params["client_flag"] or 0) & ~(COMPRESS | SSL)


def _translate_statements(params: dict[str, Any]) -> None:
    if params.pop("multi_statements"):
        params["client_flag"] = params.get("client_flag", 0) | MULTI_STATEMENTS


def _translate_key_file(params: dict[str, Any]) -> None:
    path = params.pop("server_public_key_path")
    if not path:
        return
    try:
        params["server_public_key"] = Path(path).read_bytes()
    except OSError as error:
        raise UnsupportedOption(
            f"server_public_key_path: {path} cannot be read ({error.strerror})", "correct the path"
        ) from None


def _check_conv(params: dict[str, Any]) -> None:
    for kind, converter in (params["conv"] or {}).items():
        if converter is not None and not callable(converter):
            raise UnsupportedOption(
                f"conv[{kind!r}] is a {type(converter).__name__}, which PyMySQL cannot call",
                "use a function of one value",
            )


def _check_charset(params: dict[str, Any]) -> None:
    charset = params.get("charset")
    if charset and charset_by_name(charset) is None:
        raise UnsupportedOption(f"PyMySQL knows no charset {charset!r}", "use 'utf8mb4'")


def _check_init_command(params: dict[str, Any]) -> None:
    text = params.get("init_command")
    if not isinstance(text, str) or (params.get("client_flag") or 0) & MULTI_STATEMENTS:
        return
    found = statements.split(text)
    if len(found) < 2:
        return
    hint = "join them: SET a = 1, b = 2"
    if not all(statement.startswith("SET ") for statement in found):
        hint = "use one, or multi_statements, which lets every query be several"
    raise UnsupportedOption(f"init_command has {len(found)} statements, and PyMySQL runs one", hint)


_TRANSLATORS: dict[str, Callable[[dict[str, Any]], None]] = {
    "auth_plugin": _translate_plugin,
    "client_flag": _translate_flags,
    "compress": _leave_out("compress"),
    "connect_timeout": _without_zero("connect_timeout"),
    "conv": _check_conv,
    "executemany_fallback": _leave_out("executemany_fallback"),
    "local_infile_dir": _refuse("local_infile_dir", "use local_infile, which allows any folder"),
    "multi_statements": _translate_statements,
    "named_pipe": _refuse("named_pipe", "leave HOST empty for the server's Unix socket"),
    "read_timeout": _without_zero("read_timeout"),
    "server_public_key_path": _translate_key_file,
    "write_timeout": _without_zero("write_timeout"),
}

MYSQLCLIENTS = frozenset({*_TRANSLATORS, "ssl_mode"}) - _KNOWN
"""mysqlclient's words that PyMySQL does not know."""
