"""How the client says that something went wrong, and how it reads that from an answer.

```
StokerAPIError              the service refused, or does not answer
WebhookVerificationError    a webhook is not what it says it is
```
"""

from __future__ import annotations

import re
import time
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

RETRIED = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses that say "not now"."""


class StokerAPIError(Exception):
    """The service refused, or cannot be reached. `status` is 0 when there was no answer; `code` names the problem.

    `temporary` tells whether the same request may do later, `retry_after` in how many seconds the service thinks so.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        code: str = "",
        request_id: str = "",
        temporary: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.request_id = request_id
        self.temporary = temporary
        self.retry_after = retry_after


class WebhookVerificationError(Exception):
    """The webhook was not signed with this secret, was changed on its way, or is too old."""


def refusal(answer: httpx.Response) -> StokerAPIError:
    """Return what a refusal says: a problem document, or the envelope of OpenAI's API."""
    try:
        document = answer.json()
    except ValueError:
        document = None
    known = _object(document)
    envelope = _object(known.get("error"))
    message = known.get("detail") or envelope.get("message")
    return StokerAPIError(
        str(message or f"{answer.status_code} {answer.reason_phrase} from {answer.url.host}"),
        status=answer.status_code,
        code=str(known.get("code") or envelope.get("code") or ""),
        request_id=answer.headers.get("X-Request-Id", ""),
        temporary=is_temporary(answer),
        retry_after=retry_after(answer),
    )


def unreachable(base_url: object, error: Exception) -> StokerAPIError:
    """Return the error for a request that got no answer."""
    why = str(error) or type(error).__name__
    return StokerAPIError(f"{without_password(base_url)} does not answer: {why}", temporary=may_pass(error))


def without_password(url: object) -> str:
    """Return an address as it may be shown: without the name and password that may stand in it."""
    return re.sub(r"//[^/?#]*@", "//", str(url))


def is_temporary(answer: httpx.Response) -> bool:
    """Tell whether a refusal may be none in a moment; the service has the last word."""
    says: str = answer.headers.get("x-should-retry", "").lower()
    if says in {"true", "false"}:
        return says == "true"
    # A 409 with Retry-After: the first request with this Idempotency-Key is still running.
    return answer.status_code in RETRIED or (answer.status_code == httpx.codes.CONFLICT and _asks_to_wait(answer))


def may_pass(error: Exception) -> bool:
    """Tell whether a request that got no answer may get one later: not when the request itself is the trouble."""
    hopeless = (httpx.UnsupportedProtocol, httpx.LocalProtocolError)
    return isinstance(error, httpx.TransportError) and not isinstance(error, hopeless)


def retry_after(answer: httpx.Response) -> float | None:
    """Return the seconds that Retry-After asks to wait, whether it names seconds or a date."""
    text = answer.headers.get("Retry-After", "").strip()
    try:
        return max(0.0, float(text) if text[:1].isdigit() else parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _asks_to_wait(answer: httpx.Response) -> bool:
    return retry_after(answer) is not None


def _object(found: Any) -> dict[str, Any]:
    return found if isinstance(found, dict) else {}
