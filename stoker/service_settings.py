"""The settings of the service of a data folder, as `stoker up` gave them to its processes.

A shell from which somebody looks after the service knows none of them: not the port that was chosen, nor the password
of the bundled Redis.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from stoker.settings import Settings, SettingsError, load

_FILE = Path("run/settings.json")
_LEFT_OUT = {"secret_key", "webhook_secret", "upstream_api_key"}
"""What those who look after the service have no use for."""


def write_down(settings: Settings) -> None:
    """Keep the settings of a service that starts in its data folder, readable by its owner alone: passwords in it."""
    file = settings.data / _FILE
    new = file.with_suffix(".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(settings.model_dump_json(exclude_none=True, exclude=_LEFT_OUT))
    new.replace(file)


def written_down(data: Path) -> Settings | None:
    """Return the settings of the service that runs, or ran last, in a data folder; None when there was none."""
    try:
        found = json.loads((data / _FILE).read_text())
        # With a prefix that no variable has: of this shell's environment nothing counts.
        return load(_env_prefix="\0", **found)
    except (OSError, ValueError, TypeError, SettingsError):  # none, somebody else's, or another version's
        return None
