"""What the answer to a first error imports, imported before there is one.

An error is often that of a process without file descriptors, in which no import succeeds. Then the
first error would fail itself: its client gets no answer, and the log does not say what happened.
"""

from __future__ import annotations

import codecs
import importlib
import io
import traceback


def rehearse() -> None:
    """Print an error, and import what Django answers one with. Reads no settings."""
    try:
        raise RuntimeError("rehearsed")
    except RuntimeError as error:
        # As logging prints it. From Python 3.15 on traceback imports what it colours with at its
        # first use; PyMySQL prints a traceback for each connect that fails.
        traceback.print_exception(error, file=io.StringIO())
    # Django's django.urls.resolvers imports the first at the first error, the URL configuration's
    # handlers name the second.
    for name in ("django.conf.urls", "django.views.defaults"):
        importlib.import_module(name)
    codecs.lookup("unicode_escape")  # Django writes so what it logs of a request
