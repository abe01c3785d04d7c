"""Who a request is from.

With keys in the database each request needs one. With none, requests from this machine belong to the owner `local`;
such a request must come straight from it: no proxy, no foreign name in `Host`, no foreign page in a browser.
"""

from __future__ import annotations

import hashlib
import ipaddress
import threading
import time
from urllib.parse import urlsplit

from flask import Request

from models import keys
from models.db import Database
from webapi.errors import Problem

LOCAL_OWNER = "local"
KEY_PREFIX = "sk-stoker-"
MOST_REMEMBERED = 10_000

HOW = "Make a key with `stoker keys create`, and send it as `Authorization: Bearer sk-stoker-...`."


def is_loopback(host: str) -> bool:
    """Tell whether a host, as an address or name, is this machine and nothing else."""
    bare = host.strip("[]").lower()
    if bare == "localhost":
        return True
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


class Keys:
    """The owners of API keys, remembered for `keep` seconds: so long a revoked key may still work."""

    def __init__(self, database: Database, host: str, keep: float = 3.0) -> None:
        self._database = database
        self._loopback = is_loopback(host)
        self._keep = keep
        self._lock = threading.Lock()
        self._looking = threading.Lock()
        self._owners: dict[bytes, tuple[str, float]] = {}
        self._open = (False, -keep)

    def owner(self, asked: Request) -> str:
        """Return the owner that a request acts for. Raises Problem 401 and 403."""
        scheme, _, secret = asked.headers.get("Authorization", "").partition(" ")
        secret = secret.strip() if scheme.lower() == "bearer" else ""
        if secret.startswith(KEY_PREFIX):
            if owner := self._owner_of(secret):
                return owner
            raise _unauthorized("This API key is not valid.")
        if not self._is_open():
            raise _unauthorized("This request has no API key.")
        _refuse_strangers(asked)
        return LOCAL_OWNER

    def _owner_of(self, secret: str) -> str | None:
        digest = hashlib.sha256(secret.encode()).digest()
        remembered = self._owners.get(digest)
        if remembered and time.monotonic() < remembered[1]:
            return remembered[0]
        if remembered and not self._looking.acquire(blocking=False):
            return remembered[0]  # one looks for all: a crowd is not to look at the same moment
        try:
            owner = self._look(secret)
        finally:
            if remembered:
                self._looking.release()
        self._remember(digest, owner)
        return owner

    def _look(self, secret: str) -> str | None:
        with self._database.reading() as tx:
            return keys.owner_of(tx, secret)

    def _remember(self, digest: bytes, owner: str | None) -> None:
        with self._lock:
            if len(self._owners) >= MOST_REMEMBERED:
                self._owners.clear()
            self._owners.pop(digest, None)
            if owner is not None:
                self._owners[digest] = (owner, time.monotonic() + self._keep)

    def _is_open(self) -> bool:
        is_open, until = self._open
        # Only while it is open: who was refused a moment ago may be let in now, and the other way round.
        if time.monotonic() < until or (is_open and not self._looking.acquire(blocking=False)):
            return is_open
        try:
            found = self._loopback and not any_exist(self._database)
            self._open = (found, time.monotonic() + self._keep)
        finally:
            if is_open:
                self._looking.release()
        return found


def any_exist(database: Database) -> bool:
    """Tell whether a valid key exists."""
    with database.reading() as tx:
        return keys.any_exist(tx)


def _refuse_strangers(asked: Request) -> None:
    forwarded = any(name in asked.headers for name in ("Forwarded", "X-Forwarded-For", "X-Real-IP", "Via"))
    if forwarded or not is_loopback(asked.remote_addr or ""):
        raise _unauthorized("Without a key only requests from this machine itself are taken.")
    # A page in a browser on this machine may reach loopback too: by a name that it points here, or from its own site.
    if not is_loopback(_host_of(f"//{asked.headers.get('Host', '')}")):
        raise Problem(403, "foreign_host", f"Without a key the Host header must name this machine. {HOW}")
    origin = asked.headers.get("Origin")
    if origin is not None and not is_loopback(_host_of(origin)):
        raise Problem(403, "foreign_origin", f"Without a key no page of another site may call this service. {HOW}")


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _unauthorized(why: str) -> Problem:
    return Problem(401, "unauthorized", f"{why} {HOW}", headers={"WWW-Authenticate": 'Bearer realm="stoker"'})
