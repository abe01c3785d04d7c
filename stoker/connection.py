"""How both clients reach the service: what they give to httpx, the same for each."""

from __future__ import annotations

import ipaddress
from typing import Any

import httpx

from stoker.api_errors import StokerAPIError, without_password
from stoker.steps import Call

URL = "http://127.0.0.1:8000"
TIMEOUT = httpx.Timeout(20.0, connect=5.0)


def options(base_url: str, api_key: str | None) -> dict[str, Any]:
    """Return the options of a connection. Raises StokerAPIError for what is no URL, or no key."""
    shown = without_password(base_url)
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise StokerAPIError(f"{shown} is no URL: {error}") from error
    if url.scheme not in {"http", "https"} or not url.host:
        raise StokerAPIError(f"{shown} is no http:// or https:// URL")
    if api_key and not (api_key.isascii() and api_key.isprintable()):
        # What sends it would say so, too, and the key with it.
        raise StokerAPIError("the API key holds what no key does, a line end perhaps: copy it once more")
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    return {"base_url": url, "headers": headers, "timeout": TIMEOUT}


def is_direct(base_url: str) -> bool:
    """Tell whether a service is on this machine, where no proxy of the environment reaches it."""
    host = httpx.URL(base_url).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def arguments(call: Call[Any]) -> dict[str, Any]:
    """Return a call as arguments of httpx, all but the body of an upload."""
    upload = call.upload.headers if call.upload else {}
    headers = {**call.options.get("headers", {}), **upload}
    return {"method": call.method, "url": call.path, **call.options, "headers": headers}
