"""Find and load the Django project, or say in one line why that fails.

Python raises ImportError both for a missing module and for a failed import inside it. The two need
different hints, so this tells them apart.
"""

from __future__ import annotations

import importlib
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from pooled_serve.errors import Finding, Level, StartupError, startup_error

DEFAULT_ATTRIBUTE = "application"
SETTINGS_VARIABLE = "DJANGO_SETTINGS_MODULE"
NO_URLS = "PS109"
"""The code of a warning that ``--check`` and ``--strict`` refuse: every request would fail."""


def load(app: str) -> None:
    """Import ``module`` or ``module:callable``, and check that it is Django's WSGI application.

    :raises StartupError: with a PS1xx problem.
    """
    name, _, attribute = app.partition(":")
    _refuse_path(app, name)
    _refuse_settings_path()
    application = _attribute(_import(app, name), attribute or DEFAULT_ATTRIBUTE, app)
    _refuse_asgi(application, app, name)
    _refuse_other_framework(app)


def _refuse_path(app: str, name: str) -> None:
    if not is_path(name):
        return
    dotted, folder = as_module(name)
    there = _wsgi_modules()
    if dotted == "manage" or not dotted:
        hint = f"use {', '.join(there)}" if there else "use the module's name, as in myproject.wsgi"
    else:
        hint = f"use {dotted}" + (f" --chdir {folder}" if folder else "")
    raise startup_error(
        "PS107", f"{app!r} is a file path; the application is named as a module", hint
    )


def _refuse_settings_path() -> None:
    name = os.environ.get(SETTINGS_VARIABLE, "")
    if is_path(name):
        dotted, _ = as_module(name)
        raise startup_error(
            "PS107",
            f"{name!r} is a file path; settings are named as a module",
            f"use --settings {dotted or 'MODULE'}",
        )


def is_path(name: str) -> bool:
    """Whether a name is that of a file instead of a module's."""
    return "/" in name or name.endswith(".py")


def as_module(text: str) -> tuple[str, str]:
    """Returns the module that a path of a file, or of the folder with wsgi.py, names; and the
    folder to import it from, empty for the current one."""
    path = Path(os.path.abspath(text))
    if path.is_dir() and (path / "wsgi.py").exists():
        path /= "wsgi.py"
    path = path.with_suffix("")
    # Above the package if no manage.py says where Python starts.
    roots = [parent for parent in path.parents if (parent / "manage.py").exists()]
    roots += [Path.cwd()] if path.is_relative_to(Path.cwd()) else [path.parent.parent]
    dotted = ".".join(path.relative_to(roots[0]).parts)
    return dotted, "" if roots[0] == Path.cwd() else str(roots[0])


def _import(app: str, name: str) -> ModuleType:
    """Import the packages around a module one by one, and then the module, to see which fails."""
    for part in accumulate(name.split("."), "{}.{}".format):
        try:
            module = importlib.import_module(part)
        except (Exception, SystemExit) as error:
            missing = isinstance(error, ModuleNotFoundError) and error.name == part
            if part and not missing:
                raise _import_failed(part, error) from error
            raise startup_error(
                "PS101",
                f"there is no module {part!r} (looked for {app!r} from {os.getcwd()})",
                _where_it_may_be(part),
            ) from None
    return module


def _import_failed(name: str, error: BaseException) -> StartupError:
    """The error for project code that failed: the reason, and where."""
    settings = os.environ.get(SETTINGS_VARIABLE, "")
    if (
        isinstance(error, ModuleNotFoundError)
        and error.name
        and f"{settings}.".startswith(f"{error.name}.")
    ):
        hint = f"correct {SETTINGS_VARIABLE}, or use --settings MODULE"
        if _is_too_deep(error.name):
            hint = f"{_UP}; the application is {Path.cwd().name}.{name}"
        return startup_error("PS105", f"there is no settings module {settings!r}", hint)
    if type(error).__name__ == "ImproperlyConfigured" and SETTINGS_VARIABLE in str(error):
        return startup_error(
            "PS104",
            f"{name} uses Django's settings, but names no settings module",
            f"use --settings MODULE, or set {SETTINGS_VARIABLE} in {name}",
        )
    return startup_error(
        "PS102",
        f"{name} exists, but fails while it is imported",
        f"correct the error above; for all of its traceback: python -c 'import {name}'",
        where(error),
    )


def where(error: BaseException) -> str:
    """Returns the error with file and line of the project's own code, instead of a traceback."""
    text = traceback.format_exception_only(error)[-1].strip()
    if isinstance(error, SyntaxError) and error.filename:
        return f'  File "{error.filename}", line {error.lineno}: {text}'
    stdlib, package = sysconfig.get_path("stdlib") + os.sep, str(Path(__file__).parents[1]) + os.sep
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((stdlib, package, "<"))
        # Debian's system packages live in "dist-packages", outside of the venv's folders
        and "-packages" + os.sep not in frame.filename
    ]
    if not own:
        return f"  {text}"
    return f'  File "{own[-1].filename}", line {own[-1].lineno}: {text}'


def _attribute(module: ModuleType, attribute: str, app: str) -> Any:
    if not attribute.isidentifier():
        # "create_app('production')" is gunicorn's syntax; so are the messages.
        from gunicorn import util

        try:
            return util.import_app(app)
        except Exception as error:
            raise _import_failed(module.__name__, error) from error
    try:
        found = getattr(module, attribute)
    except AttributeError:
        names = [
            name
            for name, value in vars(module).items()
            if callable(value)
            and not name.startswith("_")
            # what the module merely imports is not its application
            and (not isinstance(value, type | FunctionType) or value.__module__ == module.__name__)
        ]
        there = _wsgi_modules()
        if there and module.__name__ not in there:
            hint = f"use {', '.join(there)}"
        elif len(names) == 1:
            hint = f"use {module.__name__}:{names[0]}"
        else:
            hint = f"name it after the colon (without one it is {DEFAULT_ATTRIBUTE!r})"
        raise startup_error(
            "PS103",
            f"the module {module.__name__} has no attribute {attribute!r}",
            hint,
        ) from None
    if not callable(found):
        raise startup_error(
            "PS103",
            f"{module.__name__}:{attribute} is not callable, so it is no WSGI application",
            f"name what get_wsgi_application() returned, usually {DEFAULT_ATTRIBUTE!r}",
        )
    return found


def _refuse_asgi(application: Any, app: str, name: str) -> None:
    from inspect import iscoroutinefunction

    call = getattr(application, "__call__", None)  # noqa: B004 - iscoroutinefunction() needs the method
    if iscoroutinefunction(application) or iscoroutinefunction(call):
        wsgi = name.replace("asgi", "wsgi")
        raise startup_error(
            "PS106",
            f"{app} is an ASGI application; a gevent worker serves WSGI",
            f"use {wsgi}" if wsgi != name else "use the project's wsgi module",
        )


def _refuse_other_framework(app: str) -> None:
    conf = sys.modules.get("django.conf")
    if conf is None or not conf.settings.configured:
        raise startup_error(
            "PS104",
            f"{app} is not a Django project: it has set up no Django settings",
            "serve it with gunicorn itself, or name the Django project's wsgi module",
        )


_UP = "run it in the folder above, where manage.py is, or add --chdir .."


def _where_it_may_be(missing: str) -> str:
    """Returns the hint for a module that is not there: look around, and name what is."""
    if there := _wsgi_modules():
        return f"use {', '.join(there)}"
    if _is_too_deep(missing):
        return _UP
    below = sorted(Path.cwd().glob("*/manage.py"))
    found = [(path.parent.name, _wsgi_modules(path.parent)) for path in below]
    apps = [f"{modules[0]} --chdir {folder}" for folder, modules in found if modules]
    return f"use {apps[0]}" if apps else "run it where manage.py is, or add --chdir DIR"


def _is_too_deep(missing: str) -> bool:
    """Whether the current directory is the package that was looked for."""
    here = Path.cwd()
    return missing.partition(".")[0] == here.name and (here.parent / "manage.py").exists()


def _wsgi_modules(folder: Path | None = None) -> list[str]:
    found = (folder or Path.cwd()).glob("*/wsgi.py")
    return sorted(f"{path.parent.name}.wsgi" for path in found)


def host_warnings() -> Iterator[Finding]:
    """Warn of settings with which no request gets an answer."""
    from django.conf import settings

    if not settings.DEBUG and not settings.ALLOWED_HOSTS:
        text = "DEBUG is off and ALLOWED_HOSTS is empty: every request will get 400"
        hint = 'list the host names of the site, as in ALLOWED_HOSTS = ["www.example.com"]'
        yield Finding(Level.WARN, "PS113", "", text, hint)


def migration_notes() -> Iterator[Finding]:
    """Tell of migrations that are not applied to the default database. Only reads there."""
    from django.db import connections
    from django.db.migrations.executor import MigrationExecutor

    executor = MigrationExecutor(connections["default"])
    plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
    if plan:
        number = f"{len(plan)} migrations are" if len(plan) > 1 else "1 migration is"
        first = f"{plan[0][0].app_label}.{plan[0][0].name}"
        text = f"{number} not applied, the first is {first}: run manage.py migrate"
        yield Finding(Level.NOTE, "", "default", text)


# From these on, a coroutine is not told that its executor has finished, if gevent has patched
# (https://github.com/gevent/gevent/issues/2213). 3.14.0 to 3.14.2 are not affected.
ASYNC_STALLS = (3, 13, 12) <= sys.version_info[:3] < (3, 14) or sys.version_info[:3] >= (3, 14, 3)


def async_warnings() -> Iterator[Finding]:
    """Warn of async code in a loaded project: under gevent it breaks other requests' queries."""
    from django.conf import settings
    from django.urls import get_resolver
    from django.utils.module_loading import import_string

    found = [
        path
        for path in settings.MIDDLEWARE
        # Django runs middleware in an event loop only if it cannot call it synchronously.
        if not getattr(import_string(path), "sync_capable", True)
    ]
    try:
        found += _async_views(get_resolver())
    except (Exception, SystemExit) as error:
        yield Finding(
            Level.WARN,
            NO_URLS,
            "",
            f"{getattr(settings, 'ROOT_URLCONF', 'ROOT_URLCONF')} fails while it is imported, so "
            f"every request will: {where(error).strip()}",
            "correct the error; manage.py check shows it too",
        )
    if found:
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        yield Finding(
            Level.WARN,
            "PS108",
            "",
            f"{found[0]}{more} is async: while it runs, queries of other requests in the worker "
            "fail with SynchronousOnlyOperation"
            + (", and on this Python it may never end" if ASYNC_STALLS else ""),
            "make it a plain function; under gevent that does not block other requests",
        )


def _async_views(resolver: Any) -> Iterator[str]:
    from asgiref.sync import iscoroutinefunction

    for pattern in resolver.url_patterns:
        if hasattr(pattern, "url_patterns"):
            yield from _async_views(pattern)
            continue
        view = pattern.callback
        view_class = getattr(view, "view_class", None)
        if iscoroutinefunction(view) or getattr(view_class, "view_is_async", False):
            yield pattern.lookup_str
