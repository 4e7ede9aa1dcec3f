"""Settings for Django's tests: two databases on the server that the environment names."""

import os
from urllib.parse import unquote, urlsplit

_url = urlsplit(os.environ["DJANGO_SUITE_SERVER"])
_server = {
    "ENGINE": "django.db.backends.mysql",
    "HOST": _url.hostname,
    "PORT": _url.port,
    "USER": _url.username,
    "PASSWORD": unquote(_url.password or ""),
}

DATABASES = {"default": {**_server, "NAME": "shop"}, "other": {**_server, "NAME": "other"}}

# From here on as in Django's own test_sqlite.py.
SECRET_KEY = "django_tests_secret_key"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
USE_TZ = False

# runtests.py sets it; where coverage is installed, each subprocess of a test would be measured.
os.environ.pop("COVERAGE_PROCESS_START", None)

TEST_RUNNER = "suite_runner.Runner"
