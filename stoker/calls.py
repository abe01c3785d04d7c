"""The requests of the native API: what each is sent as, and what its answer is read as. Pure."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

from stoker.resources import Bulk, Job, Usage, made
from stoker.steps import Call
from stoker.transfers import Download, Source, upload_of

T = TypeVar("T")

UPLOAD_TIMEOUT = httpx.Timeout(60.0, connect=5.0, read=300.0)
"""The service answers an upload when it is stored: a large one may take a while."""


def submit(params: Mapping[str, Any], key: str | None) -> Call[Job]:
    """Hand in a job."""
    return Call("POST", "/v1/jobs", one(Job), {"json": params, "headers": keyed(key)}, repeatable=True)


def job(job_id: str, seconds: float | None = None) -> Call[Job]:
    """Look at a job; the service may hold the answer for so many seconds."""
    options = {} if seconds is None else {"params": {"wait": seconds}, "timeout": seconds + 20}
    return _get(f"/v1/jobs/{part(job_id)}", one(Job), options)


def job_result(job_id: str) -> Call[Any]:
    """Read the engine's answer alone."""
    return _get(f"/v1/jobs/{part(job_id)}/result", lambda answer: answer.json())


def cancel_job(job_id: str) -> Call[Job]:
    """Cancel a job."""
    return Call("POST", f"/v1/jobs/{part(job_id)}/cancel", one(Job))


def jobs(metadata: Mapping[str, str] | None, filters: Mapping[str, Any]) -> Call[list[Job]]:
    """List jobs."""
    return _get("/v1/jobs", many(Job), {"params": given(filters) | tags(metadata)})


def bulk(source: Source, params: Mapping[str, Any], key: str | None, on_progress: Any = None) -> Call[Bulk]:
    """Upload the lines of a bulk."""
    upload = upload_of(source).told(on_progress)
    options = {"params": _bulk_query(params), "headers": keyed(key), "timeout": UPLOAD_TIMEOUT}
    return Call("POST", "/v1/bulks", one(Bulk), options, repeatable=True, upload=upload)


def bulk_from(params: Mapping[str, Any], key: str | None) -> Call[Bulk]:
    """Start a bulk whose lines the service has or fetches."""
    options = {"json": given(params), "headers": keyed(key)}
    return Call("POST", "/v1/bulks", one(Bulk), options, repeatable=True)


def get_bulk(bulk_id: str) -> Call[Bulk]:
    """Look at a bulk."""
    return _get(f"/v1/bulks/{part(bulk_id)}", one(Bulk))


def bulks(metadata: Mapping[str, str] | None, filters: Mapping[str, Any]) -> Call[list[Bulk]]:
    """List bulks."""
    return _get("/v1/bulks", many(Bulk), {"params": given(filters) | tags(metadata)})


def steer_bulk(bulk_id: str, verb: str) -> Call[Bulk]:
    """Cancel, pause or resume a bulk: the same twice is the same once."""
    return Call("POST", f"/v1/bulks/{part(bulk_id)}/{verb}", one(Bulk), repeatable=True)


def move_bulk(bulk_id: str, lane: str) -> Call[Bulk]:
    """Bring a bulk into another lane."""
    return Call("PATCH", f"/v1/bulks/{part(bulk_id)}", one(Bulk), {"json": {"lane": lane}}, repeatable=True)


def retry_bulk(bulk_id: str, changes: Mapping[str, Any], key: str | None) -> Call[Bulk]:
    """Start a new bulk of the lines that did not succeed."""
    options = {"json": changes, "headers": keyed(key)}
    return Call("POST", f"/v1/bulks/{part(bulk_id)}/retry", one(Bulk), options, repeatable=True)


def delete_bulk(bulk_id: str) -> Call[None]:
    """Delete a bulk that has ended."""
    return Call("DELETE", f"/v1/bulks/{part(bulk_id)}", nothing)


def usage(first: str | None, last: str | None, filters: Mapping[str, Any]) -> Call[list[Usage]]:
    """Ask what was used."""
    return _get("/v1/usage", many(Usage), {"params": given({"from": first, "to": last, **filters})})


def overview(minutes: int) -> Call[dict[str, Any]]:
    """Look at the queue and the engines, and at the last so many minutes."""
    return _get("/v1/overview", overview_of, {"params": {"minutes": minutes}})


def download_results(bulk_id: str, kind: str, to: Download, *, errors: bool = False) -> Call[bool]:
    """Download what there is; the answer is whether that is all."""
    path = f"/v1/bulks/{part(bulk_id)}/{'errors' if errors else 'results'}"
    options = {"params": {} if errors else {"format": kind}, "timeout": UPLOAD_TIMEOUT}
    return Call("GET", path, is_complete, options, repeatable=True, download=to)


def is_complete(answer: httpx.Response) -> bool:
    """Tell whether an answer holds all results that there will be."""
    says: str = answer.headers.get("X-Incomplete", "")
    return says.lower() != "true"


def nothing(answer: httpx.Response) -> None:
    """Read nothing of an answer."""
    del answer


def overview_of(answer: httpx.Response) -> dict[str, Any]:
    """Read an overview."""
    document: dict[str, Any] = answer.json()
    if document["object"] != "overview":
        raise ValueError(document["object"])
    return document


def one(kind: type[T]) -> Callable[[httpx.Response], T]:
    """Return a reader of answers that are one resource."""
    return lambda answer: made(kind, answer.json())


def many(kind: type[T]) -> Callable[[httpx.Response], list[T]]:
    """Return a reader of answers that are a page of resources."""
    return lambda answer: [made(kind, item) for item in answer.json()["data"]]


def tags(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """Return metadata as parameters of a query."""
    return {f"metadata.{name}": value for name, value in (metadata or {}).items()}


def part(name: str) -> str:
    """Return an id as a part of a path, whatever it holds: `..` and `/` would lead elsewhere."""
    return quote(name, safe="").replace(".", "%2E")


def keyed(key: str | None) -> dict[str, str]:
    """Return the header of an Idempotency-Key, a new one if none is given."""
    return {"Idempotency-Key": key or str(uuid.uuid4())}


def given(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that are given."""
    return {name: value for name, value in params.items() if value is not None}


def _get(path: str, read: Callable[[httpx.Response], T], options: Mapping[str, Any] | None = None) -> Call[T]:
    return Call("GET", path, read, options or {}, repeatable=True)


def _bulk_query(params: Mapping[str, Any]) -> dict[str, str]:
    """Return a bulk's parameters as a query: texts as they are, all else as JSON."""
    texts = {name: _as_text(value) for name, value in given(params).items() if name != "metadata"}
    return texts | tags(params.get("metadata"))


def _as_text(value: Any) -> str:
    if not isinstance(value, str):
        return json.dumps(value)
    try:
        json.loads(value)
    except ValueError:
        return value
    return json.dumps(value)  # "5" would come as the number 5
