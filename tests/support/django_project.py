"""Throwaway Django projects."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent
from typing import Any

APP = "mysite.wsgi"

SQLITE = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
PASSWORD = "hunter2-and-more"
"""That of mysql_at(), which nobody may print."""


def mysql_at(host: str, port: int = 3306, **settings: object) -> dict[str, Any]:
    """DATABASES with a server that need not be there."""
    return {
        "default": {
            "ENGINE": "django.db.backends.mysql",
            "HOST": host,
            "PORT": port,
            "NAME": "app",
            "USER": "app",
            "PASSWORD": PASSWORD,
            **settings,
        }
    }


SETTINGS = """
    ALLOWED_HOSTS = ["*"]
    SECRET_KEY = "for tests"
    ROOT_URLCONF = "mysite.urls"
    WSGI_APPLICATION = "mysite.wsgi.application"
    USE_TZ = True
    DATABASES = {databases!r}
"""

# Each function in views.py is served under its own name.
URLS = """
    from inspect import isfunction

    from django.urls import path

    from mysite import views

    urlpatterns = [
        path(name, view)
        for name, view in vars(views).items()
        if isfunction(view) and view.__module__ == views.__name__
    ]
"""

WSGI = """
    import os

    from django.core.wsgi import get_wsgi_application

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
    application = get_wsgi_application()
"""

ONE = """
    from django.db import connection
    from django.http import HttpResponse

    def one(request):
        with connection.cursor() as cursor:
            cursor.execute("SELECT CONNECTION_ID()")
            return HttpResponse(str(cursor.fetchone()[0]))
"""
"""A view that asks for the number of its connection."""


Views = str | Path | tuple[str | Path, ...]
"""A source, the file that it is copied from, or several that become one module."""


def write_project(
    folder: Path,
    *,
    databases: Mapping[str, Any],
    views: Views = "",
    settings: str = "",
    urls: str = URLS,
    wsgi: str = WSGI,
) -> Path:
    """Write the project `mysite` into `folder`, and return that.

    `settings` is appended to the generated settings. Sources may be indented.
    """
    package = folder / "mysite"
    package.mkdir(parents=True)
    sources = {
        "__init__": "",
        "settings": dedent(SETTINGS).format(databases=dict(databases)) + dedent(settings),
        "urls": urls,
        "views": source_of(views),
        "wsgi": wsgi,
    }
    for name, source in sources.items():
        (package / f"{name}.py").write_text(dedent(source).lstrip())
    return folder


def source_of(views: Views) -> str:
    if isinstance(views, tuple):
        return "\n\n".join(map(source_of, views))
    return views.read_text() if isinstance(views, Path) else dedent(views)


def rewrite(file: Path, source: str) -> None:
    """Change a file of Python that a server has read, so that it notices when it reads it again.

    What it has compiled it takes for the same file's, if that has the same size and was written in
    the same second.
    """
    later = file.stat().st_mtime + 1
    file.write_text(source)
    os.utime(file, (later, later))
