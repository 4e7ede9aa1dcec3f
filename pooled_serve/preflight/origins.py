"""Where the values of a connect are from, DATABASES or an option file, so that a remedy names the
place; and what was meant to give some, and has no effect."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pooled_serve.errors import Finding, Level
from pooled_serve.preflight.reports import DatabaseReport

SETTINGS = {
    "host": "HOST",
    "port": "PORT",
    "user": "USER",
    "password": "PASSWORD",
    "database": "NAME",
}
"""What an option file has another name for."""

KEYS = (
    *("ATOMIC_REQUESTS", "AUTOCOMMIT", "CONN_HEALTH_CHECKS", "CONN_MAX_AGE", "ENGINE", "HOST"),
    *("NAME", "OPTIONS", "PASSWORD", "PORT", "TEST", "TIME_ZONE", "USER"),
)
_SYNONYMS = {
    **dict.fromkeys(("DATABASE", "DB"), "NAME"),
    **dict.fromkeys(("HOSTNAME", "HOST_NAME", "SERVER"), "HOST"),
    **dict.fromkeys(("PASS", "PASSWD", "PWD"), "PASSWORD"),
    **dict.fromkeys(("LOGIN", "USERNAME", "USER_NAME"), "USER"),
}
"""Words of other configurations, for what Django calls otherwise."""
_PREFIXES = ("DATABASE_", "DB_", "MYSQL_")
"""Of variables of the environment, whose names become keys: DB_USER, DATABASE_NAME."""
KEY_CUTOFF = 0.8
"""Of difflib's ratio, for a key that may have been meant: "PASSWD" has 0.86 of "PASSWORD"."""

_WHERE = frozenset({"host", "port", "socket"})
_LOGIN = frozenset({"host", "user", "password"})  # another server may refuse it, too
_BEHIND = {
    "PS301": _WHERE,
    "PS302": _WHERE,
    "PS303": _LOGIN,
    "PS304": _LOGIN | {"database"},
    "PS309": frozenset({"host", "ssl"}),
}
"""Which values may be behind a failed connect."""

_JOINT = "; "
"""Between the problem of a connect and what may be behind it."""

_OF_SERVERS = ("mysqld", "mariadbd", "mariadb-server", "server")


@dataclass(frozen=True)
class Doubt:
    """Something that was meant to give values, and has no effect."""

    code: str
    text: str
    hint: str
    words: frozenset[str]  # what is missing, and may be missing for that


class Origins:
    """Where the values of one database are from."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        # Not above: --help does without PyMySQL, which it needs.
        from pooled_serve.driver import option_files, parameters

        given = {word: settings[name] for word, name in SETTINGS.items() if settings.get(name)}
        given |= settings.get("OPTIONS") or {}
        for old, new in (("passwd", "password"), ("db", "database")):
            if given.get(old):
                given[new] = given[old]
        if str(given.get("host", "")).startswith("/"):  # as Django does
            given["unix_socket"] = given["host"]
        self._given = given
        self._file: str | None = given.get("read_default_file")
        group = given.get("read_default_group")
        self._groups = option_files.groups_read(group)
        files = [self._file] if self._file else option_files.DEFAULT_FILES if group else ()
        self._lines = [line for file in files for line in option_files.options(file)]
        self._found = {line.name: line for line in self._lines if line.group in self._groups}
        self._words = {name: word for name, (word, _) in parameters.FILE_WORDS.items()}
        self.doubts = (*_misspelt_keys(settings, self._lacking()), *self._of_file())

    # --- Where to correct something ------------------------------------------------------------

    def file_of(self, name: str) -> str | None:
        """Returns the option file that a connect has this from; None if it is not from one."""
        line = self._found.get(name)
        return line.file if line and line.value and self._lacks(name) else None

    def place(self, *names: str) -> str:
        """Returns where to correct them, as in "USER and PASSWORD in DATABASES". What is nowhere
        belongs to the others."""
        files = {name: self.file_of(name) for name in names}
        first = next(filter(None, files.values()), None)
        places: dict[str, list[str]] = {}
        for name, file in files.items():
            place = file or (first if first and self._lacks(name) else None)
            word = name if place else SETTINGS[name]
            places.setdefault(place or "DATABASES", []).append(word)
        return " and ".join(f"{' and '.join(words)} in {place}" for place, words in places.items())

    def option(self, word: str) -> str:
        """Returns where to correct one of OPTIONS."""
        name = next((name for name, its in self._words.items() if its == word), word)
        file = self.file_of(name)
        return f"{name} in {file}" if file else f"OPTIONS[{word!r}] in DATABASES"

    def tls(self, *words: str) -> str:
        """Returns where to correct what is said of TLS.

        :param words: those of OPTIONS.
        """
        names = [n for n in self._found if n.startswith("ssl-") and self.file_of(n)]
        places = [f"{name} in {self.file_of(name)}" for name in names]
        if not places or any(self._given.get(word) for word in words):
            places.append(" and ".join(f"OPTIONS[{word!r}]" for word in words) + " in DATABASES")
        return " and ".join(places)

    def login(self) -> str:
        """Returns where to correct user and password. A "#" in one without quotes is kept by some
        clients, and begins a comment for others."""
        place = self.place("user", "password")
        if self.file_of("password") and self._found["password"].cut:
            place += " (the password ends before the #, unless it has quotes)"
        return place

    # --- What has no effect --------------------------------------------------------------------

    def lost(self, *names: str) -> bool:
        """Whether one of them may be missing for something that has no effect."""
        return any(doubt.words & {*names} for doubt in self.doubts)

    def explain(self, problem: Finding) -> Finding:
        """Returns the finding for a failed connect with what has no effect, if that may be behind
        it: the remedy is then that for this."""
        for doubt in self.doubts:
            if doubt.words & _BEHIND.get(problem.code, frozenset()):
                message = f"{problem.message}{_JOINT}{doubt.text}"
                return replace(problem, message=message, hint=doubt.hint)
        return problem

    def findings(self, report: DatabaseReport) -> Iterator[Finding]:
        """What has no effect, and is not told with the problem of the connect."""
        for doubt in self.doubts:
            told = report.problem.message if report.problem else ""
            if not told.endswith(f"{_JOINT}{doubt.text}"):
                yield Finding(Level.WARN, doubt.code, report.alias, doubt.text, doubt.hint)

    def _of_file(self) -> Iterator[Doubt]:
        from pooled_serve.driver import option_files

        if self._file and option_files.unreadable(self._file):
            text = f"OPTIONS name the option file {self._file}, which cannot be read"
            hint = "correct read_default_file, or let this user read it"
            yield Doubt("PS112", f"{text}, so it is left out", hint, self._lacking())
        elif self._file and not any(line.group in self._groups for line in self._lines):
            yield from self._without_group()
        yield from self._misspelt_options()

    def _without_group(self) -> Iterator[Doubt]:
        names = {line.name for line in self._lines}
        known = {"socket", "protocol", *self._words}
        if not any(name in known or name.startswith("ssl-") for name in names):
            return  # nothing that a connect would use
        group = self._given.get("read_default_group")
        wanted = f"[client] or [{group}]" if group else "[client]"
        there = list(dict.fromkeys(line.group for line in self._lines if line.group))
        shown = ", ".join(f"[{each}]" for each in there) or "none"
        text = f"{self._file} has no group {wanted} (it has {shown}), so it has no effect"
        clients = [each for each in there if not each.startswith(_OF_SERVERS)]
        if not there:
            hint = "begin it with the line [client]"
        elif len(clients) == 1 and len(there) == 1 and not group:
            hint = f"name the group [client], or set OPTIONS['read_default_group'] = {clients[0]!r}"
        else:
            hint = f"give it a group {wanted}"
        yield Doubt("PS112", text, hint, self._lacking() & {_word(name) for name in names})

    def _misspelt_options(self) -> Iterator[Doubt]:
        from pooled_serve.driver import parameters

        known = ("socket", *SETTINGS)
        for name, line in self._found.items():
            # Letters alone: of "password: secret" the name is all of the line.
            if not line.value or name in known or not re.fullmatch("[a-z-]+", name):
                continue
            swapped = next((each for each in known if sorted(each) == sorted(name)), None)
            near = swapped or parameters.nearest(name, known)
            if near and near not in self._found and self._lacks(near):
                text = f"{line.file} has an option {name!r}, which no client knows"
                hint = f"did you mean {near!r}?"
                yield Doubt("PS112", f"{text}, so it has no effect", hint, frozenset({near}))

    # --- What there is -------------------------------------------------------------------------

    def _lacking(self) -> frozenset[str]:
        """Returns what DATABASES do not say. A host that they name has its usual port."""
        names = set(filter(self._lacks, ("socket", "ssl", *SETTINGS)))
        return frozenset(names if names & {"host", "socket"} else names - {"port"})

    def _lacks(self, name: str) -> bool:
        """Whether DATABASES leave this to an option file."""
        from pooled_serve.driver import parameters

        given = self._given
        if name == "host":
            return not given.get("host") and not given.get("unix_socket")
        if name == "socket":
            host = self._found.get("host")
            tcp = (getattr(self._found.get("protocol"), "value", "") or "").upper() == "TCP"
            by_name = parameters.by_name({"host": given.get("host") or (host and host.value)})
            return by_name and not tcp and not given.get("unix_socket")
        if name == "ssl":
            return not any(word.startswith("ssl") for word in given)
        if name.startswith("ssl-") and name not in self._words:
            tls = given.get("ssl") or {}
            return isinstance(tls, dict) and not tls.get(name.removeprefix("ssl-"))
        return not given.get(self._words.get(name, name))


def _word(name: str) -> str:
    """Returns which of the words of a doubt an option of a file gives."""
    if name.startswith("ssl-"):
        return "ssl"
    return "socket" if name == "protocol" else name


def misspelt(settings: Mapping[str, Any]) -> dict[str, str]:
    """Returns keys that Django does not know, and those that are meant. Engines have keys of their
    own: another word, which is not just misspelt, counts only where the one that is meant lacks."""
    found = {}
    for key in settings:
        if not isinstance(key, str) or key in KEYS:
            continue
        word = key.upper().replace("-", "_")
        swapped = [known for known in KEYS if sorted(known) == sorted(word)]
        near = swapped or difflib.get_close_matches(word, KEYS, n=1, cutoff=KEY_CUTOFF)
        prefix = next(filter(word.startswith, _PREFIXES), "")
        bare = word.removeprefix(prefix)
        meant = _SYNONYMS.get(word) or _SYNONYMS.get(bare, bare if prefix else "")
        if near:
            found[key] = near[0]
        elif meant in {*_SYNONYMS.values(), "PORT"} and not settings.get(meant):
            found[key] = meant
    return found


def _misspelt_keys(settings: Mapping[str, Any], lacking: frozenset[str]) -> Iterator[Doubt]:
    """Keys that Django does not know, all in one."""
    found = misspelt(settings)
    if not found:
        return
    one = len(found) == 1
    keys, meant = (" and ".join(map(repr, words)) for words in (found, found.values()))
    text = (
        f"DATABASES has {'a key' if one else 'keys'} {keys}, which Django does not know, so "
        f"{'it has' if one else 'they have'} no effect"
    )
    words = {name: word for word, name in SETTINGS.items()}
    given: set[str] = set()
    for key, name in found.items():
        given |= _in_options(settings[key]) if name == "OPTIONS" else {words.get(name, "")}
    lost = lacking | ({"port"} if not settings.get("PORT") else set())
    yield Doubt("PS110", text, f"did you mean {meant}?", frozenset(given & lost))


def _in_options(options: object) -> set[str]:
    """Returns what these OPTIONS would give."""
    if not isinstance(options, dict):
        return set()
    if options.keys() & {"read_default_file", "read_default_group"}:
        return {"socket", "ssl", *SETTINGS}
    names = {"passwd": "password", "db": "database", "unix_socket": "socket"}
    names |= {word: "ssl" for word in options if str(word).startswith("ssl")}
    return {names.get(str(word), str(word)) for word in options}


def expanded_home(settings: Mapping[str, Any]) -> tuple[str, str] | None:
    """Returns the option file that OPTIONS name in somebody's home, and its full path."""
    file = settings["OPTIONS"].get("read_default_file")
    if not isinstance(file, str) or not file.startswith("~"):
        return None
    return file, os.path.expanduser(file)
