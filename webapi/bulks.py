"""`/v1/bulks`: many jobs by one upload: submit, look at, steer, retry, delete. Batches of /v1/batches are seen too."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import msgspec
import sqlalchemy as sa
from flask import Response, g, request
from flask_openapi.blueprint import APIBlueprint
from flask_openapi.models.tag import Tag
from pydantic import ValidationError

from models import bulk_lines, bulk_results, bulk_views, bulks, files
from models.bulks import BATCH_KIND, BULK_KIND, NewBulk
from models.db import AnyRow, is_id
from models.errors import NotFound, QueueFull, StillRunning
from models.states import BULK
from webapi import (
    access,
    answers,
    bulk_answers,
    bulk_inputs,
    bulk_submission,
    json_body,
    keyed,
    limits,
    paging,
    result_streams,
    uploads,
)
from webapi.bulk_inputs import Content
from webapi.bulk_schemas import (
    Bulk,
    BulkChange,
    BulkDeleted,
    BulkList,
    BulkPath,
    BulkQuery,
    BulkRequest,
    BulkRetry,
    ResultsQuery,
)
from webapi.context import here, writing
from webapi.errors import BulkUnknown, Problem, found_by, from_pydantic, invalid
from webapi.forms import FORM
from webapi.json_body import JsonObject
from webapi.keyed import Once
from webapi.openapi import body_of, problems
from webapi.uploads import Upload

api = APIBlueprint(
    "bulks",
    __name__,
    url_prefix="/v1/bulks",
    abp_tags=[Tag(name="bulks", description="Many requests by one upload.")],
    abp_security=[{"key": []}],
    abp_responses=problems(401, 403, 422, 500, 503),
)


api.before_request(access.admit)


@api.post(
    "",
    operation_id="createBulk",
    request_body=bulk_inputs.BODY,
    responses={202: Bulk, **problems(400, 408, 409, 413, 415, 429, 507)},
)
def create() -> Response:
    """Submit many jobs.

    Answered once the lines are stored; they are read after that. With an `Idempotency-Key` header the same request
    can be sent again without making a second bulk: it gets the same answer.
    """
    context, key = here(), keyed.key()
    if bulk_inputs.is_json(request):
        sent = json_body.parse(json_body.read(request, context.settings.max_body_bytes))
        lines = sent.values.get("requests")
        return _submit(sent, Content() if lines is None else bulk_inputs.of_requests(sent.raw["requests"]), key)
    bulk_inputs.check_type(request)
    if key is None:
        # What is wrong already is said before the upload. Not of one that may have been taken before.
        early = bulk_submission.checked(BulkRequest, _texts(), context.known)
        limits.check(skip=early.dry_run or request.mimetype == FORM)
    with uploads.receive(request, files.BULK_INPUT, context.settings.max_bulk_bytes) as upload:
        return _submit(_texts(upload), bulk_inputs.of_upload(upload, request), key)


def _texts(upload: Upload | None = None) -> JsonObject:
    fields = upload.fields.items() if upload else ()
    return bulk_submission.of_texts([*request.args.items(multi=True), *fields])


def _submit(sent: JsonObject, content: Content, key: str | None) -> Response:
    context = here()
    once = Once(key, bulk_submission.fingerprint(sent, content.digest))
    try:
        asked = bulk_submission.checked(BulkRequest, sent, context.known)
        given = bulk_inputs.input_of(asked, content)
        new = bulk_submission.new_bulk(asked, sent, given, g.owner, context.settings, context.seal)
        limits.check(skip=asked.dry_run)
    except (Problem, QueueFull):
        # What was taken once is answered again, even if its model is gone by now or the checks have changed.
        if (before := once.before()) is None:
            raise
        return _accepted((before, True))
    with content.stored() as upload:
        return _accepted(_stored(once, lambda tx: _create(tx, new, upload)))


def _create(tx: sa.Connection, new: NewBulk, upload: Upload | None) -> AnyRow:
    if upload is not None:
        name, size = upload.filename, upload.size
        files.finish(tx, upload.file_id, filename=name, purpose=files.BULK_INPUT, size=size, expires_in=None)
        new = dataclasses.replace(new, file_id=upload.file_id)
    return bulks.create(tx, new)


def _stored(once: Once, create: Callable[[sa.Connection], AnyRow]) -> tuple[str, bool]:
    with writing(BulkUnknown, patient=True) as tx:
        return once.answer(tx, lambda: _document(tx, create(tx)).decode())


def _document(tx: sa.Connection, row: AnyRow) -> bytes:
    return answers.encode(bulk_answers.bulk(bulk_views.of(tx, row)))


def _accepted(told: tuple[str, bool]) -> Response:
    answer, replayed = told
    bulk_id = msgspec.json.decode(answer)["id"]
    here().doorbell.ring_bulk(bulk_id)
    headers = {"Location": f"/v1/bulks/{bulk_id}"}
    return answers.respond(answer, 202, **headers, **({"Idempotency_Replayed": "true"} if replayed else {}))


@api.get("", operation_id="listBulks", responses={200: BulkList})
def index(query: BulkQuery) -> Response:
    """List bulks, newest first; batches too."""
    tags = paging.tags_of(query)
    if query.after is not None:
        check_id(query.after, lambda: invalid("after", "must be the id of a bulk (the last one of the page before)"))
    asked = {"kind": query.kind, "state": query.state, "tags": tags, "after": query.after, "limit": query.limit}
    seen, more = here().lists.read(lambda tx: bulk_views.page(tx, g.owner, **asked))
    data = [bulk_answers.bulk(one) for one in seen]
    following = seen[-1].row.id if more else None
    return answers.respond(answers.encode({"object": "list", "data": data, "has_more": more, "next_after": following}))


def check_id(bulk_id: str, otherwise: Callable[[], Exception] | None = None) -> None:
    """Raise NotFound, or what `otherwise` makes, unless it is the id of a bulk or of a batch."""
    if not is_id(BULK_KIND, bulk_id) and not is_id(BATCH_KIND, bulk_id):
        raise otherwise() if otherwise else NotFound(BULK_KIND, bulk_id[:80])


@api.get("/<bulk_id>", operation_id="getBulk", responses={200: Bulk, **problems(404)})
def show(path: BulkPath) -> Response:
    """Look at a bulk."""
    check_id(path.bulk_id)
    with here().database.reading() as tx:
        return answers.respond(_document(tx, bulks.get(tx, g.owner, path.bulk_id)))


@api.delete("/<bulk_id>", operation_id="deleteBulk", responses={200: BulkDeleted, **problems(404, 409)})
def delete(path: BulkPath) -> Response:
    """Delete a bulk that has ended, its results and its upload; 409 while it runs."""
    check_id(path.bulk_id)
    with writing(BulkUnknown) as tx:
        bulks.delete(tx, g.owner, path.bulk_id)
    here().doorbell.ring_bulk(path.bulk_id)
    return answers.respond(answers.encode({"id": path.bulk_id, "object": "bulk", "deleted": True}))


@api.post("/<bulk_id>/cancel", operation_id="cancelBulk", responses={200: Bulk, **problems(404, 409)})
def cancel(path: BulkPath) -> Response:
    """Cancel a bulk: what has ended stays, the rest is cancelled. Twice is fine; 409 if it has ended otherwise."""
    return _change(path.bulk_id, lambda tx: bulks.cancel(tx, g.owner, path.bulk_id))


@api.post("/<bulk_id>/pause", operation_id="pauseBulk", responses={200: Bulk, **problems(404, 409)})
def pause(path: BulkPath) -> Response:
    """Let the lines of a bulk wait, but for those that an engine has already."""
    return _change(path.bulk_id, lambda tx: bulks.steer(tx, g.owner, path.bulk_id, paused=True))


@api.post("/<bulk_id>/resume", operation_id="resumeBulk", responses={200: Bulk, **problems(404, 409)})
def resume(path: BulkPath) -> Response:
    """Let a paused bulk go on."""
    return _change(path.bulk_id, lambda tx: bulks.steer(tx, g.owner, path.bulk_id, paused=False))


@api.patch(
    "/<bulk_id>",
    operation_id="changeBulk",
    request_body=body_of(BulkChange),
    responses={200: Bulk, **problems(400, 404, 408, 409, 413, 415)},
)
def change(path: BulkPath) -> Response:
    """Bring the lines of a bulk that wait into another lane."""
    sent = json_body.parse(json_body.read(request, here().settings.max_body_bytes))
    try:
        asked = BulkChange.model_validate(sent.values)
    except ValidationError as error:
        raise from_pydantic(found_by(error)) from None
    return _change(path.bulk_id, lambda tx: bulks.steer(tx, g.owner, path.bulk_id, lane=asked.lane))


def _change(bulk_id: str, work: Callable[[sa.Connection], AnyRow]) -> Response:
    check_id(bulk_id)
    with writing(BulkUnknown) as tx:
        document = _document(tx, work(tx))
    here().doorbell.ring_bulk(bulk_id)
    return answers.respond(document)


@api.post(
    "/<bulk_id>/retry",
    operation_id="retryBulk",
    request_body=body_of(BulkRetry) | {"required": False},
    responses={202: Bulk, **problems(400, 404, 408, 409, 413, 415, 429)},
)
def retry(path: BulkPath) -> Response:
    """Run the lines that did not succeed again, as a new bulk; 409 while it runs, 422 when there are none.

    The body's parameters replace those of each line. Lines that never became jobs (they could not be read, or the
    bulk was cancelled before their turn) are not among them.
    """
    check_id(path.bulk_id)
    return _accepted(again(path.bulk_id, keyed.key(), json_body.parse(_optional_body())))


def again(bulk_id: str, key: str | None, sent: JsonObject) -> tuple[str, bool]:
    """Store a bulk of the lines that did not succeed, once; return its document, and whether it was told before."""
    once = Once(key, bulk_submission.fingerprint(sent, "", bulk_id))
    try:
        new = _retried(bulk_id, sent)
        limits.check(skip=new.dry_run)
    except (Problem, NotFound, QueueFull):
        if (before := once.before()) is None:
            raise
        return before, True
    return _stored(once, lambda tx: bulks.create(tx, new))


def _optional_body() -> bytes:
    if request.content_length or "Transfer-Encoding" in request.headers:
        return json_body.read(request, here().settings.max_body_bytes) or b"{}"
    return b"{}"


def _retried(bulk_id: str, sent: JsonObject) -> NewBulk:
    context = here()
    asked = bulk_submission.checked(BulkRetry, sent, context.known)
    with context.database.reading() as tx:
        row = bulks.get(tx, g.owner, bulk_id)
        if row.state in BULK.open:
            raise StillRunning(bulk_id, row.state)
        if row.done == row.succeeded + row.invalid or not bulk_lines.failed_jobs(tx, bulk_id, 0, 1):
            raise Problem(422, "nothing_to_retry", f"Bulk {bulk_id} has no line that ran and did not succeed.")
    return bulk_submission.retried(asked, sent, row, context.settings, context.seal)


@api.get(
    "/<bulk_id>/results",
    operation_id="getBulkResults",
    responses={200: result_streams.CONTENT, **problems(404, 501)},
)
def results(path: BulkPath, query: ResultsQuery) -> Response:
    """Read the lines that succeeded, in the order in which they ended; while the bulk runs, those there are by now.

    `X-Incomplete: true` says that more may come: go on with `after`, the `seq` of the last one.
    """
    return _lines(path.bulk_id, query, ok=True)


@api.get(
    "/<bulk_id>/errors",
    operation_id="getBulkErrors",
    responses={200: result_streams.CONTENT, **problems(404, 501)},
)
def errors(path: BulkPath, query: ResultsQuery) -> Response:
    """Read the lines that failed, expired, were cancelled or could not be read, in the same way."""
    return _lines(path.bulk_id, query, ok=False)


def _lines(bulk_id: str, query: ResultsQuery, *, ok: bool) -> Response:
    check_id(bulk_id)
    result_streams.check(query.format)
    database, (row, columns) = here().lists.of_ended(
        lambda tx: (bulks.get(tx, g.owner, bulk_id), bulk_views.columns(tx, bulk_id)),
        lambda seen: seen[0].state not in BULK.open,
    )
    pages = bulk_results.follow(database, bulk_id, ok=ok, after=query.after, most=query.limit, details=True)
    # Known before the first page is read: an answer without this header has all there will ever be.
    headers = {"X-Incomplete": "true"} if row.state in BULK.open else {}
    return result_streams.respond(query.format, pages, columns, f"{bulk_id}-{'results' if ok else 'errors'}", headers)
