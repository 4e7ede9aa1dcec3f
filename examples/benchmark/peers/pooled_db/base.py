"""DBUtils' PooledDB below Django's MySQL backend: the least code that joins the two."""

import threading
from typing import Any

import MySQLdb
from dbutils.pooled_db import PooledDB
from django.db.backends.mysql import base

_pools: dict[str, PooledDB] = {}
_lock = threading.Lock()


class DatabaseWrapper(base.DatabaseWrapper):
    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        with _lock:
            if self.alias not in _pools:
                bound = self.settings_dict["CONNECTIONS"]
                _pools[self.alias] = PooledDB(
                    MySQLdb,
                    maxcached=bound,
                    maxconnections=bound,
                    blocking=True,
                    **conn_params,
                )
        return _pools[self.alias].connection()

    def _set_autocommit(self, autocommit: bool) -> None:
        with self.wrap_database_errors:
            self.connection.dbapi_connection.autocommit(autocommit)
