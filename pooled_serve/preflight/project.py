"""Find and load the Django project, or say in one line why that fails.

Python raises ImportError both for a missing module and for a failed import inside it. The two need
different hints, so this tells them apart.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from pooled_serve.errors import (
    Finding,
    Level,
    StartupError,
    startup_error,
)
from pooled_serve.preflight import databases
from pooled_serve.preflight.failures import (
    SETTINGS_VARIABLE,
    blame,
    fails_in_databases,
    missing_remedy,
    settings_written,
    traceback_command,
    where,
)

DEFAULT_ATTRIBUTE = "application"


def load(app: str) -> None:
    """Import ``module`` or ``module:callable``, and check that it is Django's WSGI application.

    :raises StartupError: with a PS1xx problem.
    """
    name, _, attribute = app.partition(":")
    _refuse_path(app, name)
    _refuse_settings_path()
    _refuse_configured(app)
    application = _attribute(_import(app, name), attribute or DEFAULT_ATTRIBUTE, app)
    _refuse_asgi(application, app, name)
    _refuse_other_framework(app)


def _refuse_path(app: str, name: str) -> None:
    if not is_path(name):
        return
    dotted, folder = as_module(name)
    there = _wsgi_modules()
    if there and (dotted in ("manage", "") or not os.path.exists(name)):
        hint = f"use {', '.join(there)}"
    elif dotted == "manage" or not dotted:
        hint = "use the module's name, as in myproject.wsgi"
    else:
        hint = _use(dotted, folder)
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


def _refuse_configured(app: str) -> None:
    """Something has called settings.configure(), as a launcher of an agent does that wants to look
    at settings before there are any. Django would go on with those, whatever the project names."""
    conf: Any = sys.modules.get("django.conf")
    if conf is not None and conf.settings.configured and conf.settings.SETTINGS_MODULE is None:
        raise startup_error(
            "PS104",
            f"something has called settings.configure() before {app} was loaded, so that its own "
            "settings would not count",
            f"set {SETTINGS_VARIABLE} in the environment (--settings comes too late for that), or "
            "start without the launcher that does it",
        )


def is_path(name: str) -> bool:
    """Whether a name is that of a file instead of a module's."""
    return "/" in name or name.endswith(".py") or bool(name and not name.strip("."))


def named_as_module(app: str) -> str:
    """Returns an application as it should be typed: for a file its module, with --chdir if that is
    to be imported from another folder; for manage.py, or nothing, the module beside it."""
    name, colon, attribute = app.partition(":")
    if name and not is_path(name):
        return app
    dotted, folder = as_module(name) if name else ("", "")
    if dotted in ("", "manage"):
        return next(iter(_wsgi_modules()), "myproject.wsgi")
    return f"{dotted}{colon}{attribute}" + (f" --chdir {folder}" if folder else "")


def as_module(text: str) -> tuple[str, str]:
    """Returns the module that a path of a file, or of the folder with wsgi.py, names; and the
    folder to import it from, empty for the current one."""
    path = Path(os.path.abspath(text))
    if path.suffix != ".py" and not path.exists():  # "myproject.wsgi/" names a module, too
        path = path.parent.joinpath(*path.name.split("."))
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
    given = os.environ.get(SETTINGS_VARIABLE, "")  # the module may set it
    for part in accumulate(name.split("."), "{}.{}".format):
        try:
            module = importlib.import_module(part)
        except (Exception, SystemExit) as error:
            missing = isinstance(error, ModuleNotFoundError) and error.name == part
            if part and not missing:
                raise _import_failed(part, error, given) from error
            raise _no_module(app, part) from None
    return module


def _no_module(app: str, part: str) -> StartupError:
    return startup_error(
        "PS101",
        f"there is no module {part!r} (looked for {app!r} from {os.getcwd()})",
        _where_it_may_be(part),
    )


def failed_in_worker(app: str, error: BaseException) -> Finding:
    """Returns why a worker cannot load the project, which could be loaded at the start, and what
    that leads to. The traceback is not part of it: the caller logs that separately."""
    name = app.partition(":")[0]
    if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
        failure = _no_module(app, str(error.name))
    else:
        failure = _import_failed(name, error, then="")
    (found,) = failure.problems
    if isinstance(error, SystemExit):  # gunicorn takes it for one of the worker's
        so = "this worker ends, and so does each that takes its place"
    else:
        so = "this worker cannot start, and Gunicorn stops the whole server"
    message = f"{found.message}: {so}"
    remedy = f"{found.hint}; the same command with --check says whether it loads; then start it"
    if isinstance(error, SystemExit):
        remedy = remedy.replace("then start it", "then send HUP")
    return replace(found, message=message, hint=remedy)


def _import_failed(
    name: str, error: BaseException, given: str = "", then: str | None = None
) -> StartupError:
    """The error for project code that failed: the reason, and where.

    :param given: the settings that were named before it ran.
    :param then: how to see the traceback; by default a command.
    """
    settings = os.environ.get(SETTINGS_VARIABLE, "")
    if (
        isinstance(error, ModuleNotFoundError)
        and error.name
        and f"{settings}.".startswith(f"{error.name}.")
    ):
        near = _nearest_settings(settings)
        hint = f"did you mean {near}? " if near else ""
        hint += f"correct {settings_written(settings)}"
        if _is_too_deep(error.name):
            hint = f"{_up()}; the application is {Path.cwd().name}.{name}"
        return startup_error("PS105", f"there is no settings module {settings!r}", hint)
    if type(error).__name__ == "ImproperlyConfigured" and SETTINGS_VARIABLE in str(error):
        return startup_error(
            "PS104",
            f"{name} uses Django's settings, but names no settings module",
            f"use --settings MODULE, or set {SETTINGS_VARIABLE} in {name}",
        )
    if fails_in_databases(error):
        try:
            refuse_malformed_databases()
        except StartupError as malformed:
            return malformed
    hint, detail = missing_remedy(error) or "correct the error above", where(error)
    if (blamed := blame(error, settings)) is not None:
        hint, detail = blamed
    if then is None:
        then = f"; {traceback_command(f'import {name}', given)}"
    text = f"{name} exists, but fails while it is imported"
    return startup_error("PS102", text, f"{hint}{then}", detail)


def refuse_malformed_databases() -> None:
    """Check that DATABASES has the form that Django needs.

    :raises StartupError: PS110.
    """
    from django.conf import settings

    name = os.environ.get(SETTINGS_VARIABLE, "the settings")
    databases.refuse_malformed(settings.DATABASES, name)


_NO_SETTINGS = frozenset(
    ("__init__", "admin", "apps", "asgi", "manage", "models", "tests", "urls", "views", "wsgi")
)
"""Modules that Django's projects have beside them."""


def _nearest_settings(name: str) -> str | None:
    """Returns the module that was meant, of those beside it, and those named settings."""
    files = [*Path.cwd().glob("*/settings.py"), *Path.cwd().glob("*/settings/*.py")]
    files += Path.cwd().joinpath(*name.split(".")).parent.glob("*.py")
    known = {".".join(f.relative_to(Path.cwd()).with_suffix("").parts) for f in files}
    known = {name for name in known if name.rpartition(".")[2] not in _NO_SETTINGS}
    found = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.75)
    return next(iter(found or (known if len(known) == 1 else ())), None)


def _attribute(module: ModuleType, attribute: str, app: str) -> Any:
    if not attribute.isidentifier():
        # "create_app('production')" is gunicorn's syntax; so are the messages.
        from gunicorn import util

        bare = attribute.removesuffix("()")
        found = getattr(module, bare, None)
        if bare != attribute and callable(found) and not isinstance(found, type | FunctionType):
            raise startup_error(
                "PS103",
                f"{module.__name__}:{bare} is the application itself, and makes none",
                f"use {module.__name__}:{bare}, without parentheses",
            )
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


CONFIG_FILE = "gunicorn.conf.py"
"""Gunicorn looks for it where the command is run; ``--chdir`` comes later."""


def _up() -> str:
    if Path("..", CONFIG_FILE).exists():
        return f"run it in the folder above, where manage.py and {CONFIG_FILE} are"
    return "run it in the folder above, where manage.py is, or add --chdir .."


def _use(app: str, folder: str = "") -> str:
    """Returns the hint for an application that has to be imported from a folder."""
    if Path(folder, CONFIG_FILE).exists() and not Path(CONFIG_FILE).exists():
        return f"cd {folder} first, and use {app} there, so that its {CONFIG_FILE} is read"
    return f"use {app}" + (f" --chdir {folder}" if folder else "")


def _where_it_may_be(missing: str) -> str:
    """Returns the hint for a module that is not there: look around, and name what is."""
    if there := _wsgi_modules():
        return f"use {', '.join(there)}"
    if _is_too_deep(missing):
        return _up()
    below = sorted(Path.cwd().glob("*/manage.py"))
    found = [(path.parent.name, _wsgi_modules(path.parent)) for path in below]
    hints = [_use(modules[0], folder) for folder, modules in found if modules]
    return hints[0] if hints else "run it where manage.py is, or add --chdir DIR"


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


def secret_notes() -> Iterator[Finding]:
    """Tell of a SECRET_KEY that Django refuses to give, at the first request that signs."""
    from django.conf import settings
    from django.core.exceptions import ImproperlyConfigured

    try:
        settings.SECRET_KEY  # noqa: B018 - looked at when it is read
    except ImproperlyConfigured:
        text = "it is empty: whatever signs (sessions, forms, the admin) fails with a 500"
        yield Finding(Level.NOTE, "", "SECRET_KEY", text)


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
    with contextlib.suppress(Exception, SystemExit):  # urls.py tells of it
        found += _async_views(get_resolver())
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
