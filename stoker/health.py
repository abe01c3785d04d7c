"""Whether a part of the service does its work: what the containers' healthchecks ask, by `stoker health PART`."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Callable
from contextlib import closing

import sqlalchemy as sa

from models import engines, sweeps
from models.db import Database, now
from models.errors import DatabaseUnavailable
from stoker.setting_types import address
from stoker.settings import Settings

_PATIENCE = 5.0
_LATE = 30.0
"""Seconds after which the sweeper, which beat calls and the collector runs, counts as gone."""


class Unhealthy(Exception):
    """The part does not do its work; the text says why."""


def web(settings: Settings) -> None:
    """Raise Unhealthy unless the web server answers."""
    connection = http.client.HTTPConnection("127.0.0.1", settings.port, timeout=_PATIENCE)
    try:
        connection.request("GET", "/livez")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        raise Unhealthy(f"the web server does not answer: {error}") from None
    finally:
        connection.close()
    if status != http.client.OK:
        raise Unhealthy(f"the web server answers {status}")


def collector(settings: Settings) -> None:
    """Raise Unhealthy unless a sweep, which beat calls and a collector's worker runs, was made lately."""
    with closing(Database(settings.database, pool_size=1)) as database:
        try:
            with database.reading() as tx:
                age = tx.execute(sa.select(now() - sweeps.table.c.last_at)).scalar_one_or_none()
        except DatabaseUnavailable as error:
            raise Unhealthy(f"the database does not answer: {error}") from None
    if age is None or age > _LATE + settings.sweep_every:
        raise Unhealthy("there was no sweep yet" if age is None else f"the last sweep was {age:.0f} s ago")


def engine(settings: Settings) -> None:
    """Raise Unhealthy unless this engine is open for work and gave a sign of life lately."""
    with closing(Database(settings.database, pool_size=1)) as database:
        try:
            with database.reading() as tx:
                alive = {row.id for row in engines.live(tx, settings.engine_gone_after)}
        except DatabaseUnavailable as error:
            raise Unhealthy(f"the database does not answer: {error}") from None
    if settings.engine_name not in alive:
        raise Unhealthy(f"the engine {settings.engine_name} is not open for work")


def worker(settings: Settings) -> None:
    """Raise Unhealthy unless the broker, from which the worker takes its messages, can be reached."""
    try:
        socket.create_connection(address(settings.broker), timeout=_PATIENCE).close()
    except OSError as error:
        raise Unhealthy(f"{'RabbitMQ' if settings.broker_url else 'Redis'} cannot be reached: {error}") from None


PARTS: dict[str, Callable[[Settings], None]] = {
    "web": web,
    "collector": collector,
    "worker": worker,
    "bulk": worker,
    "engine": engine,
    "beat": collector,
}
