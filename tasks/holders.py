"""Names of those who hold bulks, made so that whoever runs on the same machine can tell whether one has died."""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
from functools import cache

from tasks.proc import PROC, boot, look


@cache
def _machine() -> str:
    """Return what tells this boot of this machine (and this container: its pids are its own) from any other."""
    namespace = (PROC / "self/ns/pid").readlink()
    return hashlib.sha256(f"{socket.gethostname()} {boot()} {namespace}".encode()).hexdigest()[:12]


def new_holder() -> str:
    """Return a new name for this process as a holder."""
    process = look(os.getpid())
    return f"{_machine()}.{os.getpid()}.{process.start if process else 0}.{secrets.token_hex(4)}"


def has_died(holder: str) -> bool:
    """Tell whether a holder's process is known to be gone; of another machine's nothing is known."""
    machine, _, rest = holder.partition(".")
    if machine != _machine():
        return False
    pid, start, _ = rest.split(".")
    process = look(int(pid))
    return process is None or process.start != int(start)
