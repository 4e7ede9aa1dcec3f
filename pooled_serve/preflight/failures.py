"""What has failed in a project: the error in a line, the setting that is behind it, and how to see
all of its traceback."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import os
import pkgutil
import re
import shlex
import shutil
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SETTINGS_VARIABLE = "DJANGO_SETTINGS_MODULE"

_OWN_VARIABLE = "POOLED_SERVE_SETTINGS"
"""What the command sets that from, too, unless there is --settings."""

_STARTED_IN, _PATH_BEFORE = os.getcwd(), tuple(sys.path)
"""From before --chdir and --pythonpath."""
_SEARCHED = os.environ.get("PATH")  # from before --env


def settings_written(settings: str) -> str:
    """Returns where the name of the settings module was written, for a remedy."""
    typed = any(word.partition("=")[0] == "--settings" for word in sys.argv)
    if not typed and os.environ.get(_OWN_VARIABLE) == settings:
        return _OWN_VARIABLE
    return f"{SETTINGS_VARIABLE}, or --settings MODULE, which sets it"


def where(error: BaseException) -> str:
    """Returns the error with file and line of the project's own code, instead of a traceback."""
    text, place = _in_a_line(error), _place(error)
    return f"  {text}" if place is None else f'  File "{place[0]}", line {place[1]}: {text}'


def where_without_words(error: BaseException) -> str:
    """Returns the class of the error with file and line, for those who see the status page, not the
    log: the words of an error may have a secret in them."""
    name, place = type(error).__name__, _place(error)
    return name if place is None else f"{name} in {place[0]}, line {place[1]}"


def _place(error: BaseException) -> tuple[str, int | None] | None:
    """Returns file and line of the project's own code; None if the error comes from elsewhere."""
    if isinstance(error, SyntaxError) and error.filename:
        return error.filename, error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    own = [(frame.filename, frame.lineno) for frame in frames if _is_own(frame.filename)]
    return own[-1] if own else None


def _in_a_line(error: BaseException) -> str:
    """Returns the error, and those that it names as its causes, with a colon between them."""
    text, told = _alone(error), {id(error)}
    while (cause := error.__cause__) is not None and id(cause) not in told:
        told.add(id(cause))
        if not str(cause) or str(cause) not in text:  # else its words are there already
            text = f"{text.rstrip('.')}: {_alone(cause)}"
        error = cause
    return text


def _alone(error: BaseException) -> str:
    told = traceback.TracebackException(type(error), error, None)
    told.__notes__ = None  # or the last line is a note, and the error itself is left out
    text = " ".join([*told.format_exception_only()][-1].split())
    return text.replace(" Check the above exception.", "")  # Django's; none is above


def _is_own(file: str) -> bool:
    """Whether code is the project's."""
    stdlib, package = sysconfig.get_path("stdlib") + os.sep, str(Path(__file__).parents[1]) + os.sep
    # Debian's system packages live in "dist-packages", outside of the venv's folders
    return not file.startswith((stdlib, package, "<")) and "-packages" + os.sep not in file


def blame(error: BaseException, settings: str) -> tuple[str, str] | None:
    """Returns a remedy and the error in a line, if a setting names what cannot be imported, or what
    imports it; None if none does.

    :param settings: the name of their module.
    """
    if (behind := _setting_behind(error)) is None:
        return _named_by_django(error, settings)
    setting, value = behind
    remedy = engine_meant(value) if setting.startswith("ENGINE") else ""
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing and not _is_in(missing, value):  # what it names is there, and imports something else
        named = _setting_that_names(missing)
        if named is None:
            remedy = f"install {missing}, which {value!r} imports"
        else:
            setting, value = named
    return (
        remedy or _correct(setting, value, settings),
        f"  {setting} of {settings}, {value!r}: {_in_a_line(error)}",
    )


def _correct(setting: str, value: object, settings: str) -> str:
    """Returns the remedy for a setting that names something which is not there."""
    correct = f"correct {setting} of {settings}"
    if setting.startswith("ENGINE"):  # of Django's engines engine_meant() knows more
        return f"{correct}, or install what it names"
    if not _exists(str(value).partition(".")[0]):  # else there is nothing to install
        correct += ", or install what it names"
    near = nearest(str(value))
    return f"did you mean {near!r}? {correct}" if near else correct


_OF_A_SETTING = re.compile(r"(?:The )?([A-Z][A-Z_]{3,}) ")


def _named_by_django(error: BaseException, settings: str) -> tuple[str, str] | None:
    """Returns a remedy and the error in a line, if Django itself has found that a setting is wrong,
    and says which: the place is innocent where the project asks for a user model."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    found = _OF_A_SETTING.match(str(error))
    if type(error).__name__ != "ImproperlyConfigured" or found is None:
        return None
    if not frames or _is_own(frames[-1].f_code.co_filename):
        return None
    setting = found[1]
    remedy = f"correct {setting} of {settings}"
    if setting == "AUTH_USER_MODEL":
        near = _user_model()
        remedy = f"did you mean {near!r}? {remedy}" if near else remedy
        remedy += "" if near else ", or add its app to INSTALLED_APPS"
    return remedy, f"  {settings}: {_in_a_line(error)}"


def _user_model() -> str | None:
    """Returns the project's only model of users; None if there are several, or none."""
    from django.apps import apps

    with contextlib.suppress(Exception):  # the registry is not ready
        models = [model for model in apps.get_models() if hasattr(model, "USERNAME_FIELD")]
        if len(models) == 1:
            return str(models[0]._meta.label)  # noqa: SLF001 - documented, for all its name
    return None


def fails_in_databases(error: BaseException) -> bool:
    """Whether Django could not go through DATABASES, which it does where models are defined."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    names = {(frame.f_globals.get("__name__"), frame.f_code.co_name) for frame in frames[-1:]}
    return ("django.db.utils", "configure_settings") in names


_NEAR, _NEAR_INSTALLED = 0.8, 0.9
"""Of difflib's ratio: for a module of the project, and for one of all that are installed."""


def nearest_module(name: str) -> str | None:
    """Returns the module that was meant by the name of one that is not there; None if none is near
    enough in each part of the name."""
    found = ""
    for part in name.removesuffix(".py").replace("/", ".").split("."):
        near = _nearest_part(found, part)
        if near is None:
            return None
        found = f"{found}.{near}".strip(".")
    return found if found != name else None


def nearest(name: str) -> str | None:
    """Returns the module, or what is in one, that was meant by a name; None if none is near."""
    module, _, attribute = name.rpartition(".")
    there = nearest_module(name)
    if there or not module:
        return there
    there = module if _exists(module) else nearest_module(module)
    with contextlib.suppress(Exception, SystemExit):  # it would have failed by its right name, too
        names = [n for n in vars(importlib.import_module(there or "")) if not n.startswith("_")]
        for meant in difflib.get_close_matches(attribute, names, n=1, cutoff=_NEAR):
            return f"{there}.{meant}" if f"{there}.{meant}" != name else None
    return None


def _nearest_part(package: str, part: str) -> str | None:
    if _exists(f"{package}.{part}".strip(".")):
        return part
    if package:
        folders = list(getattr(sys.modules.get(package), "__path__", ()))
        return _near(part, folders, _NEAR)
    # Of installed modules there are many, and those of Python are no part of a project.
    return _near(part, [os.getcwd()], _NEAR) or _near(part, sys.path, _NEAR_INSTALLED)


def _near(part: str, folders: list[str], cutoff: float) -> str | None:
    names = {module.name for module in pkgutil.iter_modules(folders)}
    names -= {*sys.stdlib_module_names, "manage"}
    return next(iter(difflib.get_close_matches(part, sorted(names), n=1, cutoff=cutoff)), None)


def _exists(module: str) -> bool:
    """Whether there is a module. Imports the packages that it is in."""
    with contextlib.suppress(Exception, SystemExit):
        return importlib.util.find_spec(module) is not None
    return False


def beside(module: str, name: str) -> str | None:
    """Returns the module of that name in the package of another one, or in the next one around it;
    None if there is none."""
    package = module.rpartition(".")[0]
    while package and not _exists(f"{package}.{name}"):
        package = package.rpartition(".")[0]
    return f"{package}.{name}" if package else None


def engine_meant(value: object) -> str:
    """Returns the remedy for an engine's name that is nearly one of Django's; empty for others."""
    words = {"mysql": "mysql", "maria": "mysql", "postg": "postgresql", "sqlite": "sqlite3"}
    package, _, last = str(value).rpartition(".")
    if package not in ("", "django.db", "django.db.backends", "django.db.backend"):
        return ""
    meant = next((name for word, name in words.items() if word in last.lower()), None)
    right = f"django.db.backends.{meant}"
    return f"write {right!r} as ENGINE in DATABASES" if meant and right != value else ""


def missing_remedy(error: BaseException) -> str:
    """Returns the remedy for a variable that the environment lacks, or a package that is not
    installed; empty for other errors."""
    if isinstance(error, KeyError) and error.args:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        if frames and frames[-1].f_globals is vars(os):  # os.environ
            return f"set the variable {error.args[0]} in the environment of this command"
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        if not Path(package).exists() and package not in sys.modules:
            python = f"{_python()} -m pip install"
            return f"install the package that has {package} where pooled-serve is ({python} ...)"
    return ""


def first_unreadable() -> str | None:
    """Returns the first place that this user would have to read, and may not: the folders of
    Python, its environment and the project."""
    places = (
        os.path.dirname(os.__file__),
        sys.prefix,
        os.path.dirname(os.path.dirname(__file__)),
        ".",
    )
    return next((os.path.abspath(p) for p in places if not os.access(p, os.R_OK | os.X_OK)), None)


def _is_in(module: str, name: object) -> bool:
    """Whether a name of a module, or of something in one, begins with a module's."""
    return f"{name}.".startswith(f"{module}.")


def _setting_that_names(module: str) -> tuple[str, str] | None:
    """Returns the first setting that names a module, or something in it, and that name."""
    conf: Any = sys.modules.get("django.conf")
    configured = conf is not None and conf.settings.configured
    for setting in filter(str.isupper, dir(conf.settings) if configured else ()):
        value = None
        with contextlib.suppress(Exception):  # Django refuses to give some that are empty
            value = getattr(conf.settings, setting)
        for text in _texts(value):
            if _is_in(module, text):
                return setting, text
    return None


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


_READ_A_SETTING = {
    ("django.apps.config", "create"): ("INSTALLED_APPS", "entry"),
    ("django.core.handlers.base", "load_middleware"): ("MIDDLEWARE", "middleware_path"),
    ("django.db.utils", "load_backend"): ("ENGINE in DATABASES", "backend_name"),
}
"""Functions of Django that import what a setting names: the setting, and their variable for it."""


def _setting_behind(error: BaseException) -> tuple[str, Any] | None:
    """Returns the setting that names what cannot be imported, and that name; None if the error is
    not about one, or comes from the project's code behind it. The line of the project that has led
    Django there is as innocent as it can be."""
    found = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        place = frame.f_globals.get("__name__", ""), frame.f_code.co_name
        if place in _READ_A_SETTING:
            setting, variable = _READ_A_SETTING[place]
            found = setting, frame.f_locals.get(variable)
        elif _is_own(frame.f_code.co_filename):
            found = None
    return None if isinstance(error, SyntaxError) else found


def traceback_command(statements: str, settings: str) -> str:
    """Returns the words for how to see all of an error, where the command was started, and also if
    Django finds no mysqlclient."""
    here = os.getcwd()
    found = f"cd {shlex.quote(here)} && " if here != _STARTED_IN else ""
    # Those of --chdir are where Python looks by itself.
    own = {*_PATH_BEFORE, here, _STARTED_IN}
    paths = [p for p in sys.path if isinstance(p, str) and not own & {p, os.path.realpath(p)}]
    found += f"PYTHONPATH={shlex.quote(os.pathsep.join(paths))} " if paths else ""
    found += f"{SETTINGS_VARIABLE}={settings} " if settings else ""
    brought = "import pymysql; pymysql.install_as_MySQLdb()"
    return f'for all of its traceback: {found}{_python()} -c "{brought}; {statements}"'


def _python() -> str:
    """Returns what a shell calls the Python that runs this: an environment's has that name only
    while it is activated."""
    own, found = sys.executable, shutil.which("python", path=_SEARCHED)
    # The file is not enough: environments have links to one that they share.
    beside = found and os.path.dirname(os.path.abspath(found)) == os.path.dirname(own)
    if found and beside and os.path.samefile(found, own):
        return "python"
    return shlex.quote(own) if own else "python"
