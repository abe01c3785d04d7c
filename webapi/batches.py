"""`/v1/batches`: make, list, look at and cancel batches, as OpenAI's API has it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec
from flask import Response, g, request
from flask_openapi.blueprint import APIBlueprint
from flask_openapi.models.tag import Tag

from models import bulks
from models.bulks import BATCH_KIND, NewBulk
from models.calls import CONTENT
from models.db import is_id
from models.errors import AlreadyFinished, NotFound, QueueFull
from webapi import access, answers, bulk_answers, bulk_inputs, json_body, keyed, limits
from webapi.bulk_schemas import Batch, BatchList, BatchPath, BatchQuery, BatchRequest
from webapi.context import here, writing
from webapi.errors import BulkUnknown, Problem
from webapi.keyed import REPLAYED, Once
from webapi.openai import openai_list, openai_problem, openai_problems
from webapi.openapi import body_of

api = APIBlueprint(
    "batches",
    __name__,
    url_prefix="/v1/batches",
    abp_tags=[Tag(name="batches", description="Bulks that come in and go out as files, as OpenAI's API has them.")],
    abp_security=[{"key": []}],
    abp_responses=openai_problems(400, 401, 403, 500, 503),
)

INPUT = "batch"
"""The purpose of a file that a batch can be made of."""
LANE = "bulk"
MOST_PAIRS, MOST_KEY, MOST_VALUE = 16, 64, 512
LEAST_SECONDS, MOST_SECONDS = 3600, 2_592_000
MOST_ID = 64
FINAL = {"X-Should-Retry": "false"}
"""The client tries a 409 again unless it is told not to."""


api.before_request(access.admit)


@api.post(
    "",
    operation_id="createBatch",
    request_body=body_of(BatchRequest),
    responses={200: Batch, **openai_problems(408, 409, 413, 415, 429)},
)
def create() -> Response:
    """Make a batch of an uploaded file.

    With an `Idempotency-Key` (header, or `idempotency_key` in the body) the same request makes one batch.
    """
    raw = json_body.read(request, here().settings.max_body_bytes)
    sent = json_body.parse(raw).values
    key = keyed.key()
    if key is None and (given := _text(sent, "idempotency_key", required=False)) is not None:
        key = keyed.checked(given, "idempotency_key")
    once = Once(key, hashlib.sha256(b"batch " + raw).hexdigest())
    try:
        new = _new(sent)
        limits.check()
    except (Problem, QueueFull):
        # What was taken once is answered again, even if its window is no longer allowed.
        if (before := once.before()) is None:
            raise
        return answers.respond(before, 200, **REPLAYED)
    with writing(BulkUnknown) as tx:
        answer, replayed = once.answer(tx, lambda: answers.encode(bulk_answers.batch(bulks.create(tx, new))).decode())
    here().doorbell.ring_bulk(msgspec.json.decode(answer)["id"])
    return answers.respond(answer, 200, **(REPLAYED if replayed else {}))


def _new(sent: Mapping[str, Any]) -> NewBulk:
    windows = here().settings.windows
    file_id = _text(sent, "input_file_id")
    if len(file_id) > MOST_ID:
        raise _bad("input_file_id", f"it is longer than {MOST_ID} characters")
    endpoint = _one_of(sent, "endpoint", tuple(CONTENT))
    window = _one_of(sent, "completion_window", tuple(windows))
    metadata, lasts = _metadata(sent.get("metadata")), _output_expires_after(sent.get("output_expires_after"))
    fault = _fault_of(file_id)
    return NewBulk(
        owner=g.owner,
        kind=BATCH_KIND,
        lane=LANE,
        endpoint=endpoint,
        file_id=file_id,
        metadata=metadata,
        window=window,
        expires_in=windows[window],
        output_expires_after=lasts,
        errors=None if fault is None else [fault],
    )


def _fault_of(file_id: str) -> dict[str, Any] | None:
    """Return what is wrong with the input, which fails the batch but not the request."""
    message = f"There is no file with the id given as input_file_id, or its purpose is not '{INPUT}'."
    fault = {"code": "invalid_request", "message": message, "param": "file_id", "line": None}
    row = bulk_inputs.visible_file(file_id)
    return None if row is not None and row.purpose == INPUT else fault


def _text(sent: Mapping[str, Any], name: str, *, required: bool = True) -> Any:
    value = sent.get(name)
    if value is None and not required:
        return None
    if value is None:
        raise openai_problem(400, "missing_required_parameter", f"Missing required parameter: '{name}'.", name)
    if not isinstance(value, str):
        raise _mistyped(name, "a string", value)
    return value


def _one_of(sent: Mapping[str, Any], name: str, supported: tuple[str, ...]) -> str:
    value = _text(sent, name)
    if value not in supported:
        listed = ", ".join(f"'{one}'" for one in supported)
        raise _bad(name, f"supported values are: {listed}")
    return str(value)


def _bad(param: str, why: str) -> Problem:
    return openai_problem(400, "invalid_value", f"Invalid value for '{param}': {why}.", param)


def _mistyped(param: str, expected: str, value: Any) -> Problem:
    kinds = {bool: "a boolean", int: "an integer", float: "a number", str: "a string", list: "an array"}
    got = kinds.get(type(value), "null" if value is None else "an object")
    message = f"Invalid type for '{param}': expected {expected}, but got {got} instead."
    return openai_problem(400, "invalid_type", message, param)


def _metadata(given: Any) -> dict[str, str] | None:
    if given is None:
        return None
    if not isinstance(given, dict):
        raise _mistyped("metadata", "an object", given)
    if len(given) > MOST_PAIRS:
        raise _bad("metadata", f"it has more than {MOST_PAIRS} pairs")
    for key, value in given.items():
        param = f"metadata.{key[:MOST_KEY]}"
        if len(key) > MOST_KEY:
            raise _bad(param, f"a key has more than {MOST_KEY} characters")
        if not isinstance(value, str):
            raise _mistyped(param, "a string", value)
        if len(value) > MOST_VALUE:
            raise _bad(param, f"the value has more than {MOST_VALUE} characters")
    return given


def _output_expires_after(given: Any) -> int | None:
    name = "output_expires_after"
    if given is None:
        return None
    if not isinstance(given, dict):
        raise _mistyped(name, "an object", given)
    _one_of({f"{name}.anchor": given.get("anchor")}, f"{name}.anchor", ("created_at",))
    param, seconds = f"{name}.seconds", given.get("seconds")
    if seconds is None:
        raise openai_problem(400, "missing_required_parameter", f"Missing required parameter: '{param}'.", param)
    if type(seconds) is not int:
        raise _mistyped(param, "an integer", seconds)
    if not LEAST_SECONDS <= seconds <= MOST_SECONDS:
        raise _bad(param, f"it must be from {LEAST_SECONDS} to {MOST_SECONDS}")
    return seconds


@api.get("", operation_id="listBatches", responses={200: BatchList})
def index(query: BatchQuery) -> Response:
    """List batches, newest first."""
    if query.after is not None and not is_id(BATCH_KIND, query.after):
        raise _bad("after", "it must be the id of a batch, the last one of the page before")
    with here().database.reading() as tx:
        rows, more = bulks.page(tx, g.owner, kind=BATCH_KIND, after=query.after, limit=query.limit)
    return answers.respond(answers.encode(openai_list([bulk_answers.batch(row) for row in rows], more=more)))


@api.get("/<batch_id>", operation_id="getBatch", responses={200: Batch, **openai_problems(404)})
def show(path: BatchPath) -> Response:
    """Look at a batch."""
    _check_id(path.batch_id)
    with here().database.reading() as tx:
        row = bulks.get(tx, g.owner, path.batch_id, BATCH_KIND)
    return answers.respond(answers.encode(bulk_answers.batch(row)))


def _check_id(batch_id: str) -> None:
    if not is_id(BATCH_KIND, batch_id):
        raise NotFound(BATCH_KIND, batch_id[:80])


@api.post("/<batch_id>/cancel", operation_id="cancelBatch", responses={200: Batch, **openai_problems(404, 409)})
def cancel(path: BatchPath) -> Response:
    """Cancel a batch: what has ended stays. Twice is fine; 409 when it has ended otherwise."""
    _check_id(path.batch_id)
    try:
        with writing(BulkUnknown) as tx:
            row = bulks.cancel(tx, g.owner, path.batch_id, BATCH_KIND)
    except AlreadyFinished as error:
        message = f"Cannot cancel a batch with status '{bulk_answers.status(error.state)}'."
        raise openai_problem(409, "invalid_request", message, headers=FINAL) from None
    here().doorbell.ring_bulk(row.id)
    return answers.respond(answers.encode(bulk_answers.batch(row)))
