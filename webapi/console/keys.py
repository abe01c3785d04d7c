"""`/dashboard/keys`: API keys, as far as the caller may see them; made by an admin, revoked by who could do as much.

A key's secret is in the answer that made it, and nowhere else: no address, no log, no answer that is kept.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import structlog
from flask import Response, g, make_response, redirect, request

from models import key_limits, keys
from models.db import AnyRow, is_id
from models.errors import NotFound
from models.key_limits import BadLimit
from models.keys import LastKey, NewKey
from webapi.console import door, fields
from webapi.console.fields import Fields
from webapi.context import here, writing
from webapi.errors import OutcomeUnknown, Problem, invalid

log = structlog.get_logger("stoker.web")

pages = door.pages("keys")

PATH = f"{door.HOME}/keys"
PREFIX = "key"
A_PAGE = 100
MOST_NAME = 255
DAY = 86_400
MOST_DAYS = 36_500
_TOLD = {"revoked": "The key is revoked: within three seconds it opens nothing any more."}


class KeyUnknown(OutcomeUnknown):
    """The database went away while it stored a key, or that it is revoked."""


@pages.get("/keys", strict_slashes=False)
def index() -> Response:
    """List keys, newest first: those of the caller's owner, to an admin those of all."""
    door.need("read")
    return _list(Fields(request.args))


def _list(given: Fields, problem: Problem | None = None, **more: Any) -> Response:
    admin = g.caller.may("admin")
    owner = (given.text("owner") if problem is None else "") if admin else g.owner
    rows = [] if _is_open() else _page(owner or None, given.text("after") or None)
    wrong = {} if problem is None else fields.wrong(problem)
    page = door.render(
        "keys.html",
        "keys",
        is_open=_is_open(),
        admin=admin,
        owner=owner,
        keys=[{"row": row, "may_revoke": _may_revoke(row)} for row in rows[:A_PAGE]],
        next_after=rows[A_PAGE - 1].id if len(rows) > A_PAGE else None,
        values=request.form.to_dict() if wrong else {},
        chosen=request.form.getlist("scopes") if wrong else keys.USUAL,
        wrong=wrong,
        once=fields.new_token(),
        scopes=keys.SCOPES,
        limits=key_limits.NAMES,
        told=_TOLD.get(request.args.get("told", "")),
        **more,
    )
    page.status_code = problem.status if problem else HTTPStatus.OK
    return page


def _page(owner: str | None, after: str | None) -> list[AnyRow]:
    if after is not None and not is_id(PREFIX, after):
        raise invalid("after", "must be the id of a key")
    with here().database.reading() as tx:
        return list(keys.page(tx, owner, A_PAGE + 1, after=after))


@pages.post("/keys")
def create() -> Response:
    """Make a key for any owner, and show it, once."""
    door.need("admin")
    if _is_open():
        raise Problem(
            409, "first_key", "The first key is made on the service's machine: `stoker keys create --owner you`."
        )
    form = Fields(request.form)
    try:
        asked = _asked(form)
    except Problem as problem:
        return _list(form, problem)
    made = _made(form, asked)
    return _list(Fields(request.args), made=made, before=made is None)


def _made(form: Fields, asked: dict[str, Any]) -> NewKey | None:
    """Make a key; None where this form has made one already: its secret is kept nowhere to be shown again."""
    made: list[NewKey] = []

    def make() -> str:
        made.append(keys.create(tx, **asked))
        return made[0].id

    with writing(KeyUnknown) as tx:
        form.once("key").answer(tx, make)
    for key in made:
        log.info("API key made", key=key.id, owner=key.owner, by=g.caller.key_id, request_id=g.get("request_id"))
    return made[0] if made else None


def _asked(form: Fields) -> dict[str, Any]:
    """Return what a key is to be. Raises Problem 422, with every field that is wrong."""
    owner, name, scopes, days = (form.text("owner"), form.text("name"), form.texts("scopes"), form.number("days"))
    found = []
    if not keys.OWNER.fullmatch(owner):
        found.append(("owner", "must be 1 to 64 characters without blanks and without *"))
    if len(name) > MOST_NAME:
        found.append(("name", f"must be at most {MOST_NAME} characters long"))
    if not scopes or not set(scopes) <= set(keys.SCOPES):
        found.append(("scopes", f"must be some of {', '.join(keys.SCOPES)}"))
    if days is not None and not 0 < days <= MOST_DAYS:
        found.append(("days", f"must be more than 0 and at most {MOST_DAYS}"))
    limits: dict[str, float] = {}
    for limit in key_limits.NAMES:
        if text := form.text(f"limit_{limit}"):
            try:
                limits |= key_limits.parse([f"{limit}={text}"])
            except BadLimit as error:
                found.append((f"limit_{limit}", f"is not right: {error}"))
    if found:
        raise fields.wrong_with(found)
    expires_in = None if days is None else days * DAY
    return {"owner": owner, "name": name, "scopes": scopes, "expires_in": expires_in, "limits": limits}


@pages.post("/keys/<key_id>/revoke")
def revoke(key_id: str) -> Response:
    """Revoke a key for good; who revokes the one of this login is logged out."""
    door.need("submit")
    if not is_id(PREFIX, key_id):
        raise NotFound("key", key_id[:80])
    try:
        with writing(KeyUnknown) as tx:
            row = keys.get(tx, key_id)
            _check_revoke(row)
            keys.revoke_but_last(tx, key_id)
    except LastKey as error:
        raise Problem(409, "last_key", f"{error} Make another one first, or use `stoker keys revoke`.") from None
    log.info("API key revoked", key=key_id, owner=row.owner, by=g.caller.key_id, request_id=g.get("request_id"))
    if key_id != g.caller.key_id:
        return make_response(redirect(f"{PATH}?told=revoked", HTTPStatus.SEE_OTHER))
    answer = make_response(redirect(door.HOME, HTTPStatus.SEE_OTHER))
    here().sessions.end(answer)
    return answer


def _check_revoke(row: AnyRow) -> None:
    """Raise NotFound for another owner's key, and Problem 403 for one that may do more than the caller's."""
    if row.owner != g.owner and not g.caller.may("admin"):
        raise NotFound("key", row.id)
    if not _may_revoke(row):
        raise Problem(
            403, "missing_scope", "This key may do more than yours: it takes one with its scopes to revoke it."
        )


def _may_revoke(row: AnyRow) -> bool:
    """Tell whether the caller may revoke a key: no key ends what may do more than itself."""
    caller = g.caller
    return bool(caller.key_id) and caller.may("submit") and all(caller.may(scope) for scope in row.scopes.split())


def _is_open() -> bool:
    """Tell whether this service has no keys, so that whoever asks came without one."""
    return not g.caller.key_id
