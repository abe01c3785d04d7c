"""What `stoker doctor` looks at in the web server: does it answer at once, and does it take jobs."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

from stoker.finding import Finding, ok, problem, warning
from stoker.settings import Settings

TIMEOUT = 5.0
SLOW = 1.0
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104  # asked of, not listened on


def web(settings: Settings, url: str | None, *, known: bool) -> Iterator[Finding]:
    """Look at the web server of `url`, else of the settings; `known`: they are those of a `stoker up`."""
    address = url or _address(settings)
    try:
        _, _, took = _get(address, "/livez")
        says = f"{address} answers in {took * 1000:.0f} ms"
        slow = warning("web", says, "look at the load of this machine and at logs/web.log")
        yield slow if took > SLOW else ok("web", says)
        yield _ready(address)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if url or known:
            do = "start it, or read logs/web.log; `stoker restart web` when it is frozen"
            yield problem("web", f"{address} does not answer: {error}", do)
        else:
            yield warning("web", f"{address} does not answer: {error}", "name the address of the service with --url")


def takes_jobs(settings: Settings) -> bool:
    """Tell whether the web server of these settings is ready. Raises OSError when it does not answer."""
    try:
        return _get(_address(settings), "/readyz")[0] == http.client.OK
    except http.client.HTTPException:
        return False


def _address(settings: Settings) -> str:
    host = _ANYWHERE.get(settings.host, settings.host)
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


def _ready(address: str) -> Finding:
    status, answer, _ = _get(address, "/readyz")
    if status == http.client.OK and answer.get("status") == "ok":
        return ok("ready", "it takes jobs")
    if status == http.client.OK:
        do = "see to Redis: jobs are accepted, and start with a delay of seconds"
        return warning("ready", "it takes jobs, but does not reach Redis", do)
    why = answer.get("detail") or answer.get("title") or f"it answers {status}"
    return problem("ready", f"it takes no jobs: {why}", "see to the database first")


def _get(address: str, path: str) -> tuple[int, dict[str, object], float]:
    """Return status, JSON and the seconds that it took."""
    parts = urlsplit(address)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=TIMEOUT)
    began = time.monotonic()
    try:
        connection.request("GET", parts.path.rstrip("/") + path)
        answer = connection.getresponse()
        body = answer.read(65_536)
    finally:
        connection.close()
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    return answer.status, found if isinstance(found, dict) else {}, time.monotonic() - began
