"""Headers on every answer: what a browser may do with it, and which sites' pages may call the service at all."""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode

from flask import Flask, Response, request
from flask_cors import CORS

from stoker.setting_types import listed
from stoker.settings import Settings
from webapi import static_files

EXPOSED = (
    "Location",
    "Retry-After",
    "X-Request-Id",
    "X-Stoker-Job",
    "Idempotency-Replayed",
    *(f"X-RateLimit-{what}-{of}" for of in ("Requests", "Tokens") for what in ("Limit", "Remaining", "Reset")),
)
"""Headers that a page of an allowed site may read."""
_SENT = ("Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID", "X-Request-Id")
_METHODS = ("GET", "HEAD", "POST", "PATCH", "PUT", "DELETE")
_PREFLIGHT_KEPT = 600

_ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
}
_NOTHING = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
PAGE = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
"""Of a page of our own: nothing inline, nothing from elsewhere."""
_DOCS = (
    "default-src 'none'; style-src 'self'{styles}; script-src 'self'{scripts}; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


def install(app: Flask, settings: Settings) -> None:
    """Put the headers on every answer of an application, and let the pages of the allowed sites call it."""
    app.after_request(_protect)
    if sites := listed(settings.cors_origins):
        # Whole and exact: the library takes a text with signs in it, an IPv6 address say, for a pattern.
        allowed = [re.compile(rf"{re.escape(site)}\Z") for site in sites]
        # No cookies: such pages send an API key.
        CORS(
            app,
            resources={
                r"/v1/.*": {
                    "origins": allowed,
                    "methods": _METHODS,
                    "allow_headers": _SENT,
                    "expose_headers": EXPOSED,
                    "supports_credentials": False,
                    "max_age": _PREFLIGHT_KEPT,
                    "vary_header": True,
                }
            },
            intercept_exceptions=False,
        )


def _protect(response: Response) -> Response:
    for name, value in _ALWAYS.items():
        response.headers.setdefault(name, value)
    docs = request.path.startswith("/docs/")
    response.headers.setdefault("Content-Security-Policy", _docs(response) if docs else _NOTHING)
    if not docs and request.endpoint != static_files.ENDPOINT:
        # What owners store: no cache between is to keep it. Streams say so themselves.
        response.headers.setdefault("Cache-Control", "no-store")
    return response


def _docs(response: Response) -> str:
    """Return the policy of the API's page, which a library writes: its own few lines of script and style, by hash."""
    if response.mimetype != "text/html" or response.direct_passthrough:
        return _NOTHING
    allowed = {"script": "", "style": ""}
    for tag, text in _INLINE.findall(response.get_data(as_text=True)):
        digest = b64encode(hashlib.sha256(text.encode()).digest()).decode()
        allowed[tag] += f" 'sha256-{digest}'"
    return _DOCS.format(scripts=allowed["script"], styles=allowed["style"])
