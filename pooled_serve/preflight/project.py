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


def load(app: str) -> None:
    """Import ``module`` or ``module:callable``, and check that it is Django's WSGI application.

    :raises StartupError: with a PS1xx problem.
    """
    name, _, attribute = app.partition(":")
    _refuse_path(app, name)
    application = _attribute(_import(app, name), attribute or DEFAULT_ATTRIBUTE, app)
    _refuse_asgi(application, app, name)
    _refuse_other_framework(app)


def _refuse_path(app: str, name: str) -> None:
    if "/" in name or name.endswith(".py"):
        dotted = name.removesuffix(".py").strip("./").replace("/", ".")
        raise startup_error(
            "PS107",
            f"{app!r} is a file path; the application is named as a module",
            f"use {dotted}" if dotted else "use the module's name, as in myproject.wsgi",
        )


def _import(app: str, name: str) -> ModuleType:
    """Import the packages around a module one by one, and then the module, to see which fails."""
    for part in accumulate(name.split("."), "{}.{}".format):
        try:
            module = importlib.import_module(part)
        except (Exception, SystemExit) as error:
            missing = isinstance(error, ModuleNotFoundError) and error.name == part
            if part and not missing:
                raise _import_failed(part, error) from error
            there = ", ".join(_wsgi_modules())
            raise startup_error(
                "PS101",
                f"there is no module {part!r} (looked for {app!r} from {os.getcwd()})",
                f"use {there}" if there else "run it where manage.py is, or add --chdir DIR",
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
        return startup_error(
            "PS105",
            f"there is no settings module {settings!r}",
            f"correct {SETTINGS_VARIABLE}, or use --settings MODULE",
        )
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
        if len(names) == 1:
            hint = f"use {module.__name__}:{names[0]}"
        elif there and module.__name__ not in there:
            hint = f"use {', '.join(there)}"
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


def _wsgi_modules() -> list[str]:
    return sorted(f"{path.parent.name}.wsgi" for path in Path.cwd().glob("*/wsgi.py"))


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
            "PS109",
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
            "fail with SynchronousOnlyOperation",
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
