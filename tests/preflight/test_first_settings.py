"""Typical mistakes in the settings of a first hour: each gets one problem, and a remedy that leads
out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from conftest import MakeProject
from support.command import EXIT_PROJECT, run
from support.django_project import PASSWORD, SQLITE, mysql_at

# --- Settings ----------------------------------------------------------------------------------

SETTINGS: dict[str, tuple[str, Any, str, str]] = {
    "a variable": (
        "import os\nSECRET_KEY = os.environ['SHOP_KEY']",
        SQLITE,
        "KeyError: 'SHOP_KEY'",
        "→ set the variable SHOP_KEY in the environment of this command; for all of its",
    ),
    "another key": ("{}['SHOP_KEY']", SQLITE, "KeyError: 'SHOP_KEY'", "→ correct the error above"),
    "a package": (
        "import environ_that_is_not_there.sub",
        SQLITE,
        "No module named 'environ_that_is_not_there'",
        "→ install the package that has environ_that_is_not_there where pooled-serve is (",
    ),
    "a module of its own": (
        "import mysite.secrets_that_are_not_there",
        SQLITE,
        "No module named 'mysite.secrets_that_are_not_there'",
        "→ correct the error above",
    ),
    "an engine that models import": (
        "INSTALLED_APPS = ['django.contrib.contenttypes', 'django.contrib.auth']",
        mysql_at("127.0.0.1", ENGINE="mysql"),
        "ENGINE in DATABASES of mysite.settings, 'mysql'",
        "→ write 'django.db.backends.mysql' as ENGINE in DATABASES; for all of its traceback",
    ),
    **{
        f"engine {engine}": (
            "",
            mysql_at("127.0.0.1", ENGINE=engine),
            f"'{engine}'",
            f"→ write 'django.db.backends.{meant}' as ENGINE in DATABASES",
        )
        for engine, meant in (
            ("mysql", "mysql"),
            ("django.db.backends.mysqldb", "mysql"),
            ("django.db.backends.mariadb", "mysql"),
            ("django.db.backends.postgres", "postgresql"),
            ("sqlite", "sqlite3"),
        )
    },
    "an engine of another package": (
        "",
        mysql_at("127.0.0.1", ENGINE="no_such.mysql"),
        "the engine 'no_such.mysql' of the database 'default' cannot be loaded",
        "→ correct DATABASES in the settings, or install what it needs",
    ),
}


@pytest.mark.parametrize(
    ("settings", "databases", "says", "remedy"), SETTINGS.values(), ids=SETTINGS.keys()
)
def test_settings(
    project: MakeProject, settings: str, databases: Any, says: str, remedy: str
) -> None:
    folder = project(databases=databases, settings=settings)
    done = run("mysite.wsgi", "--check", cwd=folder)
    done.assert_one_problem("PS102", EXIT_PROJECT, remedy=remedy)
    assert says in done.output


URL = f"mysql://app:{PASSWORD}@default/app"
MODELS = {
    "notes/__init__.py": "",
    "notes/models.py": "from django.db import models\n\n\nclass Note(models.Model): ...\n",
}
DATABASES: dict[str, tuple[str, str, str]] = {
    "a URL": (
        f"DATABASES['default'] = {URL!r}",
        "DATABASES['default'] of mysite.settings is a string, not a dict",
        ", or dj_database_url.parse(...) around the URL",
    ),
    "a variable that lacks": (
        "DATABASES['default'] = None",
        "DATABASES['default'] of mysite.settings is None, not a dict",
        '→ write {"ENGINE": "django.db.backends.mysql", "NAME": ...',
    ),
    "a URL of another": (
        f"DATABASES['replica'] = {URL!r}",
        "DATABASES['replica'] of mysite.settings is a string, not a dict",
        "dj_database_url.parse(...)",
    ),
    "a URL for all": (
        f"DATABASES = {URL!r}",
        "DATABASES of mysite.settings is a string, not a dict",
        '→ write DATABASES = {"default": dj_database_url.parse(...)} around the URL',
    ),
    "a list": (
        "DATABASES = [DATABASES['default']]",
        "DATABASES of mysite.settings is of type list, not a dict",
        '→ write DATABASES = {"default": {"ENGINE": "django.db.backends.mysql"',
    ),
    "None": (
        "DATABASES = None",
        "DATABASES of mysite.settings is None, not a dict",
        '→ write DATABASES = {"default": {"ENGINE": "django.db.backends.mysql"',
    ),
    "one alone": (
        "DATABASES = DATABASES['default']",
        "DATABASES of mysite.settings has 'ENGINE' where the name of a database belongs",
        '→ put one more dict around it: DATABASES = {"default": {...}}',
    ),
    "default misspelt": (
        "DATABASES = {'defualt': DATABASES['default'], 'replica': DATABASES['default']}",
        "DATABASES of mysite.settings has no 'default', which Django requires, only 'defualt', 're",
        "→ rename 'defualt' to 'default'",
    ),
    "another name": (
        "DATABASES = {'main': DATABASES['default']}",
        "DATABASES of mysite.settings has no 'default', which Django requires, only 'main'",
        "→ rename 'main' to 'default'",
    ),
    "other names": (
        "DATABASES = {'main': DATABASES['default'], 'replica': DATABASES['default']}",
        "has no 'default', which Django requires, only 'main', 'replica'",
        "→ rename the one to 'default' that queries use if they name none",
    ),
    "a URL as a name": (
        f"DATABASES = {{{URL!r}: {{}}}}",
        "has no 'default', which Django requires, only a URL",
        '→ write DATABASES = {"default": dj_database_url.parse(...)} around the URL',
    ),
    "TEST": (
        "DATABASES['default']['TEST'] = None",
        "TEST of the database 'default' is None, not a dict",
        "→ leave TEST out of DATABASES of mysite.settings",
    ),
}


@pytest.mark.parametrize("models", [True, False], ids=["with models", "without"])
@pytest.mark.parametrize(("settings", "says", "remedy"), DATABASES.values(), ids=DATABASES.keys())
def test_databases_of_another_form(
    project: MakeProject, settings: str, says: str, remedy: str, models: bool
) -> None:
    # Models ask for their database while the project is loaded.
    settings += "\nINSTALLED_APPS = ['notes']" if models else ""
    folder = project(databases=mysql_at("127.0.0.1"), settings=settings)
    write(folder, MODELS)
    done = run("mysite.wsgi", "--check", cwd=folder)
    done.assert_one_problem("PS110", EXIT_PROJECT, says, remedy)
    assert PASSWORD not in done.output
    assert "models.py" not in done.output


def write(folder: Path, files: dict[str, str]) -> None:
    for name, source in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(source)


LEVELS = "'read committed', 'read uncommitted', 'repeatable read', 'serializable'"


@pytest.mark.parametrize(
    ("level", "shown", "remedy"),
    [
        (
            "read commited",
            "'read commited'",
            f"→ did you mean 'read committed'? Use one of {LEVELS}",
        ),
        ("READ-COMMITTED", "'READ-COMMITTED'", "→ did you mean 'read committed'?"),
        (PASSWORD, "of type str", f"→ use one of {LEVELS}"),
        (2, "of type int", f"→ use one of {LEVELS}"),
    ],
)
def test_an_isolation_level_that_does_not_exist(
    project: MakeProject, level: Any, shown: str, remedy: str
) -> None:
    databases = mysql_at("127.0.0.1", OPTIONS={"isolation_level": level})
    done = run("mysite.wsgi", "--check", cwd=project(databases=databases))
    says = f"OPTIONS['isolation_level'] of the database 'default' is {shown}, not one of its levels"
    done.assert_one_problem("PS110", EXIT_PROJECT, says, remedy)
    assert PASSWORD not in done.output
    assert "install" not in done.output


# --- What settings name ------------------------------------------------------------------------

AUTH = "'django.contrib.contenttypes', 'django.contrib.auth'"
FILES = {
    **MODELS,
    "notes/apps.py": "from django.apps import AppConfig\n\n\n"
    "class NotesConfig(AppConfig):\n    name = 'notes'\n",
    "accounts/__init__.py": "",
    "accounts/models.py": "from django.contrib.auth.models import AbstractUser\n\n\n"
    "class User(AbstractUser): ...\n",
    "mysite/middleware.py": "def Slow(get_response):\n    return get_response\n",
}
URLCONF = "correct ROOT_URLCONF of mysite.settings"
NAMED: dict[str, tuple[str, str, str, str]] = {
    "no URLs": (
        "ROOT_URLCONF = 'blog.urls'",
        "PS109",
        "there is no module 'blog.urls' (and no 'blog'), so every request will fail",
        f"→ {URLCONF}; there is 'mysite.urls'",
    ),
    "URLs, misspelt": (
        "ROOT_URLCONF = 'mysite.url'",
        "PS109",
        "there is no module 'mysite.url', so every request will fail",
        f"→ did you mean 'mysite.urls'? {URLCONF}",
    ),
    "URLs of a package, misspelt": (
        "ROOT_URLCONF = 'mysit.urls'",
        "PS109",
        "there is no module 'mysit.urls' (and no 'mysit')",
        f"→ did you mean 'mysite.urls'? {URLCONF}",
    ),
    "a file of URLs": (
        "ROOT_URLCONF = 'mysite/urls.py'",
        "PS109",
        "there is no module 'mysite/urls.py'",
        f"→ did you mean 'mysite.urls'? {URLCONF}",
    ),
    "an app": (
        "INSTALLED_APPS = ['note']",
        "PS102",
        "  INSTALLED_APPS of mysite.settings, 'note': ModuleNotFoundError",
        "→ did you mean 'notes'? correct INSTALLED_APPS of mysite.settings, or install what it",
    ),
    "an app of Django's": (
        "INSTALLED_APPS = ['django.contrib.contenttype']",
        "PS102",
        "  INSTALLED_APPS of mysite.settings, 'django.contrib.contenttype'",
        "→ did you mean 'django.contrib.contenttypes'? correct INSTALLED_APPS",
    ),
    "a part of Django that is not there": (
        "INSTALLED_APPS = ['django.contrib.comments']",
        "PS102",
        "No module named 'django.contrib.comments'",
        "→ correct INSTALLED_APPS of mysite.settings; for all",
    ),
    "an app's configuration": (
        "INSTALLED_APPS = ['notes.apps.NotesConfg']",
        "PS102",
        "  INSTALLED_APPS of mysite.settings, 'notes.apps.NotesConfg'",
        "→ did you mean 'notes.apps.NotesConfig'? correct INSTALLED_APPS",
    ),
    "a middleware": (
        "MIDDLEWARE = ['mysite.middleware.Slo']",
        "PS102",
        "  MIDDLEWARE of mysite.settings, 'mysite.middleware.Slo'",
        "→ did you mean 'mysite.middleware.Slow'? correct MIDDLEWARE of mysite.settings; for",
    ),
    "a middleware's module": (
        "MIDDLEWARE = ['mysite.midleware.Slow']",
        "PS102",
        "  MIDDLEWARE of mysite.settings, 'mysite.midleware.Slow'",
        "→ did you mean 'mysite.middleware.Slow'? correct MIDDLEWARE of mysite.settings; for",
    ),
    "users": (
        f"INSTALLED_APPS = [{AUTH}, 'accounts']\nAUTH_USER_MODEL = 'accounts.Users'",
        "PS102",
        "AUTH_USER_MODEL refers to model 'accounts.Users' that has not been installed",
        "→ did you mean 'accounts.User'? correct AUTH_USER_MODEL of mysite.settings; for",
    ),
    "users of an app that is not installed": (
        f"INSTALLED_APPS = [{AUTH}]\nAUTH_USER_MODEL = 'accounts.User'",
        "PS102",
        "AUTH_USER_MODEL refers to model 'accounts.User' that has not been installed",
        "→ correct AUTH_USER_MODEL of mysite.settings, or add its app to INSTALLED_APPS; for",
    ),
    "the type of keys": (
        "INSTALLED_APPS = ['notes']\nDEFAULT_AUTO_FIELD = 'django.db.models.BigAuto'",
        "PS102",
        "  mysite.settings: django.core.exceptions.ImproperlyConfigured: DEFAULT_AUTO_FIELD",
        "→ correct DEFAULT_AUTO_FIELD of mysite.settings; for all",
    ),
}


@pytest.mark.parametrize(("settings", "code", "says", "remedy"), NAMED.values(), ids=NAMED.keys())
def test_what_a_setting_names(
    project: MakeProject, settings: str, code: str, says: str, remedy: str
) -> None:
    folder = project(databases=SQLITE, settings=settings)
    write(folder, FILES)
    done = run("mysite.wsgi", "--check", cwd=folder)
    done.assert_one_problem(code, EXIT_PROJECT, remedy=remedy)
    assert says in done.output


@pytest.mark.parametrize(
    ("keys", "remedy"),
    [
        ((), "write \"ENGINE\": 'django.db.backends.mysql' in DATABASES"),
        (("ENGIN",), "rename 'ENGIN' to 'ENGINE' in DATABASES"),
    ],
)
def test_a_database_without_an_engine(
    project: MakeProject, keys: tuple[str, ...], remedy: str
) -> None:
    settings = mysql_at("127.0.0.1")
    engine = settings["default"].pop("ENGINE")
    settings["default"] |= dict.fromkeys(keys, engine)
    done = run("mysite.wsgi", "--check", cwd=project(databases=settings))
    done.assert_one_problem("PS110 default", 0, "there is NAME, and no ENGINE", remedy)


@pytest.mark.parametrize(("key", "empty"), [("''", True), ("None", True), ("'x'", False)])
def test_an_empty_secret_key_is_noted(project: MakeProject, key: str, empty: bool) -> None:
    folder = project(databases=SQLITE, settings=f"SECRET_KEY = {key}")
    output = run("mysite.wsgi", "--check", cwd=folder).output
    assert ("note  SECRET_KEY  it is empty: whatever signs" in output) == empty, output
