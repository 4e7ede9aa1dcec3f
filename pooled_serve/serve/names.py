"""Names that do not exist, of options, variables and settings, and the ones that were meant.

A wrong guess costs more than none: a name is suggested only if it is nearly the same, or what other
pools call it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Container, Iterable, Iterator, Mapping

from pooled_serve.errors import Finding, Level
from pooled_serve.options import BY_SETTING, ENV_PREFIX, OPTIONS, VARIABLES, Option

CUTOFF = 0.75
"""Of difflib's ratio: "pool-sise" has 0.89 of "pool-size", "foo" 0.57 of "pool"."""

SYNONYMS = {
    "address": "bind",
    "conn-limit": "max-outstanding",
    "connections": "max-outstanding",
    "host": "bind",
    "max-conn": "max-outstanding",
    "max-connections": "max-outstanding",
    "max-conns": "max-outstanding",
    "max-overflow": "max-outstanding",
    "max-pool-size": "max-outstanding",
    "max-size": "max-outstanding",
    "min-size": "pool-size",
    "pool-limit": "max-outstanding",
    "pool-max": "max-outstanding",
    "pool-max-size": "max-outstanding",
    "pool-min": "pool-size",
    "pool-recycle": "conn-max-age",
    "port": "bind",
    "size": "pool-size",
}
"""Other words for an option, without dashes in front."""


def unknown(name: str, known: Iterable[str], source: str = "") -> Finding:
    """Returns the finding for an option or a variable that does not exist."""
    what = "option" if name.startswith("-") else "variable"
    guess = nearest(name, list(known))
    hint = f"did you mean {guess}? " if guess else ""
    text = f"{source}there is no {what} {name}"
    return Finding(Level.WARN, "PS402", "", text, f"{hint}see pooled-serve --help")


def nearest(name: str, known: list[str]) -> str | None:
    """Returns the known name that was meant, or None."""
    bare = {_bare(item): item for item in known}
    squeezed = {word.replace("-", ""): item for word, item in bare.items()}
    if (same := squeezed.get(_bare(name).replace("-", ""))) is not None:  # "poolSize"
        return same
    synonym = SYNONYMS.get(_bare(name))
    if synonym in bare:
        return bare[synonym]
    found = difflib.get_close_matches(_bare(name), bare, n=1, cutoff=CUTOFF)
    return bare[found[0]] if found else None


def _bare(name: str) -> str:
    """--pool-size, POOLED_SERVE_POOL_SIZE and pool_size are the same word."""
    return name.removeprefix(ENV_PREFIX).lower().replace("_", "-").strip("-")


_NOT_OPTIONS = re.compile(
    "WITHOUT|CHECK|SETTINGS"
    # Kubernetes sets these in every pod if there is a Service named pooled-serve.
    r"|SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_\w+)?"
)


def unknown_variables(environ: Mapping[str, str]) -> list[Finding]:
    """Returns a finding for each variable that looks like an option but is none."""
    return [
        unknown(name, VARIABLES)
        for name in sorted(environ)
        if name.startswith(ENV_PREFIX)
        and name not in VARIABLES
        and not _NOT_OPTIONS.fullmatch(name.removeprefix(ENV_PREFIX))
    ]


def near_settings(
    location: str, values: Mapping[str, object], known: Container[str]
) -> Iterator[Finding]:
    """Names in a configuration file that look like the pool's settings, and are none.

    A file may define any name. So one counts only if it begins with "pool\\_", or if its value
    would be good for the setting.
    """
    for name, value in values.items():
        if name in known or name.startswith("_") or callable(value):
            continue
        option = _option_meant(name)
        if not name.startswith("pool_") and (option is None or not _is_good_for(option, value)):
            continue
        hint = f"did you mean {option.setting}?" if option else "see pooled-serve --help"
        text = f"{location}: there is no setting {name}"
        yield Finding(Level.WARN, "PS402", "", text, hint)


def _option_meant(name: str) -> Option | None:
    for option in OPTIONS:
        if name == option.setting.removeprefix("pool_") or _bare(name) == _bare(option.flag):
            return option
    guess = nearest(name, [*BY_SETTING, *(option.flag for option in OPTIONS)])
    return next((o for o in OPTIONS if guess in (o.setting, o.flag)), None)


def _is_good_for(option: Option, value: object) -> bool:
    try:
        option.parse(value)
    except ValueError:
        return False
    return True
