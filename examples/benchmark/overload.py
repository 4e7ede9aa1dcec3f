#!/usr/bin/env python3
"""What a queue does under overload, simulated: python3 examples/benchmark/overload.py

10 connections, each held for 50 ms (on average, exponentially distributed), serve 200 requests a
second. They arrive at random (Poisson), and their users give up after 1, 3 or 10 seconds. How many
get their answer in time, in the second minute of it, with a timeout of 10 s, if

    FIFO          the queue is first come, first served, and nobody knows who has given up
    + leavers     the same, but those who have given up leave the queue
    pool          late ones are refused by what the pool runs: pooled_serve/pool/overload.py

Then, in which cases that refuses somebody although a little patience would do: clients in a closed
loop, a spike, connections that are all held for some seconds. --compare tries other rules on both.
The numbers are the same each time. Standard library only.
"""

from __future__ import annotations

import argparse
import heapq
import importlib.util
import itertools
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import report  # noqa: E402

CONNECTIONS, HELD, TIMEOUT = 10, 0.05, 10.0
CAPACITY = CONNECTIONS / HELD
RATES = (190, 240, 400, 1000)
PATIENCE = (1.0, 3.0, 10.0)
RETRY_AFTER = 1.0  # as the pool's 503 says
MINUTE = 60.0
COME, DONE = range(2)


def load_rule() -> ModuleType:
    """The module without its package, which imports gevent."""
    path = HERE.parents[1] / "pooled_serve" / "pool" / "overload.py"
    spec = importlib.util.spec_from_file_location("overload_rule", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


rule = load_rule()


@dataclass(slots=True)
class Request:
    came: float
    client: int | None = None  # in a closed loop
    held: float | None = None  # None: decided by chance
    entered: float = 0.0
    leaves: float = 0.0  # the queue, at the latest


@dataclass
class Outcome:
    served: list[tuple[float, float]] = field(default_factory=list)  # when, and how long it took
    refused: int = 0
    timed_out: int = 0
    longest_wait: float = 0.0  # of those served

    def in_time(self, patience: float, begin: float = MINUTE, end: float = 2 * MINUTE) -> float:
        """Answers per second between two moments to users who still waited for them."""
        answers = sum(begin <= at < end and took <= patience for at, took in self.served)
        return answers / (end - begin)


def simulate(
    *,
    rate: float = 0.0,
    clients: int = 0,
    spike: float = 0.0,
    stall: tuple[float, float] = (0.0, 0.0),
    connections: int = CONNECTIONS,
    held: float = HELD,
    seconds: float = 2 * MINUTE,
    leave: float = TIMEOUT,
    make_rule: Callable[[], Any] | None = None,
    seed: int = 1,
) -> Outcome:
    """Returns what became of the requests.

    :param rate: arrivals per second.
    :param clients: each sends its next request when it has its answer; a second after a 503.
    :param spike: seconds of work that arrive at once, at the beginning.
    :param stall: no connection comes back between these two moments.
    :param connections: how many there are.
    :param held: seconds that a request holds one, on average.
    :param leave: seconds after which a request leaves the queue.
    :param make_rule: returns the rule; None refuses nobody before that.
    """
    chance = random.Random(seed)
    order = itertools.count()
    events: list[tuple[float, int, int, Request]] = []
    queue: deque[Request] = deque()
    overload = make_rule() if make_rule else None
    outcome = Outcome()
    free = connections

    def schedule(at: float, what: int, request: Request) -> None:
        heapq.heappush(events, (at, next(order), what, request))

    def again(request: Request, at: float) -> None:
        if request.client is not None:
            schedule(at, COME, Request(at, request.client))

    def serve(request: Request, now: float) -> None:
        outcome.longest_wait = max(outcome.longest_wait, now - request.came)
        done = now + (chance.expovariate(1 / held) if request.held is None else request.held)
        begin, end = stall
        if now < end and done > begin:
            done += end - max(now, begin)
        schedule(done, DONE, request)

    left = spike * connections
    while left > 0:
        work = min(left, chance.expovariate(1 / held))
        left -= work
        schedule(0.0, COME, Request(0.0, held=work))
    for client in range(clients):
        schedule(0.0, COME, Request(0.0, client))
    if rate:
        first = chance.expovariate(rate)
        schedule(first, COME, Request(first))

    while events and events[0][0] < seconds:
        now, _, what, request = heapq.heappop(events)
        while queue and queue[0].leaves <= now:
            gone = queue.popleft()
            outcome.timed_out += 1
            again(gone, max(now, gone.leaves + RETRY_AFTER))
        if what == COME:
            if rate and request.client is None and request.held is None:
                following = now + chance.expovariate(rate)
                schedule(following, COME, Request(following))
            if free:
                free -= 1
                serve(request, now)
            else:
                if overload:
                    if not queue:
                        overload.begin(now, out=False)
                    request.entered = overload.enter(now, TIMEOUT)
                request.leaves = request.came + leave
                queue.append(request)
            continue
        outcome.served.append((now, now - request.came))
        again(request, now)
        if not queue:
            free += 1
            continue
        for _ in range(overload.late(queue, now, TIMEOUT) if overload else 0):
            outcome.refused += 1
            again(queue.popleft(), now + RETRY_AFTER)
        serve(queue.popleft(), now)
    return outcome


# --- Other rules -------------------------------------------------------------------------------
#
# What --compare says of them:
#
# * On at a quarter, or if the queue is never empty: good sooner at 1.05 times the capacity. But
#   both refuse clients in closed loops by the thousand, who would never wait for more than 4 s.
# * Late from a tenth on: users who wait for a second get nothing, because those served have waited
#   for nearly that. From a hundredth on: the queue is empty so often that it starts anew, with
#   another five seconds of waiting.
# * Stalls that count: everybody is refused who has waited behind a locked table, by connections
#   that are free for them a moment later. Stalls that count too little: slow requests on few
#   connections look like stalls, and time out.
# * Longer after the queue was empty: no better at 1.05 times the capacity in ten minutes, and
#   spikes in that time would not be served whole.
# * One refused for each one served: not enough beyond twice the capacity.


class NeverEmpty(rule.Overload):  # type: ignore[name-defined, misc]
    """Overload is a queue that has not been empty for half of the timeout."""

    on: bool

    def begin(self, now: float, *, out: bool) -> None:
        super().begin(now, out=out)
        self.formed = now

    def late(self, queue: Any, now: float, timeout: float) -> int:
        self.on = self.on or now - self.formed >= timeout * rule.ONSET
        return int(super().late(queue, now, timeout))


class Lasting(rule.Overload):  # type: ignore[name-defined, misc]
    """Goes on until nobody has been late for as long as the timeout."""

    last = -TIMEOUT

    def begin(self, now: float, *, out: bool) -> None:
        super().begin(now, out=out)
        self.on = now - self.last < TIMEOUT

    def late(self, queue: Any, now: float, timeout: float) -> int:
        late = int(super().late(queue, now, timeout))
        if late:
            self.last = now
        return late


class OneByOne(rule.Overload):  # type: ignore[name-defined, misc]
    """Refuses one for each that is served."""

    def late(self, queue: Any, now: float, timeout: float) -> int:
        return min(1, int(super().late(queue, now, timeout)))


RULES: dict[str, tuple[type[Any], dict[str, float]]] = {
    "the pool's": (rule.Overload, {}),
    "on at 1/4 of the timeout": (rule.Overload, {"ONSET": 1 / 4}),
    "late from 1/10 on": (rule.Overload, {"LATE": 1 / 10}),
    "late from 1/100 on": (rule.Overload, {"LATE": 1 / 100}),
    "stalls count": (rule.Overload, {"STALL": 1.0}),
    "stalls count up to 1/20": (rule.Overload, {"STALL": 1 / 20}),
    "on if never empty for 1/2": (NeverEmpty, {}),
    "until nobody is late for 1/1": (Lasting, {}),
    "one refused for one served": (OneByOne, {}),
}


@contextmanager
def constants(**changes: float) -> Iterator[None]:
    before = {name: getattr(rule, name) for name in changes}
    try:
        vars(rule).update(changes)
        yield
    finally:
        vars(rule).update(before)


# --- Tables ------------------------------------------------------------------------------------

PATIENT_CASES: dict[str, dict[str, Any]] = {
    "190/s": {"rate": 190},
    "200 clients in a closed loop": {"clients": 200},
    "800 clients in a closed loop": {"clients": 800},
    "a spike of 5 s of work": {"spike": 5.0},
    "a spike of 9 s of work": {"spike": 9.0},
    "the same, and 1/s": {"spike": 9.0, "rate": 1},
    "100/s, all connections held for 6 s": {"rate": 100, "stall": (30.0, 36.0)},
    "160/s, all connections held for 6 s": {"rate": 160, "stall": (30.0, 36.0)},
}
"""In which nobody is to be refused."""


def answers(outcomes: list[Outcome]) -> str:
    """In time for each patience, one outcome for each of them."""
    pairs = zip(outcomes, PATIENCE, strict=True)
    return " / ".join(f"{outcome.in_time(patience):.0f}" for outcome, patience in pairs)


def overload_table() -> list[list[str]]:
    waits = " / ".join(f"{patience:g}" for patience in PATIENCE)
    rows = [["arrivals", "FIFO", "+ leavers", "pool", "refused by the pool"]]
    print(f"Answers per second to users who wait for {waits} s, {CAPACITY:g} of them possible:\n")
    for rate in RATES:
        fifo = [simulate(rate=rate)] * 3
        leavers = [simulate(rate=rate, leave=patience) for patience in PATIENCE]
        pool = [simulate(rate=rate, make_rule=rule.Overload)] * 3
        rows.append([f"{rate}/s", *map(answers, (fifo, leavers, pool)), str(pool[0].refused)])
    return rows


def patient_table() -> list[list[str]]:
    rows = [["where patience would do", "longest wait, FIFO", "with the pool's rule", "refused"]]
    for name, case in PATIENT_CASES.items():
        fifo, pool = simulate(**case), simulate(**case, make_rule=rule.Overload)
        waits = [f"{outcome.longest_wait:.1f} s" for outcome in (fifo, pool)]
        rows.append([name, *waits, str(pool.refused)])
    return rows


def rules_table() -> list[list[str]]:
    long = 10 * MINUTE
    slow: dict[str, Any] = {"rate": 2.0, "connections": 2, "held": 2.0}
    head = ["rule", "210/s", "210/s, 10 min", "240/s", "1000/s", "2/s of 2 s each on 2"]
    rows = [[*head, *(f"refused: {name}" for name in PATIENT_CASES)]]
    for name, (make_rule, changes) in RULES.items():
        with constants(**changes):
            runs = [simulate(rate=rate, make_rule=make_rule) for rate in (210, 240, 1000)]
            near, *over = [answers([run] * 3) for run in runs]
            lasting = simulate(rate=210, seconds=long, make_rule=make_rule)
            average = " / ".join(f"{lasting.in_time(p, 0, long):.0f}" for p in PATIENCE)
            refused = [simulate(**c, make_rule=make_rule).refused for c in PATIENT_CASES.values()]
            late = simulate(**slow, make_rule=make_rule)
            share = f"{late.in_time(TIMEOUT):.1f}, {late.timed_out} timed out"
            rows.append([name, near, average, *over, share, *map(str, refused)])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Simulate a queue under overload.")
    parser.add_argument(
        "--compare", action="store_true", help="try other rules, which takes minutes"
    )
    options = parser.parse_args()
    print(report.as_markdown(overload_table()))
    print()
    print(report.as_markdown(patient_table()))
    if options.compare:
        print()
        print(report.as_markdown(rules_table()))


if __name__ == "__main__":
    main()
