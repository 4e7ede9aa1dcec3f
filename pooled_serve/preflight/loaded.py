"""What the preflight would refuse in the settings that a worker has loaded after a HUP: the master
knows nothing of them. Without asking a server."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

from pooled_serve.errors import Finding, StartupError
from pooled_serve.preflight import databases, project, servers

log = logging.getLogger("gunicorn.error")


def problems(addresses: Mapping[str, str]) -> list[Finding]:
    """Returns what is wrong, with which requests fail. Raises nothing: the worker serves as well as
    it can.

    :param addresses: alias -> server. Of those without one an engine of the project's knows the
        rest, and may ask a service for it.
    """
    try:
        return list(_problems(addresses))
    except Exception:
        log.exception("the settings could not be checked")
        return []


def _problems(addresses: Mapping[str, str]) -> Iterator[Finding]:
    from django.db import connections

    from pooled_serve.backend import patch, wrappers

    try:
        project.refuse_malformed_databases()
    except StartupError as error:
        yield from error.problems
        return
    for alias, settings in connections.settings.items():
        if addresses.get(alias) == "":
            continue
        try:
            engine = servers.engine_of(alias, settings)
            if not patch.is_poolable(engine):
                continue
            databases.check(alias, settings)
            wrapper = wrappers.connecting_wrapper(engine, settings, alias)
            servers.not_connected(alias, settings, wrapper)
        except StartupError as error:
            yield from error.problems
    yield from project.host_warnings()
