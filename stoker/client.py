"""A client of stoker's HTTP API, on httpx alone.

```
with Client() as client:
    job = client.wait(client.submit(prompt="What is the capital of France?").id, timeout=60)
    print(job.text)
```
"""

from __future__ import annotations

import ipaddress
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

import httpx

ENDED = frozenset({"succeeded", "failed", "cancelled", "expired"})
TRIES = 5
LONGEST_WAIT = 30.0
LONGEST_PAUSE = 10.0
EARLY_PAUSE = 0.2


class StokerAPIError(Exception):
    """The service refused, or cannot be reached. `status` is 0 when there was no answer; `code` names the problem."""

    def __init__(self, message: str, *, status: int = 0, code: str = "", request_id: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.request_id = request_id


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the service last told of it; times are unix seconds."""

    id: str
    state: str
    lane: str
    model: str
    endpoint: str
    attempts: int
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None
    expires_at: float | None = None
    queue_position: int | None = None
    usage: Mapping[str, int] | None = None
    result: Any = field(default=None, repr=False)
    error: Mapping[str, Any] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict, repr=False)
    webhook_url: str | None = None

    @property
    def ended(self) -> bool:
        """Tell whether the job has reached an end state."""
        return self.state in ENDED

    @property
    def text(self) -> str:
        """Return the text of the first answer of a chat or completion, empty when there is none."""
        choices = self.result.get("choices") if isinstance(self.result, dict) else None
        first = choices[0] if choices else {}
        return str((first.get("message") or {}).get("content") or first.get("text") or "")


_FIELDS = frozenset(item.name for item in fields(Job))


class Client:
    """A connection to one service. Close it, or use it in a `with`."""

    def __init__(self, base_url: str = "http://127.0.0.1:8000", api_key: str | None = None) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        # With a transport of its own httpx does not look for proxies in the environment: none of them reaches loopback.
        transport = httpx.HTTPTransport() if _is_loopback(httpx.URL(base_url).host) else None
        timeout = httpx.Timeout(20.0, connect=5.0)
        self._http = httpx.Client(base_url=base_url, headers=headers, timeout=timeout, transport=transport)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def submit(self, *, idempotency_key: str | None = None, **params: Any) -> Job:
        """Submit a job: `prompt`, `messages`, `input`, or `endpoint` and `body`, and whatever POST /v1/jobs takes.

        Safe to repeat, and repeated when the answer is lost: it carries an Idempotency-Key, made if none is given.
        """
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        return _job(self._call("POST", "/v1/jobs", json=params, headers=headers))

    def get(self, job_id: str) -> Job:
        """Return a job as it is now."""
        return _job(self._call("GET", f"/v1/jobs/{job_id}"))

    def wait(self, job_id: str, timeout: float = 600.0) -> Job:
        """Return a job when it has ended. Raises TimeoutError when it has not after so many seconds."""
        until = time.monotonic() + timeout
        while True:
            asked = time.monotonic()
            seconds = round(min(LONGEST_WAIT, max(0.0, until - time.monotonic())), 3)
            job = _job(self._call("GET", f"/v1/jobs/{job_id}", params={"wait": seconds}, timeout=seconds + 20))
            if job.ended:
                return job
            if time.monotonic() >= until:
                raise TimeoutError(f"job {job_id} is still {job.state} after {timeout:g} s")
            if time.monotonic() - asked < seconds:
                time.sleep(EARLY_PAUSE)  # the service is stopping and holds nobody; another one may follow

    def result(self, job_id: str) -> Any:
        """Return the engine's answer alone. Raises StokerAPIError (404) while there is none."""
        return self._call("GET", f"/v1/jobs/{job_id}/result").json()

    def cancel(self, job_id: str) -> Job:
        """Cancel a job. Raises StokerAPIError (409) when it has ended."""
        return _job(self._call("POST", f"/v1/jobs/{job_id}/cancel"))

    def list(self, *, metadata: Mapping[str, str] | None = None, **filters: Any) -> list[Job]:
        """Return a page of jobs, newest first, without results; filters: limit, after, state, lane, model, metadata."""
        tags = {f"metadata.{key}": value for key, value in (metadata or {}).items()}
        given = {name: value for name, value in filters.items() if value is not None}
        return [_made(item) for item in self._call("GET", "/v1/jobs", params=given | tags).json()["data"]]

    def _call(self, method: str, path: str, **options: Any) -> httpx.Response:
        repeatable = method == "GET" or "Idempotency-Key" in options.get("headers", {})
        for left in range(TRIES - 1, -1, -1):
            pause = 0.2 * 2 ** (TRIES - 1 - left)
            try:
                answer = self._http.request(method, path, **options)
            except (httpx.TransportError, httpx.InvalidURL) as error:
                if left and repeatable and isinstance(error, httpx.TransportError):
                    time.sleep(pause)
                    continue
                raise StokerAPIError(f"{self._http.base_url} does not answer: {error}") from error
            if answer.is_success:
                return answer
            if not (left and repeatable and answer.status_code in {429, 503}):
                raise _problem(answer)
            time.sleep(_retry_after(answer, pause))
        raise AssertionError  # the last try returns or raises


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _retry_after(answer: httpx.Response, otherwise: float) -> float:
    try:
        return min(LONGEST_PAUSE, max(0.0, float(answer.headers.get("Retry-After", otherwise))))
    except ValueError:
        return otherwise


def _problem(answer: httpx.Response) -> StokerAPIError:
    try:
        document = answer.json()
    except ValueError:
        document = {}
    known = document if isinstance(document, dict) else {}
    return StokerAPIError(
        str(known.get("detail") or f"{answer.status_code} {answer.reason_phrase} from {answer.url.host}"),
        status=answer.status_code,
        code=str(known.get("code") or ""),
        request_id=answer.headers.get("X-Request-Id", ""),
    )


def _job(answer: httpx.Response) -> Job:
    return _made(answer.json())


def _made(document: Mapping[str, Any]) -> Job:
    # Fields that a newer service adds are no reason to fail.
    return Job(**{name: value for name, value in document.items() if name in _FIELDS})
