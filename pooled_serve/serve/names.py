"""Names that do not exist, of options, variables and settings, and the ones that were meant.

A wrong guess costs more than none: a name is suggested only if it is nearly the same, or what other
pools call it.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from pooled_serve.errors import Finding, Level
from pooled_serve.options import (
    BY_SETTING,
    ENV_PREFIX,
    HOST_AND_PORT,
    OPTIONS,
    VARIABLES,
    Option,
    is_port,
)

CUTOFF = 0.75
"""Of difflib's ratio: "pool-sise" has 0.89 of "pool-size", "foo" 0.57 of "pool"."""

NEAR_CUTOFF = 0.85
"""For a variable of a configuration file, which may be the user's own: "timeou" has 0.92 of
"timeout", "max_workers" 0.78 of "workers". In a short name one slip is more than that: "bnid" has
0.75 of "bind"; see _is_slip()."""

PART_CUTOFF = 0.65
"""For one part of a name: "conns" has 0.89 of "conn", "retry" 0.6 of "dirty"."""

SLIP_CUTOFF = 0.92
"""For another word for an option: "maxconnection" has 0.96 of "maxconnections"."""

LONGER = 3
"""Letters; "graceful_timeout_str" is no misspelling."""

SYNONYMS = {
    other.replace("-", ""): option
    for option, others in {
        "access-logfile": "access-log",
        "bind": "address host port",
        "conn-max-age": (
            "conn-lifetime conn-max-lifetime connection-lifetime max-age max-conn-age "
            "max-conn-lifetime max-connection-age max-lifetime pool-max-age pool-recycle"
        ),
        "error-logfile": "error-log",
        "client-check": "check-client check-clients",
        "leak-threshold": "leak-detection leak-detection-threshold",
        "max-outstanding": (
            "conn-limit connection-limit connections max-active max-conn max-connections max-conns "
            "max-open-conns max-overflow max-pool-size max-size max-total maximum-pool-size "
            "pool-limit pool-max pool-max-size pool-maxsize"
        ),
        "max-per-host": "pool-per-host",
        "pool-mode": "mode",
        "statsd-host": "statsd",
        "status": "metrics status-addr status-address status-port",
        "pool-size": (
            "max-idle-conns min-conns min-idle min-pool-size min-size minimum-idle "
            "minimum-pool-size pool-min size"
        ),
        "pool-timeout": (
            "acquire-timeout borrow-timeout checkout-timeout connection-timeout max-wait "
            "queue-timeout"
        ),
    }.items()
    for other in others.split()
}
"""What other pools call an option, without dashes. Not here: what means one thing in one pool and
something else in another (max-idle: connections, or seconds), and what no option is here
(idle-timeout, max-waiting)."""

NEEDLESS = dict.fromkeys(
    ("connhealthchecks", "poolpreping", "preping", "testonborrow"),
    "leave it out: idle connections are looked at before each use",
)
"""What other pools must be told and this one need not, with the remedy."""

HELP = "see pooled-serve --help"


def unknown(
    name: str, known: Iterable[str], source: str = "", words: Sequence[str] = ()
) -> Finding:
    """Returns the finding for an option or a variable that does not exist.

    :param words: all that stands there with an option.
    """
    what = "option" if name.startswith("-") else "variable"
    guess = nearest(name, list(known))
    if guess == "--bind":
        guess = f"--bind {_address(words)}"
    hint = f"did you mean {guess}? {HELP}" if guess else _without_a_guess(name)
    text = f"{source}there is no {what} {name}"
    return Finding(Level.WARN, "PS402", "", text, hint)


def _address(words: Sequence[str]) -> str:
    """Returns what --bind takes for "--host HOST --port PORT", which are no options."""
    found = dict.fromkeys(("host", "port"), "")
    pairs = [*zip(words, [*words[1:], ""], strict=True)]
    pairs += [(name, value) for name, _, value in (word.partition("=") for word in words)]
    for name, value in pairs:
        what = {"--address": "host"}.get(name, name.removeprefix("--"))
        if name.startswith("--") and what in found and re.fullmatch(r"[\w.:\[\]]+", value):
            found[what] = value
    host, port = found["host"] or "127.0.0.1", found["port"]
    if host.count(":") > 1 and "[" not in host:
        host = f"[{host}]"
    if not (port.isdecimal() and 0 < int(port[:6]) < 65536):
        if ":" in host and not host.endswith("]"):
            return host  # --host HOST:PORT
        port = "8000"  # gunicorn's default
    return f"{host}:{port}"


def _without_a_guess(name: str) -> str:
    return NEEDLESS.get(_squeezed(name), HELP)


def nearest(name: str, known: list[str]) -> str | None:
    """Returns the known name that was meant, or None."""
    bare = {_bare(item): item for item in known}
    squeezed = {_squeezed(word): item for word, item in bare.items()}
    if (same := squeezed.get(_squeezed(name))) is not None:  # "poolSize"
        return same
    synonym = SYNONYMS.get(_squeezed(name))
    if synonym in bare:
        return bare[synonym]
    if _squeezed(name) in NEEDLESS:
        return None
    found = difflib.get_close_matches(_bare(name), bare, cutoff=CUTOFF)
    meant = next((bare[word] for word in found if not _is_another(_bare(name), word)), None)
    if meant is None:  # a slip in another word for it
        alike = difflib.get_close_matches(_squeezed(name), SYNONYMS, 1, SLIP_CUTOFF)
        meant = next((bare[SYNONYMS[word]] for word in alike if SYNONYMS[word] in bare), None)
    return meant


def _is_another(name: str, word: str) -> bool:
    """Whether a part of the name is another in the word: "lock-timeout" is not "pool-timeout". One
    too many or too few is a slip, as are wrong letters in one; but "idle" never is."""
    parts, others = name.split("-"), word.split("-")
    if "idle" in parts:
        return "idle" not in others
    return _lacks_one_of(parts, others) and _lacks_one_of(others, parts)


def _lacks_one_of(parts: list[str], others: list[str]) -> bool:
    return not all(difflib.get_close_matches(part, others, 1, PART_CUTOFF) for part in parts)


def _squeezed(name: str) -> str:
    return _bare(name).replace("-", "")


def _bare(name: str) -> str:
    """--pool-size, POOLED_SERVE_POOL_SIZE and pool_size are the same word."""
    return name.removeprefix(ENV_PREFIX).lower().replace("_", "-").strip("-")


_NOT_OPTIONS = re.compile(
    "WITHOUT|CHECK|SETTINGS"
    # Kubernetes sets these in every pod if there is a Service named pooled-serve.
    r"|SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_\w+)?"
)


def unknown_variables(environ: Mapping[str, str], settings: Mapping[str, Any]) -> list[Finding]:
    """Returns a finding for each variable that looks like an option but is none.

    :param settings: gunicorn's, by name, which have no such variables.
    """
    found = []
    for name in sorted(environ):
        bare = name.removeprefix(ENV_PREFIX)
        # Kubernetes has an address for the Service's port.
        ports = bare == "PORT" and is_port(environ[name].strip())
        if bare == name or name in VARIABLES or (_NOT_OPTIONS.fullmatch(bare) and not ports):
            continue
        finding = unknown(name, VARIABLES)
        if own := BY_SETTING.get(bare.lower()):  # its name in the file
            finding = replace(finding, hint=f"did you mean {own.variable}?")
        if use := _gunicorns(name, environ[name].strip(), settings):
            finding = replace(finding, hint=use)
        found.append(finding)
    return found


def _gunicorns(variable: str, value: str, settings: Mapping[str, Any]) -> str:
    """Returns how to set what a variable is named after, if that is a setting of gunicorn's; empty
    if it is none. A value is shown only where it can be no secret."""
    name = _squeezed(variable)
    if SYNONYMS.get(name) == "bind":
        text = f"127.0.0.1:{value}" if name == "port" and is_port(value) else "HOST:PORT"
        return _set_by("--bind", text)
    name = _squeezed(SYNONYMS.get(name, name))
    for setting in settings.values():
        own = setting.name in BY_SETTING
        if setting.cli and not own and name in map(_squeezed, (setting.name, *setting.cli)):
            break
    else:
        return ""
    shown = setting.type is int and value.isdecimal()
    shown = shown or (setting.name == "bind" and bool(HOST_AND_PORT.fullmatch(value)))
    if setting.name == "workers":
        return f"use WEB_CONCURRENCY={value if shown else 'N'}, or --workers"
    text = value if shown else str(setting.meta or "VALUE")
    use = _set_by(max(setting.cli, key=len), "" if setting.action == "store_true" else text)
    pools = f"{ENV_PREFIX}POOL_{variable.removeprefix(ENV_PREFIX)}"
    return f"{use}; or {pools} for the pool's" if pools in VARIABLES else use


def _set_by(flag: str, value: str) -> str:
    text = f"{flag} {value}".strip()
    return f"use {text}, or GUNICORN_CMD_ARGS='{text}'"


def stray_words(words: Sequence[str], known: Mapping[str, Any]) -> Iterator[Finding]:
    """Words of GUNICORN_CMD_ARGS that are no options: gunicorn ignores them."""
    flags = [flag for setting in known.values() for flag in setting.cli or ()]
    for word in words[:1]:
        meant = next((flag for flag in flags if flag.lstrip("-") == word.partition("=")[0]), None)
        text = f"GUNICORN_CMD_ARGS: {' '.join(words)} has no effect, since {word} is no option"
        hint = f"did you mean {meant}?" if meant else "leave it out, or name its option before it"
        yield Finding(Level.WARN, "PS402", "", text, hint)


def setting_with_dashes(line: str, known: Mapping[str, Any]) -> str:
    """Returns the setting that a line like "pool-size = 4" means, where Python sees a difference
    that is assigned to; empty if it means none."""
    found = re.match(r"\s*(?:--)?([a-z]+(?:-[a-z]+)+)\s*=(?!=)", line, re.IGNORECASE)
    word = _squeezed(found[1]) if found else ""
    for setting in known.values():
        if word and word in map(_squeezed, (setting.name, *(setting.cli or ()))):
            return str(setting.name)
    return ""


def one_dash(location: str, known: Mapping[str, Any]) -> str:
    """Returns the remedy for "-check", which is -c heck; empty if no option begins with that."""
    meant = f"--c{location}"
    flags = {"--check"} | {flag for setting in known.values() for flag in setting.cli or ()}
    return f"use {meant}, with two dashes" if meant in flags else ""


def near_settings(
    location: str, values: Mapping[str, Any], known: Mapping[str, Any]
) -> Iterator[Finding]:
    """Names in a configuration file that look like settings, and are none.

    A file may define any name. So one counts only if the file never reads it itself, and if it
    begins with "pool\\_", or its value would be good for the setting.

    :param known: Gunicorn's settings, with the pool's among them.
    """
    near = [name for name in values if name not in known and not name.startswith("_")]
    given = _given(values)
    for name in near:
        value = values[name]
        meant = None
        if name not in given:
            continue
        if not callable(value):
            option = _option_meant(name)
            if option and (name.startswith("pool_") or _is_good_for(option.parse, value)):
                meant = option.setting
        meant = meant or _setting_meant(name, value, values, known)
        if meant is None and (callable(value) or not name.startswith("pool_")):
            continue
        too = ", which the file has, too" if meant in values else ""
        hint = f"did you mean {meant}{too}?" if meant else _without_a_guess(name)
        text = f"{location}: there is no setting {name}"
        yield Finding(Level.WARN, "PS402", "", text, hint)


def annotated(
    location: str, values: Mapping[str, Any], known: Mapping[str, Any]
) -> Iterator[Finding]:
    """Settings with a colon, as YAML has them: to Python "workers: 3" is an annotation, and no
    error. Only numbers are looked for: "workers: int" may be meant."""
    for node in _tree(values).body:
        if not isinstance(node, ast.AnnAssign) or node.value is not None:
            continue
        name, value = getattr(node.target, "id", ""), getattr(node.annotation, "value", None)
        if name in known and name not in values and type(value) in (int, float):
            text = f"{location}, line {node.lineno}: {name}: {value} sets nothing"
            yield Finding(Level.WARN, "PS402", "", text, f"use {name} = {value}")


def _tree(values: Mapping[str, Any]) -> ast.Module:
    """Returns what stands in a configuration file, an empty one if it cannot be read."""
    try:
        return ast.parse(Path(values["__file__"]).read_bytes())
    except (KeyError, OSError, SyntaxError, ValueError):
        return ast.Module([], [])


def _given(values: Mapping[str, Any]) -> set[str]:
    """Returns the names that a file defines, and never reads: as settings are."""
    given, read = set[str](), set[str]()
    for node in ast.walk(_tree(values)):
        if isinstance(node, ast.FunctionDef):
            given.add(node.name)
        elif isinstance(node, ast.Name):
            (given if isinstance(node.ctx, ast.Store) else read).add(node.id)
    return given - read


def _setting_meant(
    name: str, value: object, there: Container[str], known: Mapping[str, Any]
) -> str | None:
    """Returns the setting of Gunicorn's that a name and its value are nearly good for.

    :param there: names that the file has. What another word for one of them is, is the user's own.
    """
    near = [
        setting
        for setting, gunicorns in known.items()
        if callable(value) == (gunicorns.section == "Server Hooks")
    ]
    free = [setting for setting in near if setting not in there]
    squeezed = {_squeezed(flag): setting for setting in free for flag in known[setting].cli or ()}
    squeezed |= {_squeezed(setting): setting for setting in near}
    meant = squeezed.get(_squeezed(name))  # "keep_alive"; or "preload", as the option has it
    if meant is None:
        as_long = [setting for setting in near if abs(len(setting) - len(name)) < LONGER]
        found = difflib.get_close_matches(name.lower(), as_long, n=1, cutoff=NEAR_CUTOFF)
        found += [setting for setting in near if _is_slip(name.lower(), setting)]
        meant = found[0] if found else None
    return meant if meant and _is_good_for(known[meant].validator, value) else None


def _is_slip(name: str, setting: str) -> bool:
    """Whether one letter of a name is wrong, missing or too many, or two have changed places. Not
    the first letter, which is seldom wrong: "kind" is a word of its own, and not "bind"."""
    short, long = sorted((name, setting), key=len)
    same = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(short, long, strict=False))))
    short, long = short[same:], long[same:]
    swapped = len(short) > 1 and short[1::-1] + short[2:] == long
    return swapped or (same > 0 and long[1:] in (short, short[1:]))


def _option_meant(name: str) -> Option | None:
    for option in OPTIONS:
        if name == option.setting.removeprefix("pool_") or _bare(name) == _bare(option.flag):
            return option
    guess = nearest(name, [*BY_SETTING, *(option.flag for option in OPTIONS)])
    return next((o for o in OPTIONS if guess in (o.setting, o.flag)), None)


def _is_good_for(parse: Callable[[Any], object], value: object) -> bool:
    try:
        parse(value)
    except Exception:
        return False
    return True
