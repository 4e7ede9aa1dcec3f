"""The problem codes: what each means, why it happens, what helps, and an example.

``--explain`` shows this, and ``tests/support/readme_tables.py`` writes README.md's table from it.
Messages say more: they have names, numbers and the remedy for the case at hand.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass

WIDTH = 79


@dataclass(frozen=True)
class Problem:
    """A code. Its texts are Markdown."""

    code: str
    meaning: str
    remedy: str
    cause: str
    example: str

    def explain(self) -> str:
        """Returns all of it as plain text for a terminal."""
        lines = []
        parts = (self.code, self.meaning), ("Cause", self.cause), ("Remedy", self.remedy)
        for name, text in parts:
            indent = " " * 9
            first = f"{name:<9}"
            lines += textwrap.wrap(
                _plain(text), WIDTH, initial_indent=first, subsequent_indent=indent
            )
        lines.append(f"{'Example':<9}{self.example}")
        return "\n".join(lines)


def _plain(markdown: str) -> str:
    text = re.sub(r"\[(.+?)\]\(#.*?\)", r'"\1" in the README', markdown.replace("`", ""))
    return text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")


PROBLEMS = (
    Problem(
        "PS101",
        "the application's module does not exist",
        "run the command where `manage.py` is, or add `--chdir DIR`",
        "Python finds no module of that name from the directory in which the command runs. "
        "The application is named as Python imports it, starting from the folder with "
        "manage.py.",
        "cd /srv/myproject && pooled-serve myproject.wsgi",
    ),
    Problem(
        "PS102",
        "the project fails while it is imported",
        "the message has the error, file and line, and a command that shows all of the traceback",
        "Importing the module runs the project's settings and apps, and one of them raised "
        "an error. It would stop any other server, too.",
        "python -c 'import pymysql; pymysql.install_as_MySQLdb(); import myproject.wsgi'",
    ),
    Problem(
        "PS103",
        "the module has no such attribute, or one that cannot be called",
        "write `myproject.wsgi`, or name the attribute as in `myproject.wsgi:application`",
        "A WSGI server calls one object of the module. Without a name after the colon that "
        "is `application`.",
        "pooled-serve myproject.wsgi:application",
    ),
    Problem(
        "PS104",
        "the application is not a Django project, or names no settings",
        "name the project's `wsgi` module; set `DJANGO_SETTINGS_MODULE`, or use `--settings "
        "MODULE`",
        "The module was imported, but nothing in it has set up Django's settings.",
        "pooled-serve myproject.wsgi --settings myproject.settings",
    ),
    Problem(
        "PS105",
        "the settings do not exist",
        "name the project's `wsgi` module; set `DJANGO_SETTINGS_MODULE`, or use `--settings "
        "MODULE`",
        "DJANGO_SETTINGS_MODULE, --settings or the wsgi module names settings that Python "
        "cannot find.",
        "pooled-serve myproject.wsgi --settings myproject.settings.production",
    ),
    Problem(
        "PS106",
        "the application is an ASGI application",
        "use the project's `wsgi` module",
        "An ASGI application runs in an asyncio loop, and Gunicorn's gevent worker has none.",
        "pooled-serve myproject.wsgi",
    ),
    Problem(
        "PS107",
        "a file was named instead of a module",
        "write `myproject.wsgi`, not `myproject/wsgi.py`",
        "Applications and settings are named as Python imports them: with dots, and without .py.",
        "pooled-serve myproject.wsgi --chdir /srv/myproject",
    ),
    Problem(
        "PS108",
        "the project has async views or middleware",
        "make them plain functions, which under gevent do not block other requests",
        "While an async view or middleware runs, Django takes the whole worker for an event "
        "loop and refuses the queries of all other requests in it.",
        "def view(request): ...  # not: async def",
    ),
    Problem(
        "PS109",
        "the URL configuration is not there, or fails while it is imported",
        "the message has the error, file and line, and a command that shows all of the traceback",
        "Django imports the URL configuration at the first request, which would then fail, "
        "as all that follow. `--check` and `--strict` refuse it, a plain start warns.",
        "python -c 'import pymysql; pymysql.install_as_MySQLdb(); import myproject.wsgi, "
        "myproject.urls'",
    ),
    Problem(
        "PS110",
        'a value in `DATABASES` has a wrong type, such as `CONN_MAX_AGE: "60"`, or a key is '
        "misspelt",
        "use `int(...)` around what comes from the environment",
        "Environment variables are text, and Django passes text on where the driver needs a "
        "number. A key that it does not know Django ignores.",
        '"CONN_MAX_AGE": int(os.environ["CONN_MAX_AGE"])',
    ),
    Problem(
        "PS111",
        "the project has been loading for 15 s",
        "look for a loop, or for a server that does not answer; Ctrl-C ends it",
        "Something that the project does while it is imported takes long or never ends. The "
        "workers would wait just as long.",
        "python -X importtime -c 'import myproject.wsgi'",
    ),
    Problem(
        "PS112",
        "`OPTIONS` of a database cannot be used with PyMySQL",
        "the message names what works instead; see [Migrating](#from-mysqlclient-to-pymysql)",
        "The web server's driver is PyMySQL. It does what mysqlclient does with nearly all "
        "words of OPTIONS, and this is one that has no equivalent.",
        '"OPTIONS": {"ssl_mode": "REQUIRED"}',
    ),
    Problem(
        "PS113",
        "`DEBUG` is off and `ALLOWED_HOSTS` is empty",
        "list the site's host names in `ALLOWED_HOSTS`",
        "With DEBUG off Django answers every request whose host is not in ALLOWED_HOSTS "
        "with 400, and the list is empty. `--strict` refuses that.",
        'ALLOWED_HOSTS = ["www.example.com"]',
    ),
    Problem(
        "PS201",
        "there may be more connections than the server allows",
        "see [Sizing](#sizing), or raise the server's limit",
        "If every pool were full, the server would refuse connections, and requests would "
        "fail under load only. Replicas, workers and the cap multiply.",
        "pooled-serve myproject.wsgi -w 3 --max-per-host 60",
    ),
    Problem(
        "PS202",
        "there may be more connections than the server has left now",
        "fine during a deploy, if the old instance holds the rest; else as PS201",
        "The server's limit is high enough, but others hold so many of its connections now "
        "that not all pools could be full. During a deploy that is the instance about to "
        "go.",
        "SHOW PROCESSLIST",
    ),
    Problem(
        "PS203",
        "connections would outlive the server's `wait_timeout`",
        "lower `--conn-max-age` (or `CONN_MAX_AGE`), or raise `wait_timeout`",
        "The server closes a connection that was idle for wait_timeout. Connections must "
        "retire before that.",
        "pooled-serve myproject.wsgi --conn-max-age 300",
    ),
    Problem(
        "PS204",
        "max-outstanding or max-per-host is smaller than pool-size",
        "lower `--pool-size`, or raise the other",
        "Not all connections of the pool could ever be used at a time, because the cap is smaller.",
        "pooled-serve myproject.wsgi --pool-size 4 --max-outstanding 12",
    ),
    Problem(
        "PS205",
        "`--pool` names a database that is not in `DATABASES`",
        "use one of the aliases that the message lists",
        "--pool takes the alias of a database, the key in DATABASES.",
        "pooled-serve myproject.wsgi --pool replica:8:16",
    ),
    Problem(
        "PS206",
        "connections never retire",
        "give `--conn-max-age` a number; an hour is long",
        "Old connections hold on to memory in the server, and after a failover they stay on "
        "the old primary.",
        "pooled-serve myproject.wsgi --conn-max-age 3600",
    ),
    Problem(
        "PS207",
        "the project calls `pooled_serve.pooling`, whose numbers do not count here",
        "delete the calls; use `--pool-size` and `--max-outstanding`",
        "The calls are for projects that have a launcher of their own. The command plans "
        "with its own options, and with no others.",
        "pooled-serve myproject.wsgi --pool-size 4 --max-outstanding 12",
    ),
    Problem(
        "PS208",
        "the plan leaves few or none of the server's connections to others",
        "lower the numbers as the message says, or raise the server's limit",
        "Migrations, cron jobs, backups and administrators connect, too. If all that the server "
        "allows is used by the site in a busy minute, they get 'Too many connections'. A fifth is "
        "a good part to keep; less than a tenth is a warning.",
        "pooled-serve myproject.wsgi --max-per-host 120",
    ),
    Problem(
        "PS301",
        "the database server does not accept connections",
        "start it, or correct `HOST` and `PORT`, or the socket's path (`OPTIONS['unix_socket']`), "
        "in `DATABASES`",
        "Nothing listens at that address or socket: the server is down, starting, or "
        "somewhere else.",
        "mysqladmin -h 127.0.0.1 -P 3306 ping",
    ),
    Problem(
        "PS302",
        "the host of the database server is unknown",
        "correct `HOST` in `DATABASES`, or DNS on this machine",
        "The name in HOST has no address. In containers it is the name of a service, and "
        "valid in its network only.",
        "getent hosts db",
    ),
    Problem(
        "PS303",
        "the user or the password is refused, or the account is locked",
        "correct `USER` and `PASSWORD`; accounts depend on the client's host, too",
        "The server knows no such user from this client's host, or the password is wrong or "
        "has expired. An account consists of user and host: 'app'@'localhost' is for the "
        "socket, 'app'@'%' for other machines.",
        "SELECT user, host, plugin FROM mysql.user",
    ),
    Problem(
        "PS304",
        "the database does not exist, or not for this user",
        "create it, or `GRANT` the user rights on it",
        "The login succeeded, but the database in NAME does not exist, or the user has no "
        "rights on it.",
        "GRANT ALL ON shop.* TO 'app'@'%'",
    ),
    Problem(
        "PS305",
        "the database server has no free connections",
        "close idle ones (`SHOW PROCESSLIST`), or raise the limit",
        "All connections that the server, or this account, may have are in use.",
        "SHOW VARIABLES LIKE 'max%connections'",
    ),
    Problem(
        "PS306",
        "the login needs the cryptography package",
        "`pip install 'pooled-serve[rsa]'`, or use TLS",
        "MySQL's caching_sha2_password encrypts the password with the server's key when "
        "there is no TLS, and PyMySQL needs a package for that.",
        "pip install 'pooled-serve[rsa]'",
    ),
    Problem(
        "PS307",
        "the database server did not answer in time",
        "it may be frozen, or a firewall drops packets; try `mysqladmin -h HOST ping`",
        "The server accepted the connection or ignored it, and stayed silent.",
        "mysqladmin -h 127.0.0.1 -P 3306 ping",
    ),
    Problem(
        "PS308",
        "the database server answers with an error, or Python code fails in the connect",
        "see the message: it names the option in `OPTIONS`, or else see the server's error log",
        "The server answered the login with an error that has no code of its own here. Or a class, "
        "function or engine that DATABASES names has raised an exception: the message has it, with "
        "file and line.",
        "tail /var/log/mysql/error.log",
    ),
    Problem(
        "PS309",
        "the TLS connection to the server fails",
        "correct `ssl` and `ssl_mode` in `OPTIONS`",
        "The two sides could not agree on TLS: the server has none, its certificate is not "
        "trusted, or it is for another host.",
        '"OPTIONS": {"ssl_mode": "VERIFY_CA", "ssl": {"ca": "/etc/ssl/db-ca.pem"}}',
    ),
    Problem(
        "PS310",
        "`localhost` stands for a socket, and the server there has another port than `PORT`",
        "use `127.0.0.1` for that port, or leave `PORT` empty",
        "As for mysqlclient, an empty HOST and localhost mean the server's Unix socket, and "
        "PORT does not count there.",
        '"HOST": "127.0.0.1", "PORT": 3307',
    ),
    Problem(
        "PS401",
        "an option has a value that cannot be used",
        "the message says where the option was set",
        "The value has the wrong type, or is out of range.",
        "pooled-serve --help",
    ),
    Problem(
        "PS402",
        "an option, a variable or a setting is unknown",
        "the message has the nearest name, if there is one",
        "Neither Gunicorn nor pooled-serve knows the name, so it would have no effect.",
        "pooled-serve --help",
    ),
    Problem(
        "PS403",
        "the configuration file fails",
        "the error, file and line are in the message",
        "The file is missing, or fails while it is run: it is Python.",
        "pooled-serve myproject.wsgi -c /srv/gunicorn.conf.py",
    ),
    Problem(
        "PS404",
        "the worker class is not gevent",
        "remove `-k` from where the message says",
        "The pool shares connections between greenlets, and only Gunicorn's gevent worker "
        "runs requests in them.",
        "pooled-serve myproject.wsgi -w 3",
    ),
    Problem(
        "PS405",
        "no application was given",
        "name it, or set `wsgi_app` in `gunicorn.conf.py`",
        "Neither the command line nor a configuration file names the project's WSGI application.",
        "pooled-serve myproject.wsgi",
    ),
    Problem(
        "PS406",
        "none of the inherited sockets is the status page's",
        "add one where they come from (systemd, `fd://`, USR2), or leave out `--status`",
        "Sockets from systemd, fd:// or an old master replace the addresses on the command "
        "line, --status included.",
        "ListenStream=127.0.0.1:8001  # in the .socket unit",
    ),
    Problem(
        "PS407",
        "the status page can be reached from other machines",
        "give `--status` the loopback address, or one in a private network",
        "The status page has no login. It shows the names of databases and their load to "
        "everybody who can reach it.",
        "pooled-serve myproject.wsgi --status 127.0.0.1:8001",
    ),
    Problem(
        "PS408",
        "Django is loaded before gevent has patched",
        "import it, and what imports it, inside of `post_worker_init(worker)`, or of functions "
        "that run later in the worker",
        "The configuration file and its hooks up to post_fork run before gevent patches, and so do "
        "launchers of agents, as opentelemetry-instrument. A Django that is loaded there keeps "
        "its connections for a thread and not for a greenlet, so that requests would get each "
        "other's. With --preload only the file itself runs earlier.",
        "def post_worker_init(worker):\n    from django.db import connection",
    ),
    Problem(
        "PS501",
        "the address cannot be listened on",
        "the message says why: in use, not of this machine, not allowed, or no such folder",
        "The system refuses the address: it is taken, belongs to another machine, or takes "
        "rights that this user does not have.",
        "pooled-serve myproject.wsgi -b 127.0.0.1:8080",
    ),
    Problem(
        "PS502",
        "mysqlclient is loaded",
        "remove the import of `MySQLdb` from the configuration file and what that imports, or from "
        "what runs before `pooling.apply_patch()`; one in the project gets PyMySQL, and may stay",
        "mysqlclient waits in C code, where gevent cannot switch: one query would stop all "
        "requests of the worker.",
        "pip uninstall mysqlclient  # if nothing else needs it",
    ),
    Problem(
        "PS503",
        "another connection pool has patched Django",
        "remove the call that the message names",
        "Two pools on top of each other lose connections.",
        "pooled-serve myproject.wsgi --pool-size 4  # and no other pool",
    ),
    Problem(
        "PS504",
        "a package has changed where pooled-serve plugs in",
        "install the version of it that the message names, or a newer pooled-serve",
        "The package is newer than what pooled-serve was tested with, and a function that "
        "it replaces or calls is not as it was.",
        "pip install --upgrade pooled-serve",
    ),
    Problem(
        "PS505",
        "`--advise` finds no instance at the address",
        "see that it runs, and give the address of its `--status`",
        "Nobody answers there, or somebody else: the site itself has another address.",
        "pooled-serve --advise 127.0.0.1:8001",
    ),
)

BY_CODE = {problem.code: problem for problem in PROBLEMS}

GROUPS = (
    "PS101 PS103 PS107",
    "PS102 PS109",
    "PS104 PS105",
    "PS106 PS108",
    "PS110 PS112 PS113",
    "PS111",
    "PS201 PS202 PS208",
    "PS203 PS206",
    "PS204 PS205",
    "PS207",
    "PS301 PS302 PS310",
    "PS303 PS304 PS306",
    "PS305 PS307",
    "PS308 PS309",
    "PS401 PS402 PS403",
    "PS404 PS405",
    "PS406 PS407 PS408",
    "PS501 PS505",
    "PS502 PS503 PS504",
)
"""The codes that share a row of the README's table."""


def table() -> str:
    """Returns the README's table."""
    rows = ["| problem | what helps |", "|---|---|"]
    for group in GROUPS:
        if missing := [code for code in group.split() if code not in BY_CODE]:
            raise LookupError(f"GROUPS has {missing[0]}, for which PROBLEMS has no Problem")
        found = [BY_CODE[code] for code in group.split()]
        meanings = ". ".join(f"{p.code}: {p.meaning}" for p in found)
        remedies = [found[0].remedy]
        if len({p.remedy for p in found}) > 1:
            remedies = [f"{p.code}: {p.remedy}" for p in found]
        rows.append(f"| {meanings} | {'. '.join(remedies)} |")
    return "\n".join(rows)
