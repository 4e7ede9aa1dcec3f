"""Every pool option, once: flag, setting, values, default, help.

The command line, ``POOLED_SERVE_*``, gunicorn's settings (and with them the configuration file
and ``GUNICORN_CMD_ARGS``) and :mod:`pooled_serve.pooling` all derive from this table.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from pooled_serve.tuning import switches

ENV_PREFIX = "POOLED_SERVE_"

DEFAULT_SIZE = 4
DEFAULT_CAP_FACTOR = 3
DEFAULT_MAX_AGE = 60.0

MAX_PER_HOST = 1024
"""There is shared memory for so many connections to a database."""


@dataclass(frozen=True)
class AliasSize:
    """The size and cap of one pool, from ``--pool ALIAS:SIZE[:MAX]``."""

    alias: str
    size: int
    cap: float | None = None  # None: that of --max-outstanding


# --- Values ------------------------------------------------------------------------------------
# Each accepts text and, from configuration files, Python values; each raises ValueError with a
# message that reads on from the option's name, and ends in a remedy.

REMEDY, EXAMPLE = " → ", "for example "
"""Between a message and its remedy; and between that and a value."""


def complaint(error: Exception, name: str) -> str:
    """Returns an error's text, the example in it written as the value was: "--pool-size 12"."""
    return str(error).replace(REMEDY + EXAMPLE, f"{REMEDY}{EXAMPLE}{name}")


def count(value: object, example: int = DEFAULT_SIZE) -> int:
    """A whole number above 0. The remedy's example is one that somebody would want there."""
    try:
        number = int(value) if isinstance(value, str) else value
    except ValueError:
        number = None
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ValueError(f"must be a whole number above 0, not {value!r}{REMEDY}{EXAMPLE}{example}")
    return number


def tokens(value: object) -> int:
    """A whole number above 0, of what can be shared by all processes of a host."""
    number = count(value, 60)
    if number > MAX_PER_HOST:
        raise ValueError(f"must be at most {MAX_PER_HOST}, not {number}{REMEDY}use {MAX_PER_HOST}")
    return number


def limit(value: object) -> float:
    """A whole number above 0, or ``unlimited``: infinity."""
    return _or_infinity(value, "unlimited", partial(count, example=12))


def seconds(value: object, example: int = 10) -> float:
    """A number above 0."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = 0.0
    if isinstance(value, bool) or not 0 < number < math.inf:
        use = f"{EXAMPLE}{example}"
        if isinstance(value, str) and (found := _WITH_UNIT.fullmatch(value.strip())):
            use = f"{EXAMPLE}{int(found[1]) * _UNITS[found[2][0]]}"
        raise ValueError(f"must be a number of seconds above 0, not {value!r}{REMEDY}{use}")
    return number


_WITH_UNIT = re.compile(r"([1-9]\d{0,5}) ?(s|sec|seconds|m|min|minutes|h|hours|d|days)")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds_or_none(value: object) -> float:
    """A number above 0, or ``none``: infinity."""
    return _or_infinity(value, "none", partial(seconds, example=60))


def _or_infinity(value: object, word: str, parse: Callable[[object], float]) -> float:
    if value in (word, math.inf):
        return math.inf
    try:
        return parse(value)
    except ValueError as error:
        raise ValueError(str(error).replace(", not ", f" or {word!r}, not ", 1)) from None


def address(value: object) -> str:
    """HOST:PORT, where an empty HOST means the loopback address, or ``unix:PATH``."""
    text = str(value)
    host, colon, port = text.rpartition(":")
    if isinstance(value, str) and text.startswith("unix:") and text != "unix:":
        return text
    what, use = "HOST:PORT or unix:PATH", ""
    if isinstance(value, str) and colon and HOST_AND_PORT.fullmatch(text) and "/" not in host:
        if port.isdecimal() and 0 < int(port) < 65536:
            return text
        if port.isdecimal():
            what = "HOST:PORT with a port from 1 to 65535"
            use = f"{EXAMPLE}{host or '127.0.0.1'}:8001"
    use = use or (f"use 127.0.0.1:{text}" if is_port(text) else with_brackets(text))
    raise ValueError(f"must be {what}, not {value!r}{REMEDY}{use or f'{EXAMPLE}127.0.0.1:8001'}")


HOST_AND_PORT = re.compile(r"(\[[^\[\]]+\]|[^\[\]:]*)(:[^\[\]:]*)?")
"""Gunicorn reads other texts, too, and leaves out what it does not expect."""


def is_port(text: str) -> bool:
    """Whether a number alone is meant for a port: a 4 is another number, and a 1 means "on"."""
    number = int(text[:6]) if text.isdecimal() else 0
    return number in (80, 443) or 1024 <= number < 65536


def with_brackets(text: str) -> str:
    """Returns the remedy for an IPv6 address with a port that has no brackets; empty for others."""
    host, _, port = text.rpartition(":")
    with contextlib.suppress(ValueError):
        if port.isdecimal() and 0 < int(port) < 65536:
            return f"use [{ipaddress.IPv6Address(host)}]:{port}"
    return ""


def one_of(*values: str) -> Callable[[object], str]:
    """Returns a parser that accepts these words only."""

    def parse(value: object) -> str:
        if value not in values:
            text = f"must be {' or '.join(map(repr, values))}, not {value!r}"
            raise ValueError(f"{text}{REMEDY}use {' or '.join(values)}")
        return str(value)

    return parse


def flag(value: object) -> bool:
    """A boolean, as environment variables spell it."""
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off", ""):
        return False
    raise ValueError(f"must be 1 or 0, not {value!r}{REMEDY}use 1 or 0")


def alias_sizes(value: object) -> tuple[AliasSize, ...]:
    """One or more ``ALIAS:SIZE[:MAX]``, as a list or separated by commas."""
    if isinstance(value, AliasSize):
        return (value,)
    if isinstance(value, str):
        return tuple(_alias_size(part) for part in value.split(",") if part.strip())
    if isinstance(value, Iterable):
        return tuple(item for part in value for item in alias_sizes(part))
    raise _bad_alias_size(value)


def _alias_size(text: str) -> AliasSize:
    alias, *numbers = text.strip().split(":")
    try:
        if not alias or len(numbers) not in (1, 2):
            raise ValueError
        return AliasSize(alias, count(numbers[0]), limit(numbers[1]) if numbers[1:] else None)
    except ValueError:
        raise _bad_alias_size(text) from None


def _bad_alias_size(value: object) -> ValueError:
    use = f"use --pool-size {value}" if str(value).isdecimal() else f"{EXAMPLE}default:4:12"
    return ValueError(f"must be ALIAS:SIZE or ALIAS:SIZE:MAX, not {value!r}{REMEDY}{use}")


# --- The table ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Option:
    """One option. ``default`` is the value of ``cfg.<setting>`` if none was given."""

    flag: str
    setting: str
    parse: Callable[[object], Any]
    metavar: str
    help: str
    default: object = None
    essential: bool = False  # whether it is one of the six that everybody needs

    @property
    def variable(self) -> str:
        """The name of the environment variable."""
        return ENV_PREFIX + self.flag.removeprefix("--").replace("-", "_").upper()

    @property
    def is_flag(self) -> bool:
        """Whether it takes no value."""
        return self.parse is flag

    @property
    def repeats(self) -> bool:
        """Whether it may be given more than once."""
        return self.parse is alias_sizes


def _option(*args: Any, adjustable: bool = False, **named: Any) -> Any:
    """A field of :class:`PoolOptions`.

    :param adjustable: the plan may lower the default, so it must see whether a value was given.
    """
    option = Option(*args, **named)
    return field(default=None if adjustable else option.default, metadata={"option": option})


@dataclass(frozen=True)
class PoolOptions:
    """The value given for each option, from whatever source, or its default; None if the default is
    adjustable, or there is none."""

    size: int | None = _option(
        "--pool-size",
        "pool_size",
        count,
        "N",
        "Connections kept open per worker and database.",
        DEFAULT_SIZE,
        adjustable=True,
        essential=True,
    )
    cap: float | None = _option(
        "--max-outstanding",
        "max_outstanding",
        limit,
        "N|unlimited",
        "Cap on connections in use at once per worker and database; further requests queue, first "
        f"come first served. Default: {DEFAULT_CAP_FACTOR} x pool-size, or --max-per-host if set.",
        essential=True,
    )
    timeout: float = _option(
        "--pool-timeout",
        "pool_timeout",
        seconds,
        "SECONDS",
        "How long a request may wait for a connection (queue and connect) before it gets 503.",
        10.0,
        essential=True,
    )
    max_age: float | None = _option(
        "--conn-max-age",
        "conn_max_age",
        seconds_or_none,
        "SECONDS|none",
        "Retire a connection at this age; must be below the server's wait_timeout. Default: "
        f"CONN_MAX_AGE of the settings if above 0, else {DEFAULT_MAX_AGE:g}.",
    )
    mode: str = _option(
        "--pool-mode",
        "pool_mode",
        one_of("request", "transaction"),
        "request|transaction",
        "When a connection goes back: at the end of the request, or as soon as no transaction or "
        "session state needs it.",
        "request",
        essential=True,
    )
    reset: str = _option(
        "--pool-reset",
        "pool_reset",
        one_of("auto", "always", "rollback"),
        "auto|always|rollback",
        "What is cleaned when it does: open transactions, and the session if a statement touched "
        "it; the session always; or open transactions only.",
        "auto",
    )
    overload: str = _option(
        "--pool-overload",
        "pool_overload",
        one_of("shed", "wait"),
        "shed|wait",
        "What happens when requests arrive faster than connections come back: late ones get 503 "
        "early, so that the others are served in time; or all wait for pool-timeout.",
        "shed",
    )
    aliases: tuple[AliasSize, ...] = _option(
        "--pool",
        "pool_aliases",
        alias_sizes,
        "ALIAS:SIZE[:MAX]",
        "Pool size and cap of one database; may be repeated.",
        (),
    )
    per_host: int | None = _option(
        "--max-per-host",
        "pool_max_per_host",
        tokens,
        "N",
        "Cap on connections per database of all workers on this host together, whatever their "
        "number; a worker may then use up to N. Default: off.",
        essential=True,
    )
    client_check: float | None = _option(
        "--client-check",
        "pool_client_check",
        partial(seconds, example=2),
        "SECONDS",
        "Look whether clients are still there while their requests wait for a connection, or are "
        "in a statement for longer than this; a GET whose client has hung up is ended. "
        "Default: off.",
    )
    replicas: int = _option(
        "--replicas",
        "pool_replicas",
        partial(count, example=2),
        "N",
        "Hosts that run this command: multiplies the connection budget.",
        1,
    )
    leak_threshold: float | None = _option(
        "--leak-threshold",
        "pool_leak_threshold",
        partial(seconds, example=5),
        "SECONDS",
        "Warn, with the stack that took it, when a connection is held longer. Default: off.",
    )
    status: str | None = _option(
        "--status",
        "pool_status",
        address,
        "ADDR",
        "Serve a status page, /stats.json, /metrics, /livez and /readyz here: HOST:PORT or "
        "unix:PATH. Default: off.",
        essential=True,
    )
    strict: bool = _option(
        "--strict",
        "pool_strict",
        flag,
        "",
        "Refuse to start on warnings, and when a database cannot be reached.",
        default=False,
    )

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> PoolOptions:
        """From parsed values by setting name; a missing one or None was not given."""
        given = {f.name: values.get(f.metadata["option"].setting) for f in fields(cls)}
        return cls(**{name: value for name, value in given.items() if value is not None})

    def alias(self, name: str) -> AliasSize | None:
        """The last ``--pool`` for a database; None if there is none."""
        return next((item for item in reversed(self.aliases) if item.alias == name), None)


OPTIONS: tuple[Option, ...] = tuple(f.metadata["option"] for f in fields(PoolOptions))
BY_SETTING = {option.setting: option for option in OPTIONS}
VARIABLES = [option.variable for option in OPTIONS]


def from_environment(environ: Mapping[str, str]) -> list[tuple[Option, str]]:
    """The options that ``POOLED_SERVE_*`` variables set, with their text.

    :raises ValueError: naming the variable.
    """
    switches.off(environ)  # not an option, but checked with them
    found = []
    for option in OPTIONS:
        text = environ.get(option.variable)
        if text is None or not text.strip():
            continue
        try:
            option.parse(text)
        except ValueError as error:
            name = option.variable
            said = complaint(error, f"{name}=")
            bare = text.strip().strip("'\"")
            with contextlib.suppress(ValueError):
                option.parse(bare)
                said = f"{said.partition(REMEDY)[0]}{REMEDY}use {name}={bare}, without the quotes"
            raise ValueError(f"{name}: {said}") from None
        found.append((option, text))
    return found


def register_settings() -> None:
    """Make each option a gunicorn setting, before a gunicorn Config is made. Can be repeated."""
    from gunicorn import config

    known = {setting.name for setting in config.KNOWN_SETTINGS}
    for option in OPTIONS:
        if option.setting not in known:
            _make_setting(option, config.Setting)


def _make_setting(option: Option, base: Any) -> None:
    def validator(value: object) -> object:
        return None if value is None else option.parse(value)

    def parse_text(text: str) -> object:
        try:
            return option.parse(text)
        except ValueError as error:
            # The only exception whose message argparse shows.
            raise argparse.ArgumentTypeError(complaint(error, f"{option.flag} ")) from None

    def get(setting: Any) -> object:
        # .value stays None, "not given"; users of cfg.pool_size get the default.
        return option.default if setting.value is None else setting.value

    # gunicorn's metaclass registers every subclass.
    type(base)(
        option.setting.title().replace("_", ""),
        (base,),
        {
            "name": option.setting,
            "section": "Connection Pool",
            "cli": [option.flag],
            "meta": None if option.is_flag else option.metavar,
            # BooleanOptionalAction: POOLED_SERVE_STRICT=0 can then override a file.
            "action": argparse.BooleanOptionalAction
            if option.is_flag
            else "append"
            if option.repeats
            else None,
            "type": staticmethod(parse_text),
            "validator": validator,
            "default": None,
            "desc": option.help,
            "get": get,
        },
    )
