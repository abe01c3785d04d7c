"""What every page of the console has in common: who may see it, its policy, its frame, and how changes are checked."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlsplit

from flask import Blueprint, Response, current_app, g, make_response, redirect, render_template, request
from werkzeug.wrappers import Response as Answer

from webapi import access, headers, json_body, rates
from webapi.caller import Caller
from webapi.console import filters
from webapi.context import here
from webapi.errors import Problem
from webapi.sessions import CSRF_FIELD, CSRF_HEADER, SAFE, Session, is_ours

LARGEST_FORM = 65_536
FORM_WITHIN = 30.0
"""Bytes and seconds that a form may have."""

HOME = "/dashboard"
_ENDED = "Your login has ended, and nothing was changed. Log in to go back to the page, and send the form again."
PAGES = (
    ("overview", "Overview", HOME),
    ("jobs", "Jobs", "/dashboard/jobs"),
    ("bulks", "Bulks", "/dashboard/bulks"),
    ("try", "Try", "/dashboard/try"),
    ("upload", "Upload", "/dashboard/upload"),
    ("webhooks", "Webhooks", "/dashboard/webhooks"),
    ("keys", "Keys", "/dashboard/keys"),
    ("usage", "Usage", "/dashboard/usage"),
)
"""In the order of the navigation: a page's name, its title and its path."""


def pages(name: str) -> Blueprint:
    """Return the blueprint of a page: whoever is not logged in is led to the door, and a change is checked."""
    made = Blueprint(f"console_{name}", __name__.replace("door", name), url_prefix="/dashboard")
    made.before_request(_enter)
    made.after_request(protect)
    filters.install(made)
    return made


def protect(answer: Response) -> Response:
    """Set the policy of pages."""
    answer.headers["Content-Security-Policy"] = headers.PAGE
    # With no-referrer a browser sends `Origin: null` with our own forms; other sites are told nothing by this either.
    answer.headers["Referrer-Policy"] = "same-origin"
    return answer


def render(template: str, page: str, title: str = "", **values: Any) -> Response:
    """Return a page within the frame; `page` is its name in PAGES, `title` what it is about besides."""
    named = {name: text for name, text, _ in PAGES}
    frame = {"pages": PAGES, "page": page, "title": title or named[page], "caller": g.caller, "csrf": g.csrf}
    return make_response(render_template(f"console/{template}", **frame, **values))


def fragment(template: str, **values: Any) -> Response:
    """Return a part of a page, to be put into it."""
    return make_response(render_template(f"console/{template}", caller=g.caller, csrf=g.csrf, **values))


def login_form(why: str = "", status: int = HTTPStatus.OK, to: str = HOME) -> Response:
    """Return the form to log in, which then leads to a page; `why` says what was wrong with the last one."""
    token = here().sessions.login_token(request)
    answer = make_response(render_template("login.html", why=why, csrf=token, to=to), status)
    here().sessions.keep_login_token(request, answer, token)
    return answer


def lead_to(path: str) -> Answer:
    """Return the answer to what went well, and leads to another page."""
    if wants_fragment():
        return Response("", HTTPStatus.OK, {"HX-Redirect": path})
    return redirect(path, HTTPStatus.SEE_OTHER)


def wants_fragment() -> bool:
    """Tell whether a part of the page is asked for, and not the whole of it."""
    return "HX-Request" in request.headers


def need(*scopes: str) -> None:
    """Raise Problem 403 unless the caller may do all of that."""
    if missing := [scope for scope in scopes if not g.caller.may(scope)]:
        raise access.missing(missing)


def _enter() -> Answer | None:
    session = here().sessions.session(request)
    caller = session.caller if session is not None else _stranger()
    if caller is None:
        return _to_the_door()
    g.caller, g.owner, g.csrf = caller, caller.owner, session.token if session is not None else ""
    if request.method not in SAFE:
        _check_change(session)
    rates.take(here().rates, caller)
    return None


def _stranger() -> Caller | None:
    """Return who may use a service without keys from here; None where a login is needed."""
    return here().keys.caller(request) if here().keys.is_open() else None


def _to_the_door() -> Answer:
    if wants_fragment():
        # In the place of a part of the page the login form would be no use.
        return Response("", HTTPStatus.UNAUTHORIZED, {"HX-Redirect": HOME})
    if request.method not in SAFE:
        return login_form(_ENDED, HTTPStatus.UNAUTHORIZED, _page_of_form())
    if request.headers.get("Sec-Fetch-Site") == "cross-site":
        # With a link of another site, in an alert say, a browser sends no cookie of ours; when we ask again it does.
        return Response("", HTTPStatus.OK, {"Refresh": "0"})
    query = request.query_string.decode("latin-1")
    return login_form(to=quote(request.path) + (f"?{query}" if query else ""))


def _page_of_form() -> str:
    """Return the page of ours that a form was on, as the browser tells; the overview where it tells none."""
    try:
        told = urlsplit(request.referrer or "")
    except ValueError:
        return HOME
    ours = told.netloc.lower() == request.host.lower() and told.path.startswith(f"{HOME}/")
    pages_of = current_app.create_url_adapter(request)
    # The page that answered a form may have an address that only takes forms.
    if not ours or pages_of is None or not pages_of.test(told.path, "GET"):
        return HOME
    return told.path + (f"?{told.query}" if told.query else "")


def _check_change(session: Session | None) -> None:
    """Raise Problem 403 for a change that does not prove to come from a page of this service."""
    json_body.whole(request, LARGEST_FORM, FORM_WITHIN, cache=True)
    token = session.token if session is not None else ""
    given = request.headers.get(CSRF_HEADER) or request.form.get(CSRF_FIELD, "")
    if not is_ours(request, token, given):
        raise Problem(403, "csrf", "This page was too old, or the change was not sent from it. Load it again.")
