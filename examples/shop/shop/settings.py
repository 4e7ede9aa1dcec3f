"""Settings of the example shop. Whatever differs from one machine to the next is an environment
variable: DATABASE_URL, SECRET_KEY, DEBUG, ALLOWED_HOSTS, CONN_MAX_AGE, CARRIER_URL, CARRIER_DELAY.
"""

import os
from pathlib import Path

from shop import database_url

BASE_DIR = Path(__file__).resolve().parent.parent

# Good enough for a demo on one's own machine only: anyone can read it here.
SECRET_KEY = os.environ.get("SECRET_KEY", "insecure-demo-key")
DEBUG = os.environ.get("DEBUG", "").lower() in {"1", "true", "yes", "on"}
ALLOWED_HOSTS = os.environ.get("ALLOWED_HOSTS", "localhost,127.0.0.1,[::1]").split(",")

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "store",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "shop.urls"
WSGI_APPLICATION = "shop.wsgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

DATABASES = {
    "default": {
        **database_url.parse(os.environ.get("DATABASE_URL") or f"sqlite:///{BASE_DIR}/db.sqlite3"),
        "CONN_MAX_AGE": int(os.environ.get("CONN_MAX_AGE", "0")),
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

SESSION_ENGINE = "django.contrib.sessions.backends.db"

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]

LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"
USE_TZ = True

STATIC_URL = "static/"

# With DEBUG off Django would mail errors to ADMINS and show them nowhere.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "loggers": {"django": {"handlers": ["console"], "level": "WARNING"}},
}

# The outside service that quotes a delivery, called as CARRIER_URL?grams=N. Without one the shop
# pretends, and takes CARRIER_DELAY seconds about it.
CARRIER_URL = os.environ.get("CARRIER_URL", "")
CARRIER_DELAY = float(os.environ.get("CARRIER_DELAY", "0.3"))
