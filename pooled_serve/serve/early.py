"""What loads Django too early: before gevent has patched, in the worker or, with --preload, in the
master.

``django.db`` then keeps its connections for a thread, not for a greenlet, so that requests get each
other's. And gevent, which looks at all objects for locks to replace, loads settings that were
imported only: while it patches, and in vain if nothing has named them yet.

Imports no Django.
"""

from __future__ import annotations

import dis
import inspect
import logging
import os
import re
import sys
import sysconfig
import threading
from collections.abc import Iterator, Mapping
from importlib.abc import MetaPathFinder
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

from pooled_serve.errors import EXIT_USAGE, Finding, Level, StartupError, startup_error
from pooled_serve.preflight.failures import SETTINGS_VARIABLE

log = logging.getLogger("gunicorn.error")

CODE = "PS408"
"""Of a warning, too, that ``--check`` and ``--strict`` refuse."""

HOOKS = (
    *("on_starting", "on_reload", "when_ready", "pre_fork", "post_fork"),
    *("nworkers_changed", "child_exit"),
)
"""Those of gunicorn that run before the patch of a worker."""

LOADS_CONNECTIONS = re.compile(
    r"django\.(contrib|db|forms|http|shortcuts|template|test|urls|views"
    r"|core\.(checks|handlers|management|wsgi)|utils\.log)(\.|$)"
)
"""Modules that import django.db."""

_REMEDY = (
    "import Django, and what imports it, inside of post_worker_init(worker), or of functions that "
    "run later in the worker"
)

_LAUNCHER = "what has started this command"
_LAUNCHER_REMEDY = (
    "start it without that launcher, or have that leave Django to the project, as "
    "opentelemetry-instrument does with OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=django (the wsgi "
    "module can call DjangoInstrumentor().instrument())"
)

_NOT_SET_UP = {
    f"django.core.exceptions.{name}" for name in ("ImproperlyConfigured", "AppRegistryNotReady")
}
"""What Django says to who uses it before there are settings, or apps."""

_STAYS = {*sys.stdlib_module_names, "pooled_serve", "gunicorn", "gevent", "greenlet", "pymysql"}

_BOUND = "pooled_serve.backend"
"""What has Django's classes in it, once it is imported."""

_CALLERS = {"pooled_serve", "gunicorn", "gevent", "django"}
"""Packages that import for the user."""

_COMMAND = str(Path(__file__).parent) + os.sep
_STDLIB = sysconfig.get_path("stdlib") + os.sep


class Watch(MetaPathFinder):
    """Notes who imports ``django.db`` before threading.local is gevent's. Finds no module."""

    def __init__(self) -> None:
        self.place = ""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Returns None, so that the other finders are asked."""
        if name == "django.db" and not _patched():
            self.place = _place(inspect.currentframe())
        return None


def _patched() -> bool:
    """Whether threading.local is gevent's; gevent.monkey says so only after the patch."""
    return threading.local.__module__.startswith("gevent")


_watch = Watch()


def watch() -> None:
    """Begin, before the configuration file is read. What runs before the command, such as a
    sitecustomize of an agent's, may have loaded Django already."""
    if _watch in sys.meta_path:
        return
    sys.meta_path.insert(0, _watch)
    if "django.db" in sys.modules and not _patched():
        _watch.place = _LAUNCHER


def _place(frame: FrameType | None) -> str:
    """Returns where the command has called the user's code that imports this: file, line, function.

    Code of an installed package counts if there is no other. Where there is none, gunicorn sets up
    its log, with a class of Django's.
    """
    found = installed = None
    frame = frame and frame.f_back  # find_spec() is here
    while frame is not None and not frame.f_code.co_filename.startswith(_COMMAND):
        file = frame.f_code.co_filename
        if _top(frame.f_globals.get("__name__", "")) in _CALLERS or file.startswith("<"):
            pass
        elif "-packages" + os.sep in file:  # which may be below that of the standard library
            installed = frame
        elif not file.startswith(_STDLIB):
            found = frame
        frame = frame.f_back
    found = found or installed
    if found is None:
        return "logger_class, logconfig, or logconfig_dict,"
    name = found.f_code.co_name
    inside = "" if name == "<module>" else f" ({name})"
    return f"{found.f_code.co_filename}, line {found.f_lineno}{inside},"


def refuse(environ: Mapping[str, str] | None = None) -> None:
    """Check that Django is not loaded yet, or was loaded after the patch.

    :param environ: variables that a worker has on top of this process's.
    :raises StartupError: PS408.
    """
    if _watch.place and "django.db" in sys.modules:
        raise startup_error(
            CODE,
            f"{_watch.place} loads Django before gevent has patched: requests would get each "
            "other's connections",
            _LAUNCHER_REMEDY if _watch.place == _LAUNCHER else _REMEDY,
        )
    conf: Any = sys.modules.get("django.conf")
    if (
        hasattr(conf, "settings")
        and not _patched()
        and not conf.settings.configured
        and SETTINGS_VARIABLE not in {**os.environ, **(environ or {})}
    ):
        raise startup_error(
            CODE,
            f"django.conf is imported before gevent has patched, and {SETTINGS_VARIABLE} is not "
            "set: gevent would fail, because it looks at all objects, these settings included",
            f"set {SETTINGS_VARIABLE} (--settings MODULE), or {_REMEDY}",
        )


def remedy(error: BaseException) -> str:
    """Returns what helps if the user's code has failed because it uses Django too early; empty for
    any other error. Setting Django up there would not help: that is refused, too."""
    kind = type(error)
    found = f"{kind.__module__}.{kind.__name__}" in _NOT_SET_UP
    return _REMEDY if found else ""


def forget(before: Mapping[str, Any]) -> None:
    """Unload what was imported since, if Django is among it and too early, so that workers that are
    forked later import it anew.

    Packages with a module in C stay: NumPy's, for one, cannot be loaded twice.

    :param before: a copy of sys.modules.
    """
    if _patched() and not _watch.place:
        return  # what is loaded may stay
    if not any(_top(name) == "django" for name in sys.modules.keys() - before.keys()):
        return
    conf: Any = sys.modules.get("django.conf")
    if hasattr(conf, "settings") and "django.conf" not in before and not conf.settings.configured:
        conf.settings.configure()  # or gevent would load these, which something may still refer to
    specs = ((name, getattr(module, "__spec__", None)) for name, module in [*sys.modules.items()])
    in_c = {
        _top(n) for n, s in specs if isinstance(getattr(s, "loader", None), ExtensionFileLoader)
    }
    stays = _STAYS | in_c
    for name in list(sys.modules):
        if name in before:
            sys.modules[name] = before[name]
        elif _top(name) not in stays or f"{name}.".startswith(f"{_BOUND}."):
            module = sys.modules.pop(name)
            parent, _, child = name.rpartition(".")
            # Where "from parent import child" would find it.
            attributes = getattr(sys.modules.get(parent), "__dict__", {})
            if attributes.get(child, attributes) is module:
                del attributes[child]
    _watch.place = ""


_at_fork: dict[str, Any] | None = None  # sys.modules


def before_fork() -> None:
    """Unload Django if the master has come to load it since the last fork, by a hook or by its log:
    each new worker would refuse it, and end the site. Before the first fork there is no site yet,
    and the worker ends the start."""
    global _at_fork
    try:
        refuse()
    except StartupError as error:
        if _at_fork is not None:
            do_without(error)
    else:
        _at_fork = dict(sys.modules)


def do_without(error: StartupError) -> None:
    """Unload what was imported since the last fork, Django among it.

    :raises StartupError: the one given; there was no fork yet.
    """
    if _at_fork is None:
        raise error
    forget(_at_fork)
    log.error("Django was loaded too early, and is loaded anew: %s", error)


def _top(name: str) -> str:
    return name.partition(".")[0]


# --- Before it happens -------------------------------------------------------------------------


def warnings(location: str, values: Mapping[str, object]) -> Iterator[Finding]:
    """Hooks in a configuration file that would load Django too early, as far as their code shows:
    a hook is not run to find out."""
    for hook in HOOKS:
        function = values.get(hook)
        if not isinstance(function, FunctionType):
            continue
        for line, what in _loads(function, set()):
            text = (
                f"{location}, line {line} ({hook}), loads Django before gevent has patched: {what}"
            )
            yield Finding(Level.WARN, CODE, "", text, _REMEDY, exit_code=EXIT_USAGE)
            break


def _loads(function: FunctionType, seen: set[CodeType]) -> Iterator[tuple[int, str]]:
    """Lines in a function, and in those of its file that it names, which load django.db."""
    code = function.__code__
    if code in seen:
        return
    seen.add(code)
    names, before = set(), ""
    for instruction in dis.get_instructions(code):
        name = str(instruction.argval)
        if instruction.opname == "IMPORT_NAME" and LOADS_CONNECTIONS.match(name):
            yield (instruction.positions and instruction.positions.lineno) or 0, f"import {name}"
        if name == "setup" and "django" in before:
            yield (instruction.positions and instruction.positions.lineno) or 0, "django.setup()"
        names.add(name)
        before = name
    for name in sorted(names):
        other = function.__globals__.get(name)
        if isinstance(other, FunctionType) and other.__code__.co_filename == code.co_filename:
            yield from _loads(other, seen)
