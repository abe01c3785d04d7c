"""The faults that a run draws from, each with a beginning, a duration and an end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tests.chaos.disk import Disk
from tests.chaos.proxy import Mode, Proxy
from tests.chaos.receiving import Manner
from tests.chaos.service import SECOND, Service, children

Begin = Callable[[Service], object]


@dataclass(frozen=True, slots=True)
class Fault:
    """What is done, for how long (seconds, at least and at most), and what undoes it."""

    name: str
    begin: Begin
    end: Callable[[Service, Any], object] = lambda _service, _token: None
    least: float = 0.0
    most: float = 0.0
    weight: float = 1.0
    needs: str = ""
    """`postgres`, `disk`, `second` (engine) or `core` (vLLM's own process); empty: it goes with everything."""
    engine: str = ""
    """The engine whose jobs have to run elsewhere because of it."""

    def hold(self, chance: Random) -> float:
        """Return for how long."""
        return chance.uniform(self.least, self.most)


@dataclass
class Injected:
    """A fault that was done: when (seconds since 1970), and the jobs that its engine was running."""

    name: str
    at: float
    interrupted: list[str] = field(default_factory=list)


def kill(name: str, *, group: bool = True) -> Begin:
    """Return what kills a process."""
    return lambda service: service.signal(name, signal.SIGKILL, group=group)


def freeze(name: str, least: float, most: float, weight: float = 1.0, needs: str = "", *, engine: str = "") -> Fault:
    """Return that a process stands still for so many seconds."""

    def begin(service: Service) -> None:
        pid = service.pids().get(name)
        if pid is not None:
            service.freeze(pid)

    return Fault(f"freeze {name}", begin, lambda service, _token: service.thaw(), least, most, weight, needs, engine)


def _edge(what: str, mode: Mode, least: float, most: float, *, seconds: float = 0.0, weight: float = 1.0) -> Fault:
    def begin(service: Service) -> None:
        edge_of(service, what).be(mode, seconds)

    def end(service: Service, _token: object) -> None:
        edge_of(service, what).heal()

    needs = {"database": "postgres", "upstream": "upstream"}.get(what, "")
    return Fault(f"{what} edge: {mode.replace('_', ' ')}", begin, end, least, most, weight, needs)


def edge_of(service: Service, what: str) -> Proxy:
    """Return the proxy on an edge."""
    found = {
        "web": service.web,
        "redis": service.redis_edge,
        "webhook": service.hooks,
        "database": service.database_edge,
        "upstream": next(iter(service.upstream_edges), None),
    }[what]
    assert found is not None
    return found


def _reset(what: str) -> Fault:
    needs = "postgres" if what == "database" else ""
    return Fault(f"{what} edge: reset", lambda service: edge_of(service, what).reset(), needs=needs)


def _receiver(manner: Manner, least: float, most: float) -> Fault:
    return Fault(
        f"receiver: {manner}",
        lambda service: service.receiving.behave(manner),
        lambda service, _token: service.receiving.behave("well"),
        least,
        most,
        0.5,
    )


def _server(name: str, how: signal.Signals, least: float, most: float, needs: str = "") -> Fault:
    def begin(service: Service) -> None:
        server = service.postgres if name == "postgres" else service.redis
        assert server is not None
        server.stop(how)

    def end(service: Service, _token: object) -> None:
        server = service.postgres if name == "postgres" else service.redis
        assert server is not None
        server.start()

    words = "immediate restart" if name == "postgres" else "kill"
    return Fault(f"{name}: {words}", begin, end, least, most, needs=needs)


def _stop_server(name: str, least: float, most: float, needs: str = "") -> Fault:
    def begin(service: Service) -> None:
        server = service.postgres if name == "postgres" else service.redis
        assert server is not None
        service.freeze(server.pid)

    return Fault(f"{name}: hung", begin, lambda service, _token: service.thaw(), least, most, needs=needs)


def _kill_up(service: Service) -> None:
    """`stoker up` itself dies: what it ran goes on, until the next one ends it."""
    assert service.up is not None
    service.up.process.kill()
    service.up.process.wait(10)


def _fill(service: Service) -> Disk | None:
    if service.disk is not None:
        service.disk.fill()
    return service.disk


def _empty(service: Service, disk: Disk | None) -> None:
    if disk is not None:
        disk.empty()
    service.mend()


def _kill_core(service: Service) -> None:
    worker = service.pids().get("engine")
    for pid in children(worker) if worker is not None else ():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _shift(service: Service, seconds: int) -> None:
    assert service.clock is not None
    service.clock.shift(seconds)


def _kill_one_after_another(service: Service) -> None:
    for name in ("collector", "worker", "engine", "web", "bulk"):
        service.signal(name, signal.SIGKILL)
        time.sleep(0.3)


FAULTS = (
    Fault("kill -9 engine", kill("engine"), weight=4, engine="engine"),
    Fault("kill -9 engine, its parent only", kill("engine", group=False), weight=2, engine="engine"),
    Fault("kill -9 second engine", kill(SECOND), weight=3, needs="second", engine=SECOND),
    Fault("drain engine", lambda service: service.signal("engine", signal.SIGTERM, group=False), weight=1.5),
    freeze("engine", 18, 24, 1.5, engine="engine"),
    freeze(SECOND, 18, 24, 1, "second", engine=SECOND),
    Fault("kill -9 vLLM's own process", _kill_core, weight=4, needs="core", engine="engine"),
    Fault("kill -9 web", kill("web"), weight=3),
    Fault("restart web", lambda service: service.signal("web", signal.SIGTERM, group=False)),
    Fault("kill -9 collector", kill("collector"), weight=3),
    Fault("kill -9 worker", kill("worker"), weight=3),
    Fault("kill -9 bulk", kill("bulk"), weight=3),
    Fault("kill -9 beat", kill("beat")),
    Fault("kill -9 all workers, one after another", _kill_one_after_another),
    Fault("kill -9 stoker up", _kill_up, lambda service, _token: service.start(), 1, 4, 0.7),
    freeze("web", 2, 6, 0.5),
    freeze("collector", 5, 15),
    freeze("worker", 5, 20),
    freeze("bulk", 5, 20),
    freeze("beat", 5, 20),
    Fault("redis: FLUSHALL", lambda service: service.redis.flush(), weight=2),
    _server("redis", signal.SIGKILL, 1, 8),
    _stop_server("redis", 3, 12),
    _edge("redis", "half_open", 3, 10),
    _edge("redis", "hold", 3, 8),
    _reset("redis"),
    _server("postgres", signal.SIGQUIT, 0.5, 4, "postgres"),
    _stop_server("postgres", 2, 8, "postgres"),
    _edge("database", "drop_answers", 0.3, 1.5, weight=2),
    _edge("database", "half_open", 2, 8),
    _edge("database", "hold", 1, 6),
    _edge("database", "delay", 3, 8, seconds=0.05),
    _reset("database"),
    _edge("web", "drop_answers", 0.5, 2, weight=2),
    _edge("web", "half_open", 1, 3),
    _reset("web"),
    _edge("upstream", "drop_answers", 1, 4, weight=3),
    _edge("upstream", "half_open", 2, 8, weight=3),
    _edge("upstream", "hold", 2, 8, weight=2),
    _edge("upstream", "refuse", 2, 8, weight=3),
    _edge("webhook", "drop_answers", 1, 4),
    _edge("webhook", "half_open", 1, 5),
    _receiver("errors", 2, 8),
    _receiver("cuts", 2, 6),
    _receiver("redirects", 1, 4),
    _receiver("endless", 1, 5),
    Fault("disk full", _fill, _empty, 2, 8, 1.5, "disk"),
    Fault("clock +2 h", lambda service: _shift(service, 7200), weight=0.7, needs="clock"),
    Fault("clock -1 h", lambda service: _shift(service, -3600), weight=0.7, needs="clock"),
)


def usable(service: Service) -> list[Fault]:
    """Return the faults that go with this service."""
    has = {"", {"fake": "second", "vllm": "core"}.get(service.engine, service.engine)}
    has |= {"postgres"} if service.postgres is not None else set()
    has |= {"clock"} if service.postgres is not None or service.engine != "vllm" else set()
    has |= {"disk"} if service.disk is not None else set()
    return [fault for fault in FAULTS if fault.needs in has]


def inject(service: Service, fault: Fault) -> tuple[Injected, object]:
    """Begin a fault; note first what its engine is running."""
    running = []
    if fault.engine:
        found = service.rows(
            "SELECT jobs.id FROM jobs JOIN batches ON batches.id = jobs.batch_id WHERE jobs.state = 'running' "
            "AND batches.state = 'running' AND batches.engine_id = :engine AND jobs.started_at IS NOT NULL",
            engine=fault.engine,
        )
        running = [row[0] for row in found]
    injected = Injected(fault.name, time.time(), running)
    return injected, fault.begin(service)
