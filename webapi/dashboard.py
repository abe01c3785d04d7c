"""`/dashboard/login`: log in with an API key, and log out."""

from __future__ import annotations

import re
from http import HTTPStatus

from flask import Blueprint, Response, make_response, redirect, request

from webapi import json_body
from webapi.console import door
from webapi.context import here
from webapi.errors import Problem
from webapi.sessions import CSRF_FIELD, CSRF_HEADER, is_ours

pages = Blueprint("dashboard", __name__, url_prefix="/dashboard")

LARGEST_FORM = 16_384
FORM_WITHIN = 30.0
"""Seconds that a form may take to come: anybody may send one, and keeps a thread for so long."""

_PAGE = re.compile(r"/dashboard([/?][!-~]*)?")
"""Where a login may lead: to a page of the console, as an address has it."""

_WRONG_KEY = "This key is not valid: it is wrong, or it was revoked, or it has expired."
_TOO_MANY = "Too many wrong keys came from your address. Wait a minute, then try again."
_STALE_FORM = "This form was too old, or not sent from this page. Try again."


pages.after_request(door.protect)


@pages.get("/login")
def show() -> Response:
    """Show the form to log in; to who is logged in, or needs no login, the overview."""
    logged_in = here().sessions.session(request) is not None or here().keys.is_open()
    return _to_dashboard() if logged_in else door.login_form()


@pages.post("/login")
def login() -> Response:
    """Log in with an API key. Whatever is wrong with it, the answer is the same."""
    _read_form()
    sessions, to = here().sessions, request.form.get("to", "")
    to = to if _PAGE.fullmatch(to) else door.HOME
    if not sessions.is_login_form(request):
        return door.login_form(_STALE_FORM, HTTPStatus.FORBIDDEN, to)
    if not sessions.may_try(request):
        return _refused(to)
    # Looked up by its hash whatever it looks like: a text that cannot be a key takes as long as a wrong one.
    caller = here().keys.of_secret(request.form.get("key", "").strip())
    if caller is None:
        is_let = sessions.failed(request)
        return door.login_form(_WRONG_KEY, HTTPStatus.UNAUTHORIZED, to) if is_let else _refused(to)
    answer = make_response(redirect(to, HTTPStatus.SEE_OTHER))
    sessions.begin(request, answer, caller)
    return answer


def _read_form() -> None:
    """Let the form of a request come, before anything asks for a part of it. Raises Problem 400, 408 and 413."""
    json_body.whole(request, LARGEST_FORM, FORM_WITHIN, cache=True)


def _refused(to: str) -> Response:
    answer = door.login_form(_TOO_MANY, HTTPStatus.TOO_MANY_REQUESTS, to)
    answer.headers["Retry-After"] = "60"
    return answer


@pages.post("/logout")
def logout() -> Response:
    """Log out."""
    _read_form()
    answer = _to_dashboard()
    session = here().sessions.session(request)
    if session is not None:
        given = request.headers.get(CSRF_HEADER) or request.form.get(CSRF_FIELD, "")
        if not is_ours(request, session.token, given):
            raise Problem(403, "csrf", _STALE_FORM)
        here().sessions.end(answer)
    return answer


def _to_dashboard() -> Response:
    return make_response(redirect("/dashboard", HTTPStatus.SEE_OTHER))
