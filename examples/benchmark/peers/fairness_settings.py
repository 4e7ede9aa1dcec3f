"""peers.settings for fairness.py: the contenders differ in how they take turns, and in little else.

PyMySQL spends some 40 ms of CPU on each connection that might use TLS. With clients that close
their connections, those of plain Gunicorn would wait for that and not for their turn.
"""

from peers.settings import *  # noqa: F403
from peers.settings import DATABASES, _contender

if _contender.pymysql:
    DATABASES["default"].setdefault("OPTIONS", {})["ssl_disabled"] = True
