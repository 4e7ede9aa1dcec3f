"""A configuration file that cannot be used: what is wrong with it where the error of Python or
gunicorn would lead elsewhere."""

from __future__ import annotations

import os
from typing import Any

from pooled_serve.errors import StartupError, startup_error
from pooled_serve.serve import names
from pooled_serve.serve.written import ARGUMENTS


def problem(error: BaseException, location: str, cfg: Any) -> StartupError | None:
    """Returns the problem that explains why a file cannot be used; None if its own error does.

    :param location: as it was written: a path, or a module with "python:" in front.
    """
    if isinstance(error, SyntaxError) and error.text:
        # Python asks: "Maybe you meant '==' instead of '='?"
        if not (meant := names.setting_with_dashes(error.text, cfg.settings)):
            return None
        text = f"{error.filename}, line {error.lineno}: there is no setting {_left(error.text)}"
        return startup_error("PS403", text, f"did you mean {meant}?")
    path = location.removeprefix("file:")
    if location.startswith("python:"):
        return None
    places = cfg.written.places("config")
    source = " in GUNICORN_CMD_ARGS" if places and places[0].source == ARGUMENTS else ""
    if not os.path.exists(path):
        hint = names.one_dash(location, cfg.settings) or f"correct the path of -c{source}"
        return startup_error("PS403", f"there is no file {path}", hint)
    if os.path.isdir(path):
        inside = os.path.join(path, "gunicorn.conf.py")
        hint = (
            f"use -c {inside}" if os.path.exists(inside) else f"name a file in it with -c{source}"
        )
        return startup_error("PS403", f"{path} is a directory, not a configuration file", hint)
    return None


def _left(line: str) -> str:
    return line.partition("=")[0].strip()
