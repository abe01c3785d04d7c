"""What a key may take: the names of its limits, what they are without any of its own, and how they are written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields

from models.errors import StokerError
from stoker.settings import Settings

MOST = 10**15
"""Of any limit: beyond it nobody counts."""
LEAST_RATE = 1e-6
"""Requests a second, of those that are limited: one in twelve days."""


class BadLimit(StokerError):
    """A limit is unknown or its value is none; the text says what there is."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one key; 0: none. Jobs and tokens are its owner's, counted over all keys; sizes are in bytes."""

    requests_per_second: float = 0.0
    streams: int = 0
    jobs_queued: int = 0
    tokens_queued: int = 0
    tokens_per_day: int = 0
    body_bytes: int = 0
    file_bytes: int = 0


NAMES = tuple(field.name for field in fields(Limits))


def of(settings: Settings, own: Mapping[str, object] | None = None) -> Limits:
    """Return the limits of a key: its own, by name, and else those of the settings.

    What a newer version has stored, or another program, is passed over.
    """
    usual = Limits(
        requests_per_second=settings.key_requests_per_second,
        streams=settings.key_streams,
        jobs_queued=settings.max_queued_per_owner,
        tokens_queued=settings.key_tokens_queued,
        tokens_per_day=settings.key_tokens_per_day,
    )
    if not own:
        return usual
    return Limits(**(asdict(usual) | {name: value for name in NAMES if _is_limit(value := own.get(name))}))


def parse(given: Iterable[str]) -> dict[str, float]:
    """Read limits written `name=number`, the last of a name being right. Raises BadLimit."""
    found: dict[str, float] = {}
    for text in given:
        name, _, written = text.partition("=")
        if name not in NAMES:
            raise BadLimit(f"there is no limit {name!r}: choose from {', '.join(NAMES)}")
        try:
            value = float(written)
        except ValueError:
            value = math.nan
        if not 0 <= value <= MOST or (name != "requests_per_second" and value != int(value)):
            kind = "a number" if name == "requests_per_second" else "a whole number"
            raise BadLimit(f"{name} takes {kind}, 0 for no limit, not {written!r}")
        if 0 < value < LEAST_RATE:
            raise BadLimit(f"{name} takes {LEAST_RATE:f} at least, one request in twelve days, or 0 for no limit")
        found[name] = value if name == "requests_per_second" else int(value)
    return found


def _is_limit(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MOST
