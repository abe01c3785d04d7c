"""Logging in to the dashboard, being logged in, and logging out."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from models import keys
from models.db import Database
from models.keys import NewKey
from models.sealing import new_key
from stoker.settings import Settings
from webapi.app import create_app
from webapi.context import EXTENSION, Context
from webapi.sessions import COOKIE

WRONG = "sk-stoker-" + "A" * 43


@pytest.fixture
def key(database: Database) -> NewKey:
    """Return an API key of alice's."""
    with database.transaction() as tx:
        return keys.create(tx, "alice <b>")


@pytest.fixture
def browser(key: NewKey, app: Flask) -> FlaskClient:
    """Return a browser that keeps cookies, with a service that has a key."""
    return app.test_client()


def token_of(page: TestResponse) -> str:
    """Return the token in a page's form."""
    (found,) = re.findall(r'name="csrf" value="([^"]+)"', page.text)
    return str(found)


def log_in(browser: FlaskClient, secret: str, **more: Any) -> TestResponse:
    """Fill in the login form."""
    form = {"key": secret, "csrf": token_of(browser.get("/dashboard"))}
    return browser.post("/dashboard/login", data=form | more.pop("data", {}), **more)


def session_cookie(answer: TestResponse) -> str:
    """Return the Set-Cookie header of the session."""
    (found,) = [text for text in answer.headers.getlist("Set-Cookie") if text.startswith(f"{COOKIE}=")]
    return found


def test_a_key_logs_in_and_out(browser: FlaskClient, key: NewKey) -> None:
    """The page says who is logged in, escaped; after the log-out the form is back."""
    assert "Log in" in browser.get("/dashboard").text
    answer = log_in(browser, f" {key.secret}\n")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/dashboard")
    page = browser.get("/dashboard")
    assert "alice &lt;b&gt;" in page.text
    assert "submit, read" in page.text
    out = browser.post("/dashboard/logout", data={"csrf": token_of(page)})
    assert out.status_code == 303
    assert 'name="key"' in browser.get("/dashboard").text


@pytest.mark.parametrize(
    ("asked", "leads_to"),
    [
        ("/dashboard/jobs?state=failed&q=a%20b%26", "/dashboard/jobs?state=failed&q=a%20b%26"),
        ("/dashboard/jobs/%C3%A9", "/dashboard/jobs/%C3%A9"),
        ("/dashboard", "/dashboard"),
    ],
)
def test_a_login_leads_to_the_page_that_was_asked_for(
    browser: FlaskClient, key: NewKey, asked: str, leads_to: str
) -> None:
    """Also after a wrong key."""
    page = browser.get(asked)
    for secret, status in ((WRONG, 401), (key.secret, 303)):
        (to,) = re.findall(r'name="to" value="([^"]+)"', page.text)
        form = {"key": secret, "csrf": token_of(page), "to": html.unescape(to)}
        page = browser.post("/dashboard/login", data=form)
        assert page.status_code == status
    assert page.headers["Location"] == leads_to


@pytest.mark.parametrize(
    "to", ["//evil.test", "https://evil.test/dashboard", "/dashboard.evil.test", "/dashboard/\r\nX: y", "/v1/jobs", ""]
)
def test_a_login_leads_nowhere_else(browser: FlaskClient, key: NewKey, to: str) -> None:
    """Whatever somebody has put into the form."""
    assert log_in(browser, key.secret, data={"to": to}).headers["Location"] == "/dashboard"


def test_a_link_of_another_site_is_asked_for_again(browser: FlaskClient, key: NewKey) -> None:
    """By our own page, so that the browser sends the cookie, which it keeps from other sites; once."""
    foreign = {"Sec-Fetch-Site": "cross-site"}
    answer = browser.get("/dashboard/jobs", headers=foreign)
    assert (answer.status_code, answer.headers["Refresh"], answer.text) == (200, "0", "")
    log_in(browser, key.secret)
    assert "Refresh" not in browser.get("/dashboard/jobs", headers=foreign).headers


def test_the_cookie_is_kept_from_scripts_and_other_sites(browser: FlaskClient, key: NewKey) -> None:
    """HttpOnly, SameSite=Strict, for as long as a login lasts; Secure where the request came by https."""
    cookie = session_cookie(log_in(browser, key.secret))
    for part in ("HttpOnly", "SameSite=Strict", "Path=/", "Max-Age=43200"):
        assert f"; {part}" in cookie
    assert "Secure" not in cookie
    secure = log_in(browser.application.test_client(), key.secret, base_url="http://localhost")
    assert "Secure" not in session_cookie(secure)
    client = browser.application.test_client()
    form = {"key": key.secret, "csrf": token_of(client.get("/dashboard", base_url="https://localhost"))}
    answer = client.post("/dashboard/login", data=form, base_url="https://localhost")
    assert "; Secure" in session_cookie(answer)


def test_no_secret_is_in_cookies_pages_or_addresses(browser: FlaskClient, key: NewKey) -> None:
    """The key is in the request alone: neither answers nor cookies have a part of it."""
    answers = [log_in(browser, key.secret), browser.get("/dashboard"), log_in(browser, WRONG)]
    for answer in answers:
        whole = f"{answer.headers}{answer.text}"
        assert key.secret not in whole
        assert key.secret[10:] not in whole
        assert WRONG not in whole


def test_who_is_logged_in_may_call_the_api(browser: FlaskClient, key: NewKey) -> None:
    """Reads need the cookie alone; a change needs the page's token in a header as well."""
    log_in(browser, key.secret)
    assert browser.get("/v1/jobs").status_code == 200
    refused = browser.post("/v1/jobs", json={"prompt": "hi"})
    assert (refused.status_code, refused.json["code"]) == (403, "csrf")
    token = token_of(browser.get("/dashboard"))
    for wrong in ("x", token[:-1], f"{token}x", "é"):
        answer = browser.post("/v1/jobs", json={"prompt": "hi"}, headers={"X-CSRF-Token": wrong})
        assert answer.status_code == 403
    made = browser.post("/v1/jobs", json={"prompt": "hi"}, headers={"X-CSRF-Token": token})
    assert made.status_code == 202
    assert len(browser.get("/v1/jobs").json["data"]) == 1


@pytest.mark.parametrize(
    "origin", ["https://evil.test", "null", "http://localhost.evil.test", "http://localhost:1", "http://["]
)
def test_a_change_from_another_site_is_refused(browser: FlaskClient, key: NewKey, origin: str) -> None:
    """Even with the right token."""
    log_in(browser, key.secret)
    token = token_of(browser.get("/dashboard"))
    headers = {"X-CSRF-Token": token, "Origin": origin}
    assert browser.post("/v1/jobs", json={"prompt": "hi"}, headers=headers).status_code == 403
    assert browser.post("/dashboard/logout", data={"csrf": token}, headers={"Origin": origin}).status_code == 403
    assert "Log out" in browser.get("/dashboard").text
    headers["Origin"] = "http://localhost"
    assert browser.post("/v1/jobs", json={"prompt": "hi"}, headers=headers).status_code == 202


def test_a_change_that_the_browser_says_is_of_another_site_is_refused(browser: FlaskClient, key: NewKey) -> None:
    """Browsers tell it themselves, whether they send an Origin or not."""
    log_in(browser, key.secret)
    headers = {"X-CSRF-Token": token_of(browser.get("/dashboard")), "Sec-Fetch-Site": "cross-site"}
    assert browser.post("/v1/jobs", json={"prompt": "hi"}, headers=headers).status_code == 403


def test_a_key_beside_the_cookie_counts_alone(browser: FlaskClient, key: NewKey) -> None:
    """Who sends a key needs no token, and a wrong key is not made good by a cookie."""
    log_in(browser, key.secret)
    right = {"Authorization": f"Bearer {key.secret}"}
    assert browser.post("/v1/jobs", json={"prompt": "hi"}, headers=right).status_code == 202
    assert browser.get("/v1/jobs", headers={"Authorization": f"Bearer {WRONG}"}).status_code == 401


def test_a_login_form_of_another_site_is_refused(browser: FlaskClient, key: NewKey) -> None:
    """Nobody is logged in as somebody else: the form needs the token that this browser was given, and our page."""
    token = token_of(browser.get("/dashboard"))
    other = browser.application.test_client()
    other.get("/dashboard")
    tries = [
        other.post("/dashboard/login", data={"key": key.secret, "csrf": token}),
        other.post("/dashboard/login", data={"key": key.secret}),
        browser.application.test_client().post("/dashboard/login", data={"key": key.secret, "csrf": token}),
        browser.post(
            "/dashboard/login", data={"key": key.secret, "csrf": token}, headers={"Origin": "https://evil.test"}
        ),
    ]
    assert [answer.status_code for answer in tries] == [403] * 4
    assert all(COOKIE not in str(answer.headers) for answer in tries)


def test_every_wrong_key_has_the_same_answer(browser: FlaskClient, key: NewKey, database: Database) -> None:
    """Unknown, revoked, or no key at all: nothing tells which."""
    with database.transaction() as tx:
        revoked = keys.create(tx, "bob")
        keys.revoke(tx, revoked.id)
    tries = [WRONG, revoked.secret, "x", "", "é" * 100, key.secret[:-1]]
    answers = [log_in(browser, secret) for secret in tries]
    assert {answer.status_code for answer in answers} == {401}
    assert len({re.sub(r'value="[^"]+"', "", answer.text) for answer in answers}) == 1


def test_who_guesses_has_to_wait(browser: FlaskClient, key: NewKey) -> None:
    """After ten wrong keys within a minute an address is refused, even with a right one; another address is not."""
    answers = [log_in(browser, f"{WRONG}{n}") for n in range(12)]
    assert [answer.status_code for answer in answers] == [401] * 10 + [429] * 2
    refused = log_in(browser, key.secret)
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "60")
    elsewhere = browser.application.test_client()
    assert log_in(elsewhere, key.secret, environ_base={"REMOTE_ADDR": "192.0.2.7"}).status_code == 303


def test_the_addresses_of_one_network_count_as_one(browser: FlaskClient) -> None:
    """Whoever has one address of IPv6 has as many as it takes."""
    answers = [log_in(browser, WRONG, environ_base={"REMOTE_ADDR": f"2001:db8::{n:x}"}) for n in range(11)]
    assert [answer.status_code for answer in answers] == [401] * 10 + [429]


def test_a_revoked_key_is_logged_out(browser: FlaskClient, key: NewKey, database: Database, context: Context) -> None:
    """As soon as the key is looked up again, 3 s at most."""
    log_in(browser, key.secret)
    assert browser.get("/v1/jobs").status_code == 200
    with database.transaction() as tx:
        keys.create(tx, "another")
        keys.revoke(tx, key.id)
    assert context.keys._keep <= 3.0
    context.keys._callers.clear()
    assert browser.get("/v1/jobs").status_code == 401
    assert 'name="key"' in browser.get("/dashboard").text


def test_a_login_ends(browser: FlaskClient, key: NewKey, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the hours that the settings name, also for a cookie that a browser keeps longer."""
    log_in(browser, key.secret)
    monkeypatch.setattr(context.sessions, "_lasts", -1)
    assert browser.get("/v1/jobs").status_code == 401


def test_a_form_that_comes_behind_the_end_of_its_login(
    browser: FlaskClient, key: NewKey, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It changes nothing; the browser shows the form to log in, which leads back to the page: to one of ours, only."""
    log_in(browser, key.secret)
    monkeypatch.setattr(context.sessions, "_lasts", -1)
    home = "http://localhost"
    for path, referrer, to in (
        ("/dashboard/webhooks", f"{home}/dashboard/webhooks?told=saved", "/dashboard/webhooks?told=saved"),
        ("/dashboard/webhooks", f"{home}/dashboard/webhooks/deliveries/redeliver/x", "/dashboard"),
        ("/dashboard/keys", f"{home}/dashboard/keys/key_1/revoke", "/dashboard"),
        ("/dashboard/keys", f"{home}/v1/jobs", "/dashboard"),
        ("/dashboard/keys", "http://elsewhere.invalid/dashboard/keys", "/dashboard"),
        ("/dashboard/keys", "http://[", "/dashboard"),
        ("/dashboard/keys", "", "/dashboard"),
    ):
        answer = browser.post(path, data={"csrf": "x"}, headers={"Referer": referrer} if referrer else {})
        assert (answer.status_code, "HX-Redirect" in answer.headers) == (401, False)
        assert "Your login has ended" in answer.text
        assert f'name="to" value="{to}"' in answer.text
    part = browser.post("/dashboard/webhooks/x/test", headers={"HX-Request": "true"})
    assert (part.status_code, part.headers["HX-Redirect"], part.text) == (401, "/dashboard", "")
    monkeypatch.undo()
    token = token_of(answer)
    form = {"key": key.secret, "csrf": token, "to": "/dashboard/webhooks?told=saved"}
    assert browser.post("/dashboard/login", data=form).headers["Location"] == "/dashboard/webhooks?told=saved"


@pytest.mark.parametrize("text", ["", "x", "x.y.z", "a" * 4000, "\x00", "WyJrZXlfMSIsInQiXQ.aaaa.bbbb", "W10.Zw.x"])
def test_a_made_up_cookie_is_nobody(browser: FlaskClient, text: str) -> None:
    """It is no login, and no error either."""
    browser.set_cookie(COOKIE, text)
    assert browser.get("/dashboard").status_code == 200
    assert browser.get("/v1/jobs").status_code == 401


def test_a_login_form_is_no_login(browser: FlaskClient) -> None:
    """What is signed for one purpose is not taken for another."""
    browser.set_cookie(COOKIE, token_of(browser.get("/dashboard")))
    assert browser.get("/v1/jobs").status_code == 401


@pytest.fixture
def others(settings: Settings, key: NewKey) -> Iterator[list[FlaskClient]]:
    """Return browsers of three other processes: with the same key and a newer one, with another key, with none."""
    found = [f"{new_key()} {settings.secret_key}", new_key(), ""]
    apps = [create_app(settings.model_copy(update={"secret_key": secret})) for secret in found]
    yield [app.test_client() for app in apps]
    for app in apps:
        app.extensions[EXTENSION].close()


def test_processes_with_the_same_key_know_each_others_logins(
    browser: FlaskClient, others: list[FlaskClient], key: NewKey
) -> None:
    """Also while it is being replaced; a process with another key, or with none, does not take the cookie."""
    cookie = re.match(r"[^=]+=([^;]+)", session_cookie(log_in(browser, key.secret)))
    assert cookie
    for other in others:
        other.set_cookie(COOKIE, cookie[1])
    assert [other.get("/v1/jobs").status_code for other in others] == [200, 401, 401]


def test_without_a_secret_key_one_process_still_has_logins(others: list[FlaskClient], key: NewKey) -> None:
    """They end with it."""
    assert log_in(others[2], key.secret).status_code == 303
    assert others[2].get("/v1/jobs").status_code == 200


def test_a_service_without_keys_says_so(client: FlaskClient) -> None:
    """There is nothing to log in with, and what to do is on the page."""
    page = client.get("/dashboard").text
    assert "no API keys" in page
    assert "stoker keys create" in page
    assert 'name="key"' not in page


def test_a_form_has_a_largest_size(browser: FlaskClient) -> None:
    """A login is no place for megabytes."""
    assert log_in(browser, "x" * 100_000).status_code == 413


def test_pages_hold_nothing_from_elsewhere(browser: FlaskClient, key: NewKey) -> None:
    """No script, no style on the page itself, no address of another server; a language and labels for readers."""
    pages = [browser.get("/dashboard"), log_in(browser, WRONG)]
    log_in(browser, key.secret)
    pages.append(browser.get("/dashboard"))
    for page in pages:
        assert not re.search(r"<script(?! src=)|<style|style=|https?://|\bon\w+=", page.text)
        assert '<html lang="en">' in page.text
        policy = page.headers["Content-Security-Policy"]
        assert "style-src 'self'" in policy
        assert "form-action 'self'" in policy
    assert '<label for="key">' in pages[0].text
    assert 'role="alert"' in pages[1].text
