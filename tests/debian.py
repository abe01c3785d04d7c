"""Servers that Python packages do not bring along: from PATH, or out of Debian's packages."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

from tests import servers

_SCRIPT = Path(__file__).parents[1] / "requirements" / "debian.sh"


def programs(name: str) -> Path:
    """Return the folder of the programs of a Debian package. Raises ServerError, which says what to install."""
    ran = _fetched(name)
    if ran.returncode:
        raise servers.ServerError(ran.stderr.strip())
    return Path(ran.stdout.splitlines()[-1])


@cache
def _fetched(name: str) -> subprocess.CompletedProcess[str]:
    """Run the script once: without a network it takes most of a minute to say so."""
    return subprocess.run(["sh", str(_SCRIPT), name], capture_output=True, text=True, check=False)
