"""MySQL Router in front of database servers."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from textwrap import dedent

from support import servers
from support.certificates import Certificate
from support.ports import free_port, is_listening
from support.processes import wait_until
from support.servers import Server, tied_to_us

CONFIG = """
    [DEFAULT]
    plugin_folder = {plugins}
    logging_folder = {folder}
    runtime_folder = {folder}
    data_folder = {folder}
    [logger]
    level = INFO
    [io]
    threads = 2
    [connection_pool]
    max_idle_server_connections = 64
    idle_timeout = 600
    [routing:db]
    bind_address = 127.0.0.1
    bind_port = {port}
    destinations = {destinations}
    routing_strategy = {strategy}
    protocol = classic
"""


class Router:
    """It runs from `with` to the end of the block, on `port`.

    :param options: of its routing, with underscores: connection_sharing=1. See its manual.
    :param strategy: how it chooses a server, of several.
    :param tls: what it shows to clients; without, they get no TLS. It uses TLS to the servers.

    Raise ServerMissing where it cannot be had.
    """

    def __init__(
        self,
        folder: Path,
        *destinations: Server,
        strategy: str = "first-available",
        tls: Certificate | None = None,
        **options: object,
    ) -> None:
        programs = servers.downloaded("get_router.sh", "router")
        self.port = free_port()
        self._program = programs / "mysqlrouter"
        self._folder = folder / f"router{self.port}"
        self._folder.mkdir()
        if tls:
            options |= {"client_ssl_cert": tls.cert, "client_ssl_key": tls.key}
        options = {"client_ssl_mode": "PREFERRED" if tls else "DISABLED", **options}
        config = dedent(CONFIG).format(
            plugins=programs / "unpacked" / "usr" / "lib" / "mysqlrouter" / "plugin",
            folder=self._folder,
            port=self.port,
            destinations=",".join(f"127.0.0.1:{server.port}" for server in destinations),
            strategy=strategy,
        )
        config += "".join(f"{name} = {value}\n" for name, value in options.items())
        self._config = self._folder / "router.conf"
        self._config.write_text(config)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Router:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()

    @property
    def log(self) -> str:
        return (self._folder / "mysqlrouter.log").read_text(errors="replace")

    def start(self) -> None:
        """Return when it listens."""
        user = ["--user=root"] if os.geteuid() == 0 else []
        output = (self._folder / "output").open("wb")
        with output:
            self._process = subprocess.Popen(
                tied_to_us([str(self._program), "-c", str(self._config), *user]),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        wait_until(lambda: is_listening(self.port))

    def stop(self) -> None:
        """In good order, which cuts its clients' connections."""
        if self._process:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(30)

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None
