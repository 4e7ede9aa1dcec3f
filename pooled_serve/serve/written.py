"""Where settings were written, so that messages name each as the user wrote it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pooled_serve.options import BY_SETTING

COMMAND_LINE, ARGUMENTS = "the command line", "GUNICORN_CMD_ARGS"
"""Names of sources; the configuration file's is its path, and a variable's its own."""

GUNICORNS_VARIABLES = {"workers": "WEB_CONCURRENCY", "bind": "PORT"}
"""Variables from which gunicorn takes the default of a setting."""

_VALUE = r"none|unlimited|HOST:PORT|unix:PATH|(?=\S*\d)[\w.:\[\]]*[\w\]]"
_OPTION = rf"--?[a-z][a-z-]*(?: (?:{_VALUE})(?![\w-]))?"
_PAIR = re.compile(rf"(--?[a-z][a-z-]*)(?: ({_VALUE}))?")
_RUN = re.compile(rf"(?<![\w-]){_OPTION}(?: {_OPTION})*")


def named(setting: Any) -> str:
    """Returns the longest of a setting's options: "--error-logfile", not "--log-file"."""
    return str(max(setting.cli or [setting.name], key=len))


@dataclass(frozen=True)
class Place:
    """One place in which a setting was written."""

    source: str
    setting: Any
    value: object
    in_file: bool = False

    @property
    def name(self) -> str:
        """The setting as it is called there, and the source, if that is not the command line."""
        if self.source == COMMAND_LINE:
            return named(self.setting)
        if self._is_variable:
            return self.source
        return f"{self.source}: {self.setting.name if self.in_file else named(self.setting)}"

    @property
    def _is_variable(self) -> bool:
        return not self.in_file and self.source not in (COMMAND_LINE, ARGUMENTS)

    @property
    def _short(self) -> str:
        """The source without its folder, if that is this one."""
        folder, name = os.path.split(self.source)
        return name if self.in_file and folder in ("", os.getcwd()) else self.source

    def assigned(self, flag: str, text: str) -> tuple[str, str]:
        """Returns what to write here instead of an option, and where; the second is empty if the
        first says so.

        :param text: the option's value; empty for its name alone.
        """
        if self._is_variable:
            return f"{self.source}={text}" if text else self.source, ""
        if not self.in_file:
            return f"{flag} {text}".strip(), "" if self.source == COMMAND_LINE else self._short
        number = text.replace(".", "", 1).isdecimal()
        value = f" = {text if number else repr(text)}" if text else ""
        return f"{self.setting.name}{value}", self._short

    def removal(self, flag: str) -> str:
        """Returns what to remove, and from where."""
        value = getattr(self.value, "__name__", self.value)
        word, _ = self.assigned(flag, str(value))
        return f"{word} from {self._short}"


class Written:
    """All places in which settings were written.

    :param settings: gunicorn's, by name.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings
        self._places: dict[str, list[Place]] = {}  # the strongest source first
        named = {*BY_SETTING, "bind", "worker_connections", "workers"}
        self._flags = {flag: name for name in named for flag in settings[name].cli}

    def add(self, source: str, values: Mapping[str, object], *, in_file: bool = False) -> None:
        """Add what a source sets: the strongest source first."""
        for name, value in values.items():
            if value is not None and name in self._settings:
                place = Place(source, self._settings[name], value, in_file)
                self._places.setdefault(name, []).append(place)

    def places(self, name: str) -> list[Place]:
        """Returns where a setting was written, the place that counts first."""
        return self._places.get(name, [])

    def name(self, name: str, value: object = None) -> str:
        """Returns a setting as it was written where it counts.

        :param value: where this is, if it is anywhere.
        """
        places = self.places(name)
        place = next((p for p in places if p.value == value), places[0] if places else None)
        return place.name if place else named(self._settings[name])

    def as_written(self, text: str) -> str:
        """Returns a text in which each option that was written elsewhere than on the command line
        is named as it is there: "use pool_size = 4 in gunicorn.conf.py", not "--pool-size 4"."""
        return _RUN.sub(self._rewritten, text)

    def _rewritten(self, run: re.Match[str]) -> str:
        words = [self._assigned(flag, value) for flag, value in _PAIR.findall(run[0])]
        if " ".join(word for word, _ in words) == run[0] and not any(where for _, where in words):
            return run[0]
        return _joined(words)

    def _assigned(self, flag: str, value: str) -> tuple[str, str]:
        places = self.places(self._flags.get(flag, ""))
        # A port alone cannot say all that --bind can.
        if not places or places[0].source == GUNICORNS_VARIABLES["bind"]:
            return f"{flag} {value}".strip(), ""
        return places[0].assigned(flag, value)


def _joined(words: list[tuple[str, str]]) -> str:
    """Joins what is to be written, the place once where it is the same for all."""
    places = {where for _, where in words}
    if len(places) == 1:
        (where,) = places
        return " and ".join(word for word, _ in words) + (where and f" in {where}")
    return " and ".join(word + (where and f" in {where}") for word, where in words)
