"""What a setting of gunicorn's takes: values that are refused, with a remedy."""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Iterator
from typing import Any

from gunicorn.config import validate_string
from gunicorn.glogging import Logger

from pooled_serve.errors import Finding, Level, StartupError, startup_error
from pooled_serve.options import HOST_AND_PORT, REMEDY, is_port

PROGRAM = "pooled-serve"

PORTS = "use a port from 1 to 65535"

_TAKES = {
    "bind": "use HOST:PORT, as in 127.0.0.1:8000, or unix:PATH",
    "chdir": "name a folder that exists: that with manage.py",
    "forwarded_allow_ips": "use addresses or networks with commas between them, as in 10.0.0.0/8",
    "group": "name a group that this machine has, or leave it out",
    "proxy_allow_ips": "use addresses or networks with commas between them, as in 10.0.0.0/8",
    "raw_env": "use NAME=VALUE, as in DEBUG=1",
    "statsd_host": "use HOST:PORT, as in 127.0.0.1:8125",
    "user": "name a user that this machine has, or leave it out",
}


def remedy(setting: Any) -> str:
    """Returns what to write; empty where only gunicorn's help says that."""
    if setting.name in _TAKES:
        return _TAKES[setting.name]
    if is_number(setting):
        return f"use a whole number, as in {setting.default}"
    if is_hook(setting):
        return f"write def {setting.name}{inspect.signature(setting.default)}: ..."
    if isinstance(setting.default, bool):
        return "use True or False"
    if setting.validator is validate_string:
        return f"use a text in quotes{f', as in {setting.default!r}' if setting.default else ''}"
    return ""


def problem(setting: Any, value: object, said: str) -> str:
    """Returns what is wrong with a value.

    :param said: gunicorn's words.
    """
    if is_number(setting) and not isinstance(value, str | int):
        return f"must be a whole number, not {value!r}"
    if is_hook(setting) and "arity" in said:
        return f"has other arguments than {inspect.signature(setting.default)}"
    return said


def without(name: str, metavar: str | None) -> tuple[str, str]:
    """Returns problem and remedy for an option that lacks its value."""
    return "has no value", f"write {name} {metavar or 'VALUE'}"


def is_number(setting: Any) -> bool:
    """Whether it is one of gunicorn's whole numbers."""
    return setting.type is int


def is_hook(setting: Any) -> bool:
    """Whether it is a function that gunicorn calls."""
    return bool(setting.section == "Server Hooks" and callable(setting.default))


def has_comma(setting: Any, value: object) -> bool:
    """Whether a value would be good if a comma had not made it a tuple: "workers = 3,"."""
    if not isinstance(value, tuple) or len(value) != 1:
        return False
    try:
        setting.validator(value[0])
    except Exception:
        return False
    return True


def bad_value(text: str, hint: str = "") -> StartupError:
    """Returns a usage error about one option.

    :param text: may end in " → " and a remedy, which then counts.
    """
    said, _, use = text.partition(REMEDY)
    return startup_error("PS401", said, use or hint or f"see {PROGRAM} --help")


def port_alone(name: str, text: str, number: str) -> StartupError:
    """Returns the error for an address that is a number alone.

    :param text: as it was written.
    """
    if int(number[:6]) > 65535:
        return bad_value(f"{name}: there is no port {number}", PORTS)
    use = f"use 127.0.0.1:{number}, or :{number} for all addresses of this machine"
    if not is_port(number):
        use = "use HOST:PORT, as in 127.0.0.1:8000"
    return bad_value(f"{name}: {text} is a port without a host", use)


def doubts(cfg: Any) -> Iterator[Finding]:
    """Warn of values that gunicorn takes, and that mean something else to it: -p is no port."""
    path = cfg.pidfile or ""
    _, colon, port = path.rpartition(":")
    if "/" in path or not HOST_AND_PORT.fullmatch(path) or not is_port(port):
        return
    wanted = f"-b {path if colon else f'127.0.0.1:{port}'}"
    name = "-p" if cfg.named("pidfile") == "--pid" else cfg.named("pidfile")
    text = f"{name}: the pid file is called {path}: this option takes a file, and no port"
    yield Finding(Level.WARN, "PS401", "", text, f"for a port use {wanted}")


def check_env(cfg: Any) -> None:
    """Reject variables for the workers that have no value."""
    setting = cfg.settings["raw_env"]
    for text in setting.value:
        if "=" not in text:
            said = f"{cfg.named('raw_env')}: must be NAME=VALUE, not {text!r}"
            raise bad_value(said, remedy(setting))


def check_loglevel(cfg: Any) -> None:
    """Reject a level that does not exist: gunicorn would log at "info" without a word. A logger of
    the project's may have levels of its own."""
    if cfg.settings["logger_class"].value != cfg.settings["logger_class"].default:
        return
    levels = list(Logger.LOG_LEVELS)
    level = str(cfg.loglevel)
    if level.lower() not in levels:
        near = difflib.get_close_matches(level.lower(), levels, n=1)
        use = near[0] if near else f"one of {', '.join(levels)}"
        raise bad_value(f"{cfg.named('loglevel')}: there is no level {level!r}", f"use {use}")


def check_files(cfg: Any) -> None:
    """Reject files that are not there, or cannot be written."""
    for name in ("certfile", "keyfile", "logconfig", "logconfig_json"):
        path = getattr(cfg, name)
        if path and not os.path.exists(path):
            said = f"{cfg.named(name)}: there is no file {path}"
            raise bad_value(
                said, "correct the path: it counts from the folder of the command, or --chdir"
            )
    for name in ("errorlog", "accesslog", "pidfile"):
        path = getattr(cfg, name)
        if path and path != "-":
            # A pidfile is written beside it first.
            _check_writable(f"{cfg.named(name)}: {path}", path, in_place=name != "pidfile")


def _check_writable(said: str, path: str, *, in_place: bool) -> None:
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise bad_value(
            f"{said} is in {folder}, which is no directory", "create it, or name another"
        )
    if os.path.isdir(path):
        raise bad_value(
            f"{said} is a directory", f"name a file in it, as in {path.rstrip('/')}/log"
        )
    target = path if in_place and os.path.exists(path) else folder
    if not os.access(target, os.W_OK):
        hint = f"let user {os.geteuid()} write to {target}, or name another"
        raise bad_value(f"{said} cannot be written", hint)
