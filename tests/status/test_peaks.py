"""Peaks and history of real workers under load, with some killed and all replaced in between."""

from __future__ import annotations

import http.client
import os
import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from support.client import gate
from support.load import Hammer
from support.processes import wait_until
from support.serve import Response
from support.status import SLEEP, StartStatus, Status
from support.torture import torture

pytestmark = pytest.mark.usefixtures("no_thread_left")


def peaks(it: Status, window: str = "24h") -> dict[str, Any]:
    found: dict[str, Any] = it.pool()["peaks"][window]
    return found


def test_a_peak_is_of_all_workers_together_and_survives_them(status: StartStatus) -> None:
    it = status("-w", "2", "--pool-timeout", "60", cap=2)
    it.wait_for(lambda stats: len(stats["workers"]) == 2)
    with ThreadPoolExecutor(6) as threads:
        with gate(it.site.database) as statement:
            answers: list[Future[Response]] = []
            for worker in it.site.server.worker_pids():
                with it.site.server.only(worker):
                    before = it.pool()["acquired_total"] if answers else 0
                    answers += [threads.submit(it.site.run, statement) for _ in range(3)]
                    it.wait_for(
                        lambda stats: (
                            (pool := stats["pools"].get("default"))
                            and pool["acquired_total"] == before + 2  # noqa: B023
                            and pool["waiting"] == len(answers) // 3  # noqa: B023
                        )
                    )
            for window in ("5m", "1h", "24h"):
                it.wait_for(lambda stats: (found(stats, window)["in_use"]) == 4)  # noqa: B023
            it.wait_for(lambda stats: found(stats, "5m")["waiting"] == 2)
        assert [answer.result().status for answer in answers] == [200] * 6
    most = wait_until(lambda: found(it.stats(), "5m")["waited"] == 2 and peaks(it))
    assert most["in_use_worker"] == 2
    assert most["acquired"] == 6
    assert most["occasions"] == 1
    assert most["wait_seconds"] > 0
    for pid in it.site.server.worker_pids():
        os.kill(pid, signal.SIGKILL)
    later = it.wait_for(lambda stats: len(stats["workers"]) == 2)
    assert found(later, "24h") | {"seconds": 0} == most | {"seconds": 0}


@torture
@pytest.mark.parametrize("others", [False, True])
def test_peaks_begin_anew_with_a_hup_that_changes_the_pools(
    status: StartStatus, tmp_path: Path, others: bool
) -> None:
    conf = tmp_path / "conf.py"
    conf.write_text("pool_mode = 'request'")
    it = status("-c", str(conf), "--pool-timeout", "60", cap=1)
    with ThreadPoolExecutor(2) as threads:
        with gate(it.site.database) as statement:
            answers = [threads.submit(it.site.run, statement) for _ in range(2)]
            it.wait_for(lambda stats: (stats["pools"].get("default") or {}).get("waiting") == 1)
            it.wait_for(lambda stats: found(stats, "24h")["waiting"] == 1)
        assert [answer.result().status for answer in answers] == [200] * 2
    if others:
        conf.write_text("pool_mode = 'transaction'")
    (before,) = it.site.server.worker_pids()
    it.site.server.signal(signal.SIGHUP)
    it.wait_for(lambda stats: before not in [each["pid"] for each in stats["workers"]])
    it.wait_for(lambda stats: found(stats, "24h")["waiting"] == (0 if others else 1))
    assert it.site.run("SELECT 1").status == 200
    seconds = found(it.stats(), "24h")["seconds"]
    it.wait_for(lambda stats: found(stats, "24h")["seconds"] > seconds + 8)  # all is known by then
    assert found(it.stats(), "24h")["waiting"] == (0 if others else 1)


def found(stats: dict[str, Any], window: str) -> dict[str, Any]:
    of_pool: dict[str, Any] = stats["pools"]["default"]["peaks"][window]
    return of_pool


@torture
@pytest.mark.parametrize("workers", [2, 4])
def test_history_has_every_second_whatever_becomes_of_the_workers(
    status: StartStatus, workers: int
) -> None:
    it = status("-w", str(workers), cap=3)
    it.wait_for(lambda stats: len(stats["workers"]) == workers)
    began = time.monotonic()
    seen = 0
    late = 0.0  # for which the machine let this test wait, and so perhaps the workers
    with Hammer(it.site.server.port, SLEEP.format(0.01), clients=12, seconds=120) as load:
        for second in range(20):
            asked = time.monotonic()
            time.sleep(1)
            with suppress(OSError, http.client.HTTPException):  # asked of a killed one
                seen = max(seen, it.pool()["in_use"])
            late += time.monotonic() - asked - 1
            if second in (4, 9, 14):
                # Else the other one may be yet to come when this one goes.
                it.wait_for(lambda stats: len(stats["workers"]) == workers)
                os.kill(min(it.site.server.worker_pids()), signal.SIGKILL)
            if second == 11:
                it.site.server.signal(signal.SIGHUP)
        load.stop()
        outcomes = load.finish()
    stats = it.wait_for(lambda stats: len(stats["workers"]) == workers)
    passed = time.monotonic() - began
    pool = stats["pools"]["default"]
    most = pool["peaks"]["24h"]
    served = sum(outcome.result == 200 for outcome in outcomes)
    assert seen - 1 <= most["in_use"] <= 2 * 3 * workers, "old and new ones, after the HUP"
    assert most["seconds"] >= passed - 4 - late, "at least one worker was there nearly all the time"
    # The last second is noted in the next one.
    assert wait_until(lambda: served <= peaks(it)["acquired"] <= it.pool()["acquired_total"])
    history = it.get("/history.json").json()
    in_use = history["pools"]["default"]["in_use"]
    assert len(in_use) == len(history["ages_seconds"]) == 300
    known = [value for value in in_use if value is not None]
    assert passed - 4 - late <= len(known) <= passed + 10
    assert max(known) <= most["in_use"], "the chart has samples"
    # The charts never fall below nothing, though workers have died with what they counted.
    assert all(value >= 0 for value in history["pools"]["default"]["rate"] if value is not None)


def test_one_descriptor_is_all_that_it_takes(status: StartStatus) -> None:
    it = status()
    (worker,) = it.site.server.worker_pids()
    links = [os.readlink(f"/proc/{worker}/fd/{fd}") for fd in os.listdir(f"/proc/{worker}/fd")]
    assert sum("pooled-serve-history" in link for link in links) == 1
