"""Which upstreams there are: what `STOKER_UPSTREAMS` and the file of `STOKER_UPSTREAMS_FILE` say. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

FIELDS = frozenset({"url", "max_connections", "api_key", "api_key_env", "models"})
MOST_CONNECTIONS = 10_000


class BadListing(ValueError):
    """The file cannot be used; the text says which entry and why, and never holds a key."""


@dataclass(frozen=True, slots=True)
class Place:
    """An upstream as the operator wrote it. `url` ends before `/v1`.

    `connections` is None when the limit is to be found by measuring. `models` are the only ones it is asked for, None
    when it tells them itself.
    """

    url: str
    key: str = field(default="", repr=False)
    connections: int | None = None
    models: tuple[str, ...] | None = None


def base_url(url: str) -> str:
    """Return the URL that `/v1/...` is appended to."""
    return url.strip().rstrip("/").removesuffix("/v1").rstrip("/")


def from_urls(urls: str, key: str, connections: int | None) -> tuple[Place, ...]:
    """Return the upstreams of a list of URLs that is written with commas."""
    return tuple(Place(base_url(url), key, connections) for url in urls.split(",") if url.strip())


def from_text(text: str, key: str, connections: int | None, environment: Mapping[str, str]) -> tuple[Place, ...]:
    """Read the file's text; `key` and `connections` are for entries that have no own. Raises BadListing."""
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadListing(f"it is not JSON: {error}") from None
    if not isinstance(entries, list):
        raise BadListing("it must be a JSON list of objects with a url")
    places: dict[str, Place] = {}
    for number, entry in enumerate(entries, 1):
        try:
            place = _place(entry, key, connections, environment)
        except BadListing as bad:
            raise BadListing(f"entry {number}: {bad}") from None
        if place.url in places:
            raise BadListing(f"entry {number}: {place.url} is listed twice")
        places[place.url] = place
    return tuple(places.values())


def merged(settings: Sequence[Place], file: Sequence[Place]) -> dict[str, Place]:
    """Join both lists by URL: an entry of the file, which can say more, replaces one of the settings."""
    return {place.url: place for place in (*settings, *file)}


def _place(entry: Any, key: str, connections: int | None, environment: Mapping[str, str]) -> Place:
    if not isinstance(entry, dict):
        raise BadListing("must be an object with a url")
    if unknown := sorted(map(str, entry.keys() - FIELDS)):
        raise BadListing(f"unknown field {unknown[0]!r}; known: {', '.join(sorted(FIELDS))}")
    return Place(
        _url(entry.get("url")),
        _key(entry, key, environment),
        _connections(entry.get("max_connections"), connections),
        _models(entry.get("models")),
    )


def _url(given: Any) -> str:
    try:
        parts = urlsplit(given if isinstance(given, str) else "")
        good = parts.scheme in {"http", "https"} and bool(parts.hostname) and "@" not in parts.netloc
        good = good and not parts.query and not parts.fragment and parts.port != 0
    except ValueError:
        good = False
    if not good:
        # The URL itself is not repeated: what is wrong with it may be a password in it.
        raise BadListing("url must be like http://10.0.0.5:8000, without credentials")
    return base_url(given)


def _key(entry: Mapping[str, Any], default: str, environment: Mapping[str, str]) -> str:
    own, name = entry.get("api_key"), entry.get("api_key_env")
    if own is not None and name is not None:
        raise BadListing("give api_key or api_key_env, not both")
    if name is not None:
        if not isinstance(name, str) or not environment.get(name):
            raise BadListing(f"api_key_env: {name!r} is not set in the engine's environment")
        own = environment[name]
    if own is None:
        return default
    if not isinstance(own, str) or not own.isascii() or not own.isprintable():
        raise BadListing("the API key must be printable ASCII text")
    return own


def _connections(given: Any, default: int | None) -> int | None:
    if given is None:
        return default
    if isinstance(given, bool) or not isinstance(given, int) or not 1 <= given <= MOST_CONNECTIONS:
        raise BadListing(f"max_connections must be a whole number from 1 to {MOST_CONNECTIONS}")
    return given


def _models(given: Any) -> tuple[str, ...] | None:
    if given is None:
        return None
    if not isinstance(given, list) or not given or not all(isinstance(name, str) and name for name in given):
        raise BadListing("models must be a list of at least one name")
    return tuple(dict.fromkeys(given))
