"""The shop's settings, as the contender of $CONTENDER wants them with $CONNECTIONS connections."""

import os

from contenders import contender

from shop.settings import *  # noqa: F403  as every settings module for one purpose has it
from shop.settings import DATABASES, INSTALLED_APPS

CONNECTIONS = int(os.environ["CONNECTIONS"])

_contender = contender(os.environ["CONTENDER"], CONNECTIONS)
if _contender.pymysql:
    import pymysql

    pymysql.install_as_MySQLdb()

DATABASES["default"] |= _contender.database
INSTALLED_APPS += _contender.apps
ROOT_URLCONF = "peers.urls"
