"""mysqlclient's words for a connect, in PyMySQL's."""

from __future__ import annotations

import os
import pwd
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymysql.constants import CLIENT, FIELD_TYPE
from pymysql.err import NotSupportedError

from pooled_serve.driver import option_files, parameters
from pooled_serve.driver.connection import MySQLConnection
from pooled_serve.driver.parameters import UnsupportedOption, translate

REMOTE = {"host": "db", "user": "app"}
OWN_NAME = pwd.getpwuid(os.geteuid()).pw_name


@pytest.fixture(autouse=True)
def nothing_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """No server of this machine, and none that another test has found."""
    monkeypatch.setattr(parameters, "SOCKETS", ())
    monkeypatch.setattr(parameters, "_seen", {})
    monkeypatch.delenv(parameters.SOCKET_VARIABLE, raising=False)


NOT_VERIFIED = {"verify_mode": False, "check_hostname": False}
WORDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ssl_mode DISABLED": ({"ssl_mode": "DISABLED", "ssl": {"ca": "x"}}, {"ssl_disabled": True}),
    "ssl_mode PREFERRED": ({"ssl_mode": "PREFERRED"}, {}),
    "ssl_mode PREFERRED with files": (
        {"ssl_mode": "PREFERRED", "ssl": {"cert": "x"}},
        {"ssl": {"cert": "x", **NOT_VERIFIED}},
    ),
    "ssl_mode REQUIRED": ({"ssl_mode": "REQUIRED"}, {"ssl": NOT_VERIFIED}),
    "ssl_mode VERIFY_CA": (
        {"ssl_mode": "VERIFY_CA", "ssl": {"ca": "x"}},
        {"ssl": {"ca": "x", "verify_mode": True, "check_hostname": False}},
    ),
    "ssl_mode VERIFY_IDENTITY": (
        {"ssl_mode": "VERIFY_IDENTITY", "ssl": {"ca": "x"}},
        {"ssl": {"ca": "x", "verify_mode": True, "check_hostname": True}},
    ),
    "ssl True": ({"ssl": True}, {"ssl": NOT_VERIFIED}),
    "ssl dict": ({"ssl": {"ca": "x"}}, {"ssl": {"ca": "x"}}),
    "ssl in PyMySQL's words": (
        {"ssl_ca": "x", "ssl_verify_identity": True},
        {"ssl_ca": "x", "ssl_verify_identity": True},
    ),
    "passwd": ({"passwd": "x", "db": "y"}, {"password": "x", "database": "y"}),
    "compress": ({"compress": True}, {}),
    "client_flag": (
        {"client_flag": CLIENT.FOUND_ROWS | CLIENT.COMPRESS | CLIENT.SSL},
        {"client_flag": CLIENT.FOUND_ROWS},
    ),
    "multi_statements": (
        {"multi_statements": True, "client_flag": CLIENT.FOUND_ROWS},
        {"client_flag": CLIENT.FOUND_ROWS | CLIENT.MULTI_STATEMENTS},
    ),
    "multi_statements False": ({"multi_statements": False}, {}),
    "timeouts": (
        {"connect_timeout": 0, "read_timeout": 0, "write_timeout": 7},
        {"write_timeout": 7},
    ),
    "auth_plugin": ({"auth_plugin": "caching_sha2_password"}, {}),
    "executemany_fallback": ({"executemany_fallback": "multi"}, {}),
    "named_pipe": ({"named_pipe": False}, {}),
    "autocommit": ({"autocommit": None}, {"autocommit": None}),
    "the same": (
        {"init_command": "SET @a = 1", "sql_mode": "ANSI", "charset": "utf8", "local_infile": True},
        {"init_command": "SET @a = 1", "sql_mode": "ANSI", "charset": "utf8", "local_infile": True},
    ),
}


@pytest.mark.parametrize(("given", "expected"), WORDS.values(), ids=WORDS.keys())
def test_words(given: dict[str, Any], expected: dict[str, Any]) -> None:
    before = dict(given)
    translated = translate({**REMOTE, **given})
    assert translated == {**REMOTE, **expected}
    assert given == before
    assert translate(translated) == translated  # which are PyMySQL's words


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "ssl_mode": ({"ssl_mode": "required"}, "'required'", "VERIFY_IDENTITY"),
    "two languages": ({"ssl_mode": "REQUIRED", "ssl_ca": "x"}, "'ssl_ca'", "use ssl_mode and ssl"),
    "local_infile_dir": ({"local_infile_dir": "/x"}, "'local_infile_dir'", "local_infile"),
    "named_pipe": ({"named_pipe": True}, "'named_pipe'", "HOST"),
    "auth_plugin": ({"auth_plugin": "dialog"}, "'dialog'", "auth_plugin_map"),
    "server_public_key_path": ({"server_public_key_path": "/no.pem"}, "/no.pem", "the path"),
    "conv": ({"conv": {FIELD_TYPE.LONG: [(1, int)]}}, "a list", "a function"),
    "charset": ({"charset": "klingon"}, "'klingon'", "utf8mb4"),
    "misspelt": ({"read_timout": 3}, "'read_timout'", "'read_timeout'"),
    "unheard of": ({"xyzzy": 3}, "'xyzzy'", "leave it out"),
}


@pytest.mark.parametrize(("given", "says", "remedy"), REFUSED.values(), ids=REFUSED.keys())
def test_what_has_no_translation(given: dict[str, Any], says: str, remedy: str) -> None:
    with pytest.raises(UnsupportedOption) as refused:
        translate({**REMOTE, **given})
    assert says in refused.value.problem
    assert remedy in refused.value.hint
    assert isinstance(refused.value, NotSupportedError)  # which Django knows


def test_each_word_is_told_of() -> None:
    told = {word for words in parameters.WORDS for word in words.split(", ")}
    assert "ssl_mode" in told
    for word in parameters._TRANSLATORS:
        if word not in told:
            pytest.fail(f"WORDS of driver/parameters.py lacks {word!r}: add it", pytrace=False)


def test_the_public_key_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_bytes(b"-----BEGIN")
    translated = translate({**REMOTE, "server_public_key_path": str(tmp_path / "key.pem")})
    assert translated == {**REMOTE, "server_public_key": b"-----BEGIN"}


def test_without_a_name_the_user_is_that_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the environment may be whoever started it, before --user."""
    monkeypatch.setenv("LOGNAME", "somebody")
    assert translate({"host": "db"})["user"] == OWN_NAME
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000_000)
    assert "user" not in translate({"host": "db"})


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("REQUIRED", (ssl.CERT_NONE, False)),
        ("VERIFY_CA", (ssl.CERT_REQUIRED, False)),
        ("VERIFY_IDENTITY", (ssl.CERT_REQUIRED, True)),
    ],
)
def test_what_is_verified_with_the_authorities_of_the_system(
    mode: str, expected: tuple[ssl.VerifyMode, bool]
) -> None:
    params = translate({**REMOTE, "ssl_mode": mode})
    context = MySQLConnection(**params, defer_connect=True).ctx
    assert (context.verify_mode, context.check_hostname) == expected
    assert not context.verify_flags & ssl.VERIFY_X509_STRICT


# --- The socket --------------------------------------------------------------------------------


@pytest.fixture
def listening(tmp_path: Path) -> Any:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "mysql.sock"))
        yield str(tmp_path / "mysql.sock")


def where(**params: Any) -> object:
    translated = translate({"user": "app", **params})
    return translated.get("unix_socket") or translated.get("host", "localhost")


def test_localhost_is_the_socket_if_there_is_one(
    monkeypatch: pytest.MonkeyPatch, listening: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    assert where() == where(host="localhost") == "localhost"
    monkeypatch.setattr(parameters, "SOCKETS", ("/nowhere", str(tmp_path / "file"), listening))
    assert where() == where(host="") == where(host="localhost") == listening
    assert where(host="127.0.0.1") == "127.0.0.1"
    assert where(host="db") == "db"
    assert where(unix_socket="/other") == "/other"
    os.unlink(listening)  # a server that restarts; its place is remembered
    assert where() == listening


def test_the_socket_that_the_environment_names(
    monkeypatch: pytest.MonkeyPatch, listening: str
) -> None:
    monkeypatch.setenv("MYSQL_UNIX_PORT", listening)
    monkeypatch.setattr(parameters, "SOCKETS", ("/nowhere",))
    assert where() == listening
    monkeypatch.setattr(parameters, "SOCKETS", (listening,))
    monkeypatch.setenv("MYSQL_UNIX_PORT", "/nowhere")
    assert where() == "localhost"  # another server's socket is not meant


# --- Option files ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "group", "expected"),
    [
        ("[client]\nuser = a\n[mysqld]\nuser=b", None, {"user": "a"}),
        ("[client]\nuser=a\nuser=b", None, {"user": "b"}),
        ("[client]\nuser=a\n[mine]\nuser=b", "mine", {"user": "b"}),
        ("[mine]\nuser=b\n[client]\nuser=a", "mine", {"user": "a"}),
        ("[client-server]\nuser=a\n[client-mariadb]\nport=1", None, {"user": "a", "port": "1"}),
        (
            "# one\n; two\n\n [client] \n  default_character_set = x",
            None,
            {"default-character-set": "x"},
        ),
        ("[client]\nssl-verify-server-cert", None, {"ssl-verify-server-cert": None}),
        ("[client]\npassword='a #b' # three", None, {"password": "a #b"}),
        ('[client]\npassword="a b" # three', None, {"password": "a b"}),
        ("[client]\npassword=a#b # three", None, {"password": "a#b"}),
        ("[client]\npassword=a\\sb\\\\c\\d=", None, {"password": "a b\\c\\d="}),
        ("[client]\npasswd=a\ndb=b", None, {"password": "a", "database": "b"}),
        ("[client]\nunix_socket=/a", None, {"socket": "/a"}),
        ("user=nobody", None, {}),
        ("!include /nowhere\n!other\n[client]\nuser=a", None, {"user": "a"}),
    ],
)
def test_option_file(
    tmp_path: Path, text: str, group: str | None, expected: dict[str, str | None]
) -> None:
    file = tmp_path / "my.cnf"
    file.write_text(text)
    assert option_files.read([str(file)], group) == expected


def test_files_that_include_others(tmp_path: Path) -> None:
    folder = tmp_path / "conf.d"
    folder.mkdir()
    (folder / "b.cnf").write_text("[client]\nuser=b\n")
    (folder / "a.cnf").write_text("[client]\nuser=a\nport=1\n")
    (folder / "c.txt").write_text("[client]\nuser=c\n")
    file = tmp_path / "my.cnf"
    file.write_text(f"!includedir {folder}\n!include {file}\n")
    assert option_files.read([str(file)]) == {"user": "b", "port": "1"}


@given(st.binary())
def test_any_file_can_be_read(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "any.cnf"
    file.write_bytes(b"[client]\n" + content)
    option_files.read([str(file)])


def test_what_a_file_says_counts_less_than_arguments(tmp_path: Path, listening: str) -> None:
    file = tmp_path / "my.cnf"
    file.write_text(
        "[client]\nuser=other\npassword=secret\nhost=elsewhere\nport=3307\nssl-ca=/ca.pem\n"
        f"socket={listening}\ndefault-character-set=latin1\nssl-mode=verify_ca\n"
    )
    assert translate({**REMOTE, "read_default_file": str(file), "ssl": {"cert": "/c.pem"}}) == {
        **REMOTE,
        "password": "secret",
        "port": 3307,
        "charset": "latin1",
        "ssl": {
            "ca": "/ca.pem",
            "cert": "/c.pem",
            "verify_mode": True,
            "check_hostname": False,
        },
    }


def test_the_socket_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "my.cnf"
    file.write_text("[client]\nsocket=/one\n[mine]\nprotocol=tcp\n[bad]\nport=x")
    assert where(read_default_file=str(file)) == "/one"
    assert where(read_default_file=str(file), host="localhost") == "/one"
    assert where(read_default_file=str(file), host="127.0.0.1") == "127.0.0.1"
    assert where(read_default_file=str(file), read_default_group="mine") == "localhost"
    with pytest.raises(UnsupportedOption, match="port in the option file is 'x'"):
        translate({"read_default_file": str(file), "read_default_group": "bad"})


def test_a_group_without_a_file_is_looked_for_in_the_usual_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(option_files, "DEFAULT_FILES", (str(tmp_path / "no"), "~/.my.cnf"))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".my.cnf").write_text("[mine]\nhost=db\nssl-verify-server-cert\n")
    translated = translate({"user": "app", "read_default_group": "mine"})
    assert translated["host"] == "db"
    assert translated["ssl"]["check_hostname"] is True


@pytest.mark.parametrize(
    "command",
    [
        "SET @a = ';', @b = 2;",
        "SET @a = 1 /* ; */; -- all;",
        "SET @a = '\\'; SET @b = 2'",
        "",
        None,
    ],
)
def test_a_command_that_may_be_one_is_left_to_the_server(command: str | None) -> None:
    assert translate({**REMOTE, "init_command": command})["init_command"] == command


def test_commands_of_an_option_file_are_counted_too(tmp_path: Path) -> None:
    file = tmp_path / "my.cnf"
    file.write_text("[client]\ninit-command = 'SET @a = 1; SET @b = 2'\n")
    with pytest.raises(UnsupportedOption, match="has 2 statements"):
        translate({**REMOTE, "read_default_file": str(file)})
