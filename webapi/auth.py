"""Who a request is from.

With keys in the database each request needs one. With none, requests from this machine belong to the owner `local`;
such a request must come straight from it: no proxy, no foreign name in `Host`, no foreign page in a browser.
"""

from __future__ import annotations

import hashlib
import ipaddress
import math
from collections.abc import Callable
from urllib.parse import urlsplit

import sqlalchemy as sa
from flask import Request

from models import key_limits, keys
from models.db import Database
from models.keys import Found
from stoker.settings import Settings
from webapi.caller import Caller
from webapi.errors import Problem
from webapi.key_uses import KeyUses
from webapi.remembered import Remembered

LOCAL_OWNER = "local"
KEY_PREFIX = "sk-stoker-"

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
    """The callers behind API keys, remembered for `keep` seconds and `GRACE`: so long a revoked key may still work.

    Three seconds are promised, counted from before the look-up.
    """

    def __init__(self, database: Database, settings: Settings, keep: float = 2.5) -> None:
        self._database = database
        self._settings = settings
        self._loopback = is_loopback(settings.host)
        self._keep = keep
        self._callers: Remembered[bytes, Caller | None] = Remembered(keep)
        self._open: Remembered[None, bool] = Remembered(keep)
        self._uses = KeyUses(database)

    def caller(self, asked: Request) -> Caller:
        """Return whom a request acts for. Raises Problem 401 and 403."""
        scheme, _, secret = asked.headers.get("Authorization", "").partition(" ")
        secret = secret.strip() if scheme.lower() == "bearer" else ""
        if secret.startswith(KEY_PREFIX):
            if caller := self.of_secret(secret):
                return caller
            raise _unauthorized("This API key is not valid.")
        if not self.is_open():
            raise _unauthorized("This request has no API key.")
        _refuse_strangers(asked)
        return Caller(LOCAL_OWNER, limits=key_limits.of(self._settings))

    def of_secret(self, secret: str) -> Caller | None:
        """Return the caller behind a key; None when it is not valid."""
        # Remembered by its digest: what is in memory opens nothing.
        digest = hashlib.sha256(secret.encode()).digest()
        return self._remembered(digest, lambda tx: keys.find(tx, secret))

    def of_id(self, key_id: str) -> Caller | None:
        """Return the caller behind the key with an id; None when it is not, or no longer, valid."""
        digest = hashlib.sha256(b"id " + key_id.encode()).digest()
        return self._remembered(digest, lambda tx: keys.find_by_id(tx, key_id))

    def close(self) -> None:
        """Note what is to be noted yet."""
        self._uses.close()

    def _remembered(self, digest: bytes, find: Callable[[sa.Connection], Found | None]) -> Caller | None:
        return self._callers.get(digest, lambda: self._look(find))

    def _look(self, find: Callable[[sa.Connection], Found | None]) -> tuple[Caller | None, float]:
        """Return the caller and the seconds that its key has left; one that is not valid is looked up each time."""
        with self._database.reading() as tx:
            found = find(tx)
        if found is None:
            return None, 0.0
        if found.unnoted:
            self._uses.note(found.id)
        caller = Caller(found.owner, found.id, found.scopes, key_limits.of(self._settings, found.limits))
        return caller, math.inf if found.expires_in is None else found.expires_in

    def is_open(self) -> bool:
        """Tell whether requests without a key are taken: from this machine, while there is none."""
        return self._open.get(None, self._look_whether_open)

    def _look_whether_open(self) -> tuple[bool, float]:
        is_open = self._loopback and not any_exist(self._database)
        # No grace for what is closed: who was refused a moment ago may be let in now.
        return is_open, math.inf if is_open else self._keep


def any_exist(database: Database) -> bool:
    """Tell whether there is a key that is not revoked."""
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
