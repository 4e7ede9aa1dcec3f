"""Error codes of MySQL and MariaDB: all that the package knows, and what they mean to it.

The names are those of ``pymysql.constants``. The numbers stand here because the master uses them,
too, and must not import PyMySQL before gevent has patched.
"""

from __future__ import annotations

import re

# The server's.
CON_COUNT_ERROR = 1040
DBACCESS_DENIED_ERROR = 1044
ACCESS_DENIED_ERROR = 1045
UNKNOWN_COM_ERROR = 1047
BAD_DB_ERROR = 1049
SERVER_SHUTDOWN = 1053
PARSE_ERROR = 1064
NO_SUCH_THREAD = 1094
HOST_IS_BLOCKED = 1129
HOST_NOT_PRIVILEGED = 1130
TABLEACCESS_DENIED_ERROR = 1142
COLUMNACCESS_DENIED_ERROR = 1143
ERROR_DURING_COMMIT = 1180
TOO_MANY_USER_CONNECTIONS = 1203
USER_LIMIT_REACHED = 1226
OPTION_PREVENTS_STATEMENT = 1290
MUST_CHANGE_PASSWORD = 1820
MUST_CHANGE_PASSWORD_LOGIN = 1862
# The server's that PyMySQL has no name for.
PLUGIN_IS_NOT_LOADED = 1524
ACCESS_DENIED_NO_PASSWORD_ERROR = 1698
READ_ONLY_MODE = 1836
CONNECTION_KILLED = 1927  # MariaDB
SERVER_OFFLINE_MODE = 3032  # MySQL
ACCOUNT_HAS_BEEN_LOCKED = 3118  # MySQL
SECURE_TRANSPORT_REQUIRED = 3159
BLOCKED_BY_PASSWORD_LOCK = 3955  # MySQL: after FAILED_LOGIN_ATTEMPTS
CLIENT_INTERACTION_TIMEOUT = 4031  # MySQL: it was idle for wait_timeout
USER_IS_BLOCKED = 4150  # MariaDB: after max_password_errors
ACCOUNT_HAS_BEEN_LOCKED_MARIADB = 4151

# The client's, which PyMySQL raises.
CR_CONNECTION_ERROR = 2002
CR_CONN_HOST_ERROR = 2003
CR_SERVER_GONE_ERROR = 2006
CR_SERVER_LOST = 2013
CR_COMMANDS_OUT_OF_SYNC = 2014
CR_SSL_CONNECTION_ERROR = 2026
CR_SERVER_LOST_EXTENDED = 2055
CR_AUTH_PLUGIN_CANNOT_LOAD = 2059
CR_AUTH_PLUGIN_ERR = 2061

GONE = frozenset(
    {
        SERVER_SHUTDOWN,
        CONNECTION_KILLED,
        CR_SERVER_GONE_ERROR,
        CR_SERVER_LOST,
        CR_COMMANDS_OUT_OF_SYNC,
        CR_SERVER_LOST_EXTENDED,
        CLIENT_INTERACTION_TIMEOUT,
    }
)
"""Errors after which a connection cannot be used."""

HUNG_UP = frozenset({CR_SERVER_GONE_ERROR, CR_SERVER_LOST, CR_SERVER_LOST_EXTENDED})
"""Errors of a connect that somebody has accepted, who may be a proxy, without an answer of a
server."""

NOT_REACHED = frozenset({CR_CONNECTION_ERROR, CR_CONN_HOST_ERROR})
"""Errors of a connect that no server answered; a full server does answer."""

FULL = frozenset({CON_COUNT_ERROR, TOO_MANY_USER_CONNECTIONS, USER_LIMIT_REACHED})
"""Errors of a connect for which a server or an account has no connection left."""

TLS = frozenset({CR_SSL_CONNECTION_ERROR, SECURE_TRANSPORT_REQUIRED})
"""Errors of a connect without the TLS that the server, or the client, requires."""

LOCKED = frozenset(
    {
        ACCOUNT_HAS_BEEN_LOCKED,
        ACCOUNT_HAS_BEEN_LOCKED_MARIADB,
        BLOCKED_BY_PASSWORD_LOCK,
        USER_IS_BLOCKED,
    }
)
"""Errors of a connect whose account an administrator, or its wrong passwords, have locked."""

LOGIN_REFUSED = frozenset(
    {
        DBACCESS_DENIED_ERROR,
        ACCESS_DENIED_ERROR,
        BAD_DB_ERROR,
        ACCESS_DENIED_NO_PASSWORD_ERROR,
        MUST_CHANGE_PASSWORD,
        MUST_CHANGE_PASSWORD_LOGIN,
        HOST_NOT_PRIVILEGED,
        PLUGIN_IS_NOT_LOADED,
        *LOCKED,
    }
)
"""Errors of a connect that a server has answered, but without letting the client in: a matter of
the user, the password or the name of the database."""

NO_RIGHTS_ON_TABLE = frozenset({TABLEACCESS_DENIED_ERROR, COLUMNACCESS_DENIED_ERROR})
"""Errors of a statement for which an account lacks rights on a table, which may not even exist."""

_NOT_READY = {UNKNOWN_COM_ERROR: "WSREP", ERROR_DURING_COMMIT: "Primary Component"}
_READ_ONLY_OPTION = re.compile(r"--(?:super-|innodb-)?read-only(?![\w-])")


def code_of(error: BaseException) -> int:
    """Returns the code of one of PyMySQL's errors; 0 if it has none."""
    if isinstance(error, LookupError):
        return 0  # what a KeyError has there is a key
    code = error.args[0] if error.args else 0
    return code if isinstance(code, int) else 0


def is_answer(error: BaseException) -> bool:
    """Whether an error is one that a server has sent, and none that the client has found by
    itself."""
    thousands = code_of(error) // 1000
    return thousands > 0 and thousands != CR_CONNECTION_ERROR // 1000


def is_outage(error: BaseException) -> bool:
    """Whether an error of a connect is one of those that pass by themselves: nobody answers, a
    proxy in front finds nobody, the server is shutting down, starting, or full."""
    return code_of(error) in NOT_REACHED | FULL | GONE or is_not_ready(error)


def is_not_ready(error: BaseException) -> bool:
    """Whether an error is that of a node of a Galera cluster which has left the cluster, or has yet
    to join it: "WSREP has not yet prepared node for application use".

    Its code is that of an unknown command. Such a node lets clients log in, and answers what needs
    no table. A COMMIT that meets the loss of the others gets an error of its own: "... (provider
    status: Not connected to Primary Component)".
    """
    text = _NOT_READY.get(code_of(error))
    return text is not None and text in str(error)


def is_unknown_command(error: BaseException) -> bool:
    """Whether an error means that the server has no such command."""
    return code_of(error) == UNKNOWN_COM_ERROR and not is_not_ready(error)


def is_read_only(code: int, message: str) -> bool:
    """Whether an error means that the server has become read-only, so that a new connection may
    reach the new primary.

    OPTION_PREVENTS_STATEMENT is for any option that forbids a statement, and names the option.
    Error 1792 does not count: the client asked for a READ ONLY transaction or session.
    """
    if code == OPTION_PREVENTS_STATEMENT:
        return _READ_ONLY_OPTION.search(message) is not None
    return code == READ_ONLY_MODE
