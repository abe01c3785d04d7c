"""What an engine offers: its models and how much of each, told to the database, and again whenever it changes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import sqlalchemy as sa
import structlog

from models import engines, queue
from models.db import Database
from models.engines import Incarnation
from models.errors import DatabaseUnavailable
from tasks.engines.base import Engine, ServedModel

log = structlog.get_logger(__name__)

NAME = re.compile(r"[^\x00\ud800-\udfff]{1,255}")
"""What a job may name as its model, and a database stores: upstreams tell what they like."""
MOST_LEN = 2**31 - 1

Store = Callable[..., bool]


class Offer:
    """The offer of one engine. `reserve` says how many of its slots are kept for realtime."""

    def __init__(self, database: Database, engine: Engine, mine: Incarnation, reserve: Callable[[], int]) -> None:
        self._database = database
        self._engine = engine
        self._mine = mine
        self._reserve = reserve
        self._stored: tuple[int, tuple[ServedModel, ...]] | None = None

    def models(self) -> tuple[ServedModel, ...]:
        """Return what the engine serves at the moment, as far as a job can ask for it."""
        return tuple(_storable(model) for model in self._engine.models if NAME.fullmatch(model.name))

    def asked_for(self) -> list[str]:
        """Return the models whose queues the collector is to look at: a router may serve hundreds, few with jobs."""
        names = [model.name for model in self.models()]
        if len(names) < 2:  # noqa: PLR2004  # one: asked for more often than not, and that question is not free
            return names
        try:
            with self._database.reading() as tx:
                return sorted(set(queue.models_with_work(tx)).intersection(names))
        except DatabaseUnavailable as error:
            log.warning("the queues are left to the sweeper", error=str(error))
            return []

    def changed(self) -> bool:
        """Tell whether it is another one than was stored: upstreams come and go."""
        return self._stored != self._now()

    def open(self) -> bool:
        """Store the first offer, which opens the engine; False when another process has taken its name."""
        return self._store(engines.go_live)

    def renew(self) -> bool:
        """Store the offer as it is now; False when another process has taken the engine's name."""
        return self._store(engines.change)

    def leave(self, state: str) -> None:
        """Say that the engine takes no more work, or has gone."""
        try:
            with self._database.transaction() as tx:
                engines.leave(tx, self._mine, state)
        except DatabaseUnavailable as error:
            # Silence says the same, after `engine_gone_after`.
            log.warning("could not say that the engine is leaving", state=state, error=str(error))

    def _now(self) -> tuple[int, tuple[ServedModel, ...]]:
        return self._engine.slots, self.models()

    def _store(self, store: Store) -> bool:
        slots, models = now = self._now()
        with self._database.transaction() as tx:
            named = self._write(tx, store, slots, models)
        self._stored = now
        if len(models) < len(self._engine.models):
            log.warning("models are left out whose names no job can have", engine=self._mine.engine)
        return named

    def _write(self, tx: sa.Connection, store: Store, slots: int, models: tuple[ServedModel, ...]) -> bool:
        for model in models:
            engines.remember(tx, model.name, model.max_model_len, model.tokenizer)
        return store(tx, self._mine, slots, self._reserve(), {model.name: model.slots for model in models})


def _storable(model: ServedModel) -> ServedModel:
    too_long = model.max_model_len is not None and model.max_model_len > MOST_LEN
    return replace(model, max_model_len=MOST_LEN) if too_long else model
