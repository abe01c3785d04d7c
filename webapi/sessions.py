"""Who is logged in to the dashboard: a signed cookie that names an API key, which is looked up at each request.

The cookie holds no secret: the key's id, when it was made, and the token that every change must repeat (CSRF).
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from flask import Request, Response
from itsdangerous import BadData, URLSafeTimedSerializer
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from models.sealing import Seal
from webapi.auth import Keys
from webapi.caller import Caller
from webapi.errors import Problem

COOKIE = "stoker_session"
LOGIN_COOKIE = "stoker_login"
CSRF_HEADER = "X-CSRF-Token"
CSRF_FIELD = "csrf"
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
MOST_FAILURES = RateLimitItemPerMinute(10)
"""Keys that may be wrong, from one address; in each web process."""
LOGIN_LASTS = 3600
"""Seconds for which a login form can be sent."""
_LONGEST_COOKIE = 1000


@dataclass(frozen=True, slots=True)
class Session:
    """A login: whom it acts for, and the token that its changes repeat."""

    caller: Caller
    token: str = field(repr=False)


class Sessions:
    """The logins of a service. Nothing is stored: who has the secret key can tell a cookie that is ours."""

    def __init__(self, keys: Keys, seal: Seal, hours: float) -> None:
        """Sign by the secret key, newest first; without one, by a key that ends with this process."""
        self._keys = keys
        self._lasts = round(hours * 3600)
        signing = seal.derived("sessions")[::-1] or [secrets.token_bytes(32)]
        self._logins = _signer(signing, "login form")
        self._sessions = _signer(signing, "session")
        self._failures = MovingWindowRateLimiter(MemoryStorage())

    def caller(self, asked: Request) -> Caller | None:
        """Return who is logged in; None for nobody, or where the request brings a key of its own.

        Raises Problem 403 for a change that does not prove to come from a page of this service.
        """
        if "Authorization" in asked.headers or (found := self.session(asked)) is None:
            return None
        if asked.method not in SAFE and not is_ours(asked, found.token, asked.headers.get(CSRF_HEADER, "")):
            raise Problem(
                403, "csrf", f"A change by a login needs the token of its page in {CSRF_HEADER}, or use an API key."
            )
        return found.caller

    def session(self, asked: Request) -> Session | None:
        """Return the login that a request's cookie stands for, whatever the request is; None when it has ended."""
        match _read(self._sessions, asked.cookies.get(COOKIE, ""), self._lasts):
            case [str(key_id), str(token)] if (caller := self._keys.of_id(key_id)) is not None:
                return Session(caller, token)
        return None

    def begin(self, asked: Request, answer: Response, caller: Caller) -> None:
        """Log a caller in, by a cookie on the answer."""
        made = self._sessions.dumps([caller.key_id, secrets.token_urlsafe(32)])
        _put(asked, answer, COOKIE, made, self._lasts)
        answer.delete_cookie(LOGIN_COOKIE, path="/dashboard")

    def end(self, answer: Response) -> None:
        """Log out, by taking the cookie back."""
        answer.delete_cookie(COOKIE, path="/", httponly=True, samesite="Strict")

    def login_token(self, asked: Request) -> str:
        """Return the token of a login form: that of the form which this browser has open already, or a new one."""
        given = asked.cookies.get(LOGIN_COOKIE, "")
        return given if self._is_login_token(given) else self._logins.dumps(secrets.token_urlsafe(16))

    def keep_login_token(self, asked: Request, answer: Response, token: str) -> None:
        """Give the token of a login form to the browser as well: the form has to come back with both."""
        _put(asked, answer, LOGIN_COOKIE, token, LOGIN_LASTS, path="/dashboard")

    def is_login_form(self, asked: Request) -> bool:
        """Tell whether a request brings back a login form of ours, filled in on our page."""
        token = asked.cookies.get(LOGIN_COOKIE, "")
        return self._is_login_token(token) and is_ours(asked, token, asked.form.get(CSRF_FIELD, ""))

    def _is_login_token(self, token: str) -> bool:
        return isinstance(_read(self._logins, token, LOGIN_LASTS), str)

    def may_try(self, asked: Request) -> bool:
        """Tell whether an address may try a key: not after too many wrong ones within a minute."""
        return self._failures.test(MOST_FAILURES, _address(asked))

    def failed(self, asked: Request) -> bool:
        """Note a wrong key; return whether that was still allowed."""
        return self._failures.hit(MOST_FAILURES, _address(asked))


def is_ours(asked: Request, token: str, given: str) -> bool:
    """Tell whether a change comes from a page of this service: it repeats the token, and no other site sends it."""
    return hmac.compare_digest(token.encode(), given.encode()) and _same_site(asked)


def _same_site(asked: Request) -> bool:
    if asked.headers.get("Sec-Fetch-Site", "same-origin") not in {"same-origin", "none"}:
        return False
    origin = asked.headers.get("Origin")
    if origin is None:
        return True
    try:
        # The scheme is left out: a proxy that ends TLS in front of us may not tell it.
        return urlsplit(origin).netloc.lower() == asked.host.lower() != ""
    except ValueError:
        return False


def _signer(keys: list[bytes], purpose: str) -> URLSafeTimedSerializer:
    signing = {"key_derivation": "hmac", "digest_method": hashlib.sha256}
    return URLSafeTimedSerializer(keys, salt=f"stoker {purpose}", signer_kwargs=signing)


def _read(signer: URLSafeTimedSerializer, text: str, lasts: int) -> object:
    if not text or len(text) > _LONGEST_COOKIE:
        return None
    try:
        read: object = signer.loads(text, max_age=lasts)
    except BadData:
        return None
    return read


def _put(asked: Request, answer: Response, name: str, text: str, lasts: int, path: str = "/") -> None:
    answer.set_cookie(name, text, max_age=lasts, path=path, httponly=True, samesite="Strict", secure=asked.is_secure)


def _address(asked: Request) -> str:
    try:
        address = ipaddress.ip_address(asked.remote_addr or "")
    except ValueError:
        return asked.remote_addr or ""
    # Of IPv6 whoever has one address has its /64.
    return str(address if address.version == 4 else ipaddress.ip_network((address, 64), strict=False))  # noqa: PLR2004
