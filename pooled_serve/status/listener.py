"""The status listener of a worker: a page for people, numbers for programs, health for
orchestrators. It answers GET and HEAD, changes nothing, and reveals no secret."""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import json
import math
import os
import re
import time
from collections.abc import Callable, Container, Mapping, Sequence
from importlib.resources import files
from types import FrameType
from typing import Any, NamedTuple

import gevent
from gunicorn.config import Config
from gunicorn.http.parser import RequestParser

from pooled_serve import __version__
from pooled_serve.pool import ConnectionPool, metrics
from pooled_serve.status import text
from pooled_serve.status.clients import Client, ClientServer
from pooled_serve.status.culprit import Watch
from pooled_serve.status.load import Meter
from pooled_serve.status.prometheus import Collector
from pooled_serve.status.scoreboard import Scoreboard, Snapshot
from pooled_serve.status.stats import as_stats, with_history
from pooled_serve.status.words import unusable

REFRESH_SECONDS = 0.25
"""Between two updates of a worker's gauges, and so the age that they may have when another worker
answers. Counters are always up to date."""

_WHY = (metrics.LOGIN_REFUSED, metrics.STUCK, metrics.CONNECT_ERROR)

_LIMITS = ("limit_request_line", "limit_request_fields", "limit_request_field_size")


class Answer(NamedTuple):
    """A response, without the headers that all of them have."""

    status: str
    body: str
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[str, ...] = ()


OK = "200 OK"
_VARY = "Vary: Accept"
UNAVAILABLE = "503 Service Unavailable"


class StatusServer:
    """Serves the status listener in one worker; the answers cover all workers.

    :param listener: a listening socket, TCP or Unix.
    :param worker: a :class:`pooled_serve.serve.worker.PooledWorker` with a scoreboard.
    :param pools: those of this worker, by alias.
    :param atomic: returns the aliases with ATOMIC_REQUESTS.
    :param route_of: see :class:`pooled_serve.status.culprit.Watch`.
    :param try_urls: has a URL configuration that has failed tried again, in the background.
    :param addresses: returns alias -> server, as this worker's settings have it.
    """

    def __init__(
        self,
        listener: Any,
        worker: Any,
        pools: Callable[[], Mapping[str, ConnectionPool[Any]]],
        atomic: Callable[[], Container[str]] = tuple,
        route_of: Callable[[FrameType], str] = lambda frame: "",
        try_urls: Callable[[], None] = lambda: None,
        addresses: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self._worker = worker
        self._pools = pools
        self._atomic = atomic
        self._try_urls = try_urls
        self._addresses = addresses
        self._scoreboard: Scoreboard = worker.scoreboard
        # Of gunicorn's settings only these: not those for TLS, proxies or HTTP/2.
        self._parsing = Config()
        for name in _LIMITS:
            self._parsing.set(name, getattr(worker.cfg, name))
        listener.setblocking(1)
        self._server = ClientServer(listener, self._serve, alone=worker.cfg.workers <= 1)
        self._refresher: Any = None
        # More workers than the scoreboard has room for have none.
        load = None if worker.slot is None else self._scoreboard.load_row(worker.slot)
        self._watch = self._meter = None
        if load is not None:
            self._watch = Watch(load.last_seen, route_of, load.name)
            self._meter = Meter(load, REFRESH_SECONDS, who=self._watch.culprit)
        self._routes: dict[str, Callable[[], Answer]] = {
            "/": _page,  # but see _answer()
            "/stats.json": self._stats,
            "/history.json": self._history,
            "/metrics": self._metrics,
            "/livez": lambda: Answer(OK, "ok\n"),  # an event loop answers, and asks no database
            "/readyz": self._readyz,
        }

    def start(self) -> None:
        """Accept clients, look for dead connections, and keep the gauges fresh."""
        # Here, because a process without file descriptors can neither import nor read a file.
        _page()
        with contextlib.suppress(ImportError):
            _prometheus()
        self._server.start()
        self._refresher = gevent.spawn(self._look_after_pools)
        if self._watch is not None:
            self._watch.start()

    def refresh_gauges(self) -> None:
        """Write what the pools of this worker have at this moment."""
        for pool in self._pools().values():
            pool.refresh_gauges()

    def stop(self) -> None:
        """Hang up on all clients, without waiting."""
        self._server.stop()
        self._refresher.kill(block=False)
        if self._watch is not None:
            self._watch.stop()
        if self._meter is not None:
            self._meter.stop()

    def _look_after_pools(self) -> None:
        limit = self._worker.cfg.pool_max_per_host or math.inf
        while True:
            if self._meter is not None:
                self._meter.look(time.monotonic())
            for pool in self._pools().values():
                pool.drop_dead()
            self.refresh_gauges()
            history, now = self._scoreboard.history, time.monotonic()
            board = self._scoreboard
            if history.sample(board.read_whole, now, limit, self._is_busy, board.usual_hold):
                history.sample_routes(board.routes_so_far, now)
            gevent.sleep(REFRESH_SECONDS)

    def _is_busy(self) -> bool:
        """Whether a worker has used up its processor."""
        return any(self._scoreboard.load_row(slot).busy for slot in self._scoreboard.workers())

    def _loads(self, now: float) -> dict[int, dict[str, float | str | None]]:
        """Returns slot -> numbers of the workers themselves, of the living ones with gauges."""
        alive = self._scoreboard.workers()
        return {
            slot: {**load.counters, **(load.gauges(now, REFRESH_SECONDS) if slot in alive else {})}
            for slot, load in self._scoreboard.read_loads().items()
        }

    def _check_freshness(self) -> None:
        """Find out about databases that nobody uses; the next answer has what was found."""
        for pool in self._pools().values():
            pool.check_freshness()

    def _read(self) -> list[Snapshot]:
        self._check_freshness()
        self.refresh_gauges()
        return self._scoreboard.read()

    def _hosts(self) -> dict[str, dict[str, int]]:
        """Returns alias -> numbers; nothing if the host has no bound."""
        host, limit = self._worker.app.host, self._worker.cfg.pool_max_per_host
        if host is None or limit is None:
            return {}
        found: dict[str, dict[str, int]] = host.stats(
            limit, set(self._scoreboard.workers().values())
        )
        if self._scoreboard.starting:  # they may query while they load the project
            found = {alias: its | {"taken_elsewhere": 0} for alias, its in found.items()}
        return found

    # --- HTTP ----------------------------------------------------------------------------------

    def _serve(self, client: Client) -> None:
        try:
            request = next(RequestParser(self._parsing, client.socket, client.address))
        except StopIteration:
            return
        except OSError:
            raise
        except Exception as error:  # gunicorn has a dozen for what is no HTTP
            name = type(error).__name__
            answer = _encode(Answer("400 Bad Request", f"{name}\n"), body=True)
        else:
            answer = _encode(self._answer(request), body=request.method != "HEAD")
        self._server.has_asked(client)
        client.socket.sendall(answer)

    def _answer(self, request: Any) -> Answer:
        route = self._routes.get(request.path)
        if route is None:
            return Answer("404 Not Found", "Not found. Try: " + ", ".join(self._routes) + "\n")
        if request.method not in ("GET", "HEAD"):
            allow = "Allow: GET, HEAD"
            return Answer("405 Method Not Allowed", "GET or HEAD\n", headers=(allow,))
        if request.path == "/" and not _wants_html(request.headers):
            return self._text()
        return route()

    # --- Routes --------------------------------------------------------------------------------

    def _readyz(self) -> Answer:
        if self._scoreboard.stopping:
            return Answer(UNAVAILABLE, "stopping\n")
        self._check_freshness()
        lost: dict[str, set[str]] = {}
        for each in self._scoreboard.read():
            if each.current[metrics.REACHABLE] == metrics.NO:
                what = unusable(*map(each.current.__getitem__, _WHY))
                lost.setdefault(what, set()).add(each.alias)
        lines = [f"{what}: {', '.join(sorted(names))}\n" for what, names in lost.items()]
        if error := self._scoreboard.urls_error():
            lines.append(f"URL configuration fails (PS109): {error}\n")
            self._try_urls()  # as for databases: the next answer has what was found
        return Answer(UNAVAILABLE, "".join(lines)) if lines else Answer(OK, "ok\n")

    def _numbers(self) -> dict[str, Any]:
        # Read first: when a worker dies in between, its gauges are in neither list nor sum.
        workers = self._scoreboard.workers()
        snapshots, now = self._read(), time.monotonic()
        problem, refused_ago = self._scoreboard.refused_reload(now)
        stats = {
            "version": __version__,
            "app": self._worker.app.app_uri,
            "uptime_seconds": self._scoreboard.uptime,
            "stopping": self._scoreboard.stopping,
            "starting": self._scoreboard.starting,
            "worker_deaths_total": self._scoreboard.deaths,
            "worker_death_ago_seconds": self._scoreboard.death_ago(now),
            "reload_problem": problem,
            "reload_refused_ago_seconds": refused_ago,
            "cpus": _cpus(),
            "pool_mode": self._worker.cfg.pool_mode,
            **as_stats(snapshots, workers, now, self._loads(now), self._addresses()),
            "hosts": self._hosts(),
            "routes": self._scoreboard.routes_so_far(),
        }
        atomic = self._atomic()
        for alias, pool in stats["pools"].items():
            pool["budget"] = self._worker.app.plan.room(alias, len(workers))
            pool["atomic_requests"] = alias in atomic
            pool["in_settings"] = alias in self._worker.app.plan.pools
        board = self._scoreboard
        return with_history(stats, snapshots, board.history, now, board.ending(), board.dying())

    def _stats(self) -> Answer:
        return Answer(OK, json.dumps(self._numbers()), "application/json")

    def _text(self) -> Answer:
        charts = self._scoreboard.history.charts(time.monotonic())
        return Answer(OK, text.page(self._numbers(), charts), headers=(_VARY,))

    def _history(self) -> Answer:
        charts = self._scoreboard.history.charts(time.monotonic())
        return Answer(OK, json.dumps(charts), "application/json")

    def _metrics(self) -> Answer:
        try:
            prometheus = _prometheus()
        except ImportError:
            return Answer(
                "501 Not Implemented",
                "this needs the prometheus-client package\n"
                "→ pip install 'pooled-serve[metrics]', and restart\n",
            )
        registry = prometheus.CollectorRegistry()
        instance = {
            "app": self._worker.app.app_uri,
            "uptime_seconds": self._scoreboard.uptime,
            "workers": len(self._scoreboard.workers()),
            "worker_deaths_total": self._scoreboard.deaths,
            "stopping": self._scoreboard.stopping,
            "starting": self._scoreboard.starting,
            "cpus": _cpus(),
        }
        snapshots, now = self._read(), time.monotonic()
        peaks = {s.alias: self._scoreboard.history.peaks(s.alias, now) for s in snapshots}
        routes = self._scoreboard.read_routes()
        loads = self._loads(now)
        pools = {
            alias: {"hanging_statements": self._scoreboard.hanging_statements(alias, snapshots)}
            for alias in peaks
        }
        collector = Collector(snapshots, instance, self._hosts(), peaks, routes, loads, pools)
        registry.register(collector)
        body = prometheus.generate_latest(registry).decode()
        return Answer(OK, body, prometheus.CONTENT_TYPE_LATEST)


def _prometheus() -> Any:
    """Returns the package.

    :raises ImportError: it is not installed.
    """
    import prometheus_client.metrics_core  # for Collector

    return prometheus_client


def _cpus() -> int:
    """Returns how many this process may use."""
    return len(os.sched_getaffinity(0))


@functools.cache
def _page() -> Answer:
    html = (files("pooled_serve.status") / "page.html").read_text("utf-8")
    # The page may run what is written in it and talk to its own server, and nothing else.
    policy = (
        f"default-src 'none'; style-src {_hashes('style', html)}; "
        f"script-src {_hashes('script', html)}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = (f"Content-Security-Policy: {policy}", _VARY)
    return Answer(OK, html, "text/html; charset=utf-8", headers)


def _wants_html(headers: Sequence[tuple[str, str]]) -> bool:
    """Whether a browser asks, or somebody who does not say what it wants. curl says that it takes
    anything, and is better served with text."""
    accepted = [value for name, value in headers if name == "ACCEPT"]
    return not accepted or any("text/html" in value.lower() for value in accepted)


def _encode(answer: Answer, *, body: bool) -> bytes:
    content = answer.body.encode()
    head = (
        f"HTTP/1.1 {answer.status}",
        f"Content-Type: {answer.content_type}",
        f"Content-Length: {len(content)}",
        "Connection: close",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        "Referrer-Policy: no-referrer",
        *answer.headers,
        "\r\n",
    )
    return "\r\n".join(head).encode() + (content if body else b"")


def _hashes(element: str, html: str) -> str:
    """Sources for a Content-Security-Policy that allow exactly the texts of these elements."""
    texts = re.findall(rf"<{element}>(.*?)</{element}>", html, re.DOTALL)
    digests = (hashlib.sha256(text.encode()).digest() for text in texts)
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
