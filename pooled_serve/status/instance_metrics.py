"""What is measured beside the pools: of the instance, of its host and of its routes.

As in pool/metrics.py: each is declared once, with what to do when it rises, for ``/stats.json``,
``/metrics`` and the page alike.
"""

from pooled_serve.pool.metric import Kind

INSTANCE_METRICS = (
    (
        Kind.GAUGE,
        "uptime_seconds",
        "Since the master started. If it falls, it was restarted; the counters begin at 0, too.",
    ),
    (
        Kind.GAUGE,
        "workers",
        "Workers that serve. If it falls below --workers and stays, they end when they start: see "
        "the log.",
    ),
    (
        Kind.GAUGE,
        "starting",
        "Workers that are yet to serve, and load the project. If it rises and stays, that takes "
        "long: see the log.",
    ),
    (
        Kind.COUNTER,
        "worker_deaths_total",
        "Workers that ended without being told to. If it rises, they are killed (for want of "
        "memory: see the kernel's log; after Gunicorn's timeout: see its log) or crash.",
    ),
    (
        Kind.GAUGE,
        "stopping",
        "1 once the master or all workers are told to stop; they serve what they have begun. If it "
        "rises, nothing is wrong: Gunicorn's graceful_timeout bounds how long it takes, or twice "
        "that in a reload.",
    ),
    (
        Kind.GAUGE,
        "cpus",
        "CPUs that they may use. A setting of this host. If it falls below --workers, they share.",
    ),
)
"""Of all pools together."""

WORKER_METRICS = (
    (
        Kind.COUNTER,
        "cpu_seconds_total",
        "Processor time of a worker. If it rises by a second per second, the worker is at its "
        "limit, and more connections do not help: more --workers, up to pooled_serve_cpus, or "
        "views that compute less.",
    ),
    (
        Kind.COUNTER,
        "blocked_seconds_total",
        "Seconds for which a worker's event loop let no request run, of two or more at a time. If "
        "it rises, a view computes or waits without gevent: the log has view and line. Move "
        "that out of the worker.",
    ),
    (
        Kind.GAUGE,
        "cpu_share",
        "Of the last 10 s, what the thread that serves all requests has computed. If it rises to "
        "0.9, do as for pooled_serve_worker_cpu_seconds_total.",
    ),
    (
        Kind.GAUGE,
        "cpu_wait_share",
        "Of the last 10 s, how long it could have computed, and others had the CPU. If it rises, "
        "this host has too few CPUs for what runs on it.",
    ),
    (
        Kind.GAUGE,
        "loop_delay_seconds",
        "The longest time of the last 10 s for which it let no request run. If it rises, do as for "
        "pooled_serve_worker_blocked_seconds_total.",
    ),
    (
        Kind.GAUGE,
        "seen_ago_seconds",
        "Since its event loop last ran. If it rises above 2, the worker is blocked at this moment: "
        "do as for pooled_serve_worker_blocked_seconds_total.",
    ),
    (
        Kind.GAUGE,
        "no_descriptor_ago_seconds",
        "Since it last found no file descriptor for a client or a connection; not there if it "
        "always has. If it rises, that is over; while it stays near 0, raise ulimit -n.",
    ),
    (
        Kind.GAUGE,
        "urls_failed",
        "1 if the URL configuration failed when the worker loaded it, and has not worked since. If "
        "it rises, requests get a 500, and the log has file and line (PS109): correct them, and "
        "send HUP.",
    ),
)
"""Of a worker, by the keys in ``/stats.json``; see status/load.py."""

HOST_METRICS = (
    (
        Kind.GAUGE,
        "limit",
        "Connections that all workers of this host may have together. A setting: --max-per-host.",
    ),
    (
        Kind.GAUGE,
        "taken",
        "Connections that they have, or are opening or closing. If it rises to the limit and "
        "stays, requests wait for other workers: shorten the busiest routes, or raise "
        "--max-per-host.",
    ),
    (
        Kind.GAUGE,
        "taken_elsewhere",
        "Those of them that processes other than this instance's workers have: after USR2 those of "
        "the old or new instance. If it rises and stays, the old one has not ended: end it.",
    ),
    (
        Kind.GAUGE,
        "hungry",
        "Workers with waiting requests that could open more if it were not for that. If it rises "
        "and stays, do as for pooled_serve_host_taken.",
    ),
    (
        Kind.COUNTER,
        "trades_total",
        "Connections given up by a worker for another one. If it rises with the traffic, they take "
        "turns: raise --max-per-host, or use fewer workers.",
    ),
)
"""Of a host with a bound, by the keys in ``/stats.json``; see :meth:`Host.stats`."""

POOL_METRICS = (
    (
        Kind.GAUGE,
        "hanging_statements",
        "Statements that have had no answer for far longer than usual: all that run, or three or "
        "more beside others that are answered. If it rises, SHOW PROCESSLIST on the server says "
        "what they wait for, often a lock.",
    ),
)
"""Of a pool, judged for all workers together; see status/figures.py."""

ROUTE_METRICS = (
    (
        Kind.COUNTER,
        "leases_total",
        "Connections that requests of a route have given back. If it rises faster than they "
        "arrive, each takes several: use atomic() around statements that belong together.",
    ),
    (
        Kind.COUNTER,
        "held_seconds_total",
        "Seconds for which they had them. If it rises for one route above all, shorten that one "
        "first: fewer and faster statements, and calls to others before or after them.",
    ),
    (
        Kind.COUNTER,
        "waited_total",
        "Connections handed out to them after a wait, also those still out. If it rises, find the "
        "routes that hold the connections meanwhile: pooled_serve_route_held_seconds_total.",
    ),
    (
        Kind.COUNTER,
        "wait_seconds_total",
        "Seconds for which they waited, served or not. If it rises, do as for "
        "pooled_serve_route_waited_total.",
    ),
    (
        Kind.GAUGE,
        "longest_held_seconds",
        "The longest of their leases so far. If it rises to seconds, --leak-threshold logs what "
        "took the connection.",
    ),
    (
        Kind.COUNTER,
        "requests_total",
        "Requests of a route that have run statements. If it rises, there are more of them.",
    ),
    (
        Kind.COUNTER,
        "statements_total",
        "Statements they have run. If it rises faster than these, see if rows have one each.",
    ),
    (
        Kind.COUNTER,
        "idle_seconds_total",
        "Seconds for which they had them and ran no statement, as seen four times a second. If it "
        "rises with pooled_serve_route_held_seconds_total, the view waits for something else "
        "meanwhile: do that before or after its queries, or use --pool-mode transaction.",
    ),
)
"""Of a route, by the keys in ``/stats.json``; see status/routes.py."""

ROUTE_LEASES, ROUTE_HELD, ROUTE_WAITED, ROUTE_WAIT, ROUTE_LONGEST = range(5)
ROUTE_REQUESTS, ROUTE_STATEMENTS, ROUTE_IDLE = 5, 6, 7
