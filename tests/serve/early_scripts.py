"""What test_early.py runs in a process of its own: what is unloaded with Django, and what stays."""

import importlib
import sys
from types import ModuleType

import django

from pooled_serve.serve import early

IN_C = "cryptography.hazmat.bindings._rust"
"""A module that a package has in C: not all can be loaded twice."""


def unload() -> None:
    before = dict(sys.modules)
    for name in ("asgiref.sync", IN_C, "django.db", "pooled_serve.backend.patch"):
        assert name not in before, name
        importlib.import_module(name)
    early.forget(before)
    for name in ("asgiref", "django.db", "pooled_serve.backend", "pooled_serve.backend.patch"):
        assert name not in sys.modules, name
    assert not hasattr(django, "db"), "from django import db would find it"
    assert sys.modules["django"] is before["django"]
    assert IN_C in sys.modules
    assert "cryptography.hazmat" in sys.modules


def keep_without_django() -> None:
    before = dict(sys.modules)
    sys.modules["plain"] = ModuleType("plain")
    early.forget(before)
    assert "plain" in sys.modules


if __name__ == "__main__":
    unload()
    keep_without_django()
