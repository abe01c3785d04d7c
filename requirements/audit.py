"""Look up whether a pinned package has a known vulnerability: `make audit`.

Status 1 when one has. Where nobody can be asked (no internet, a mirror without advisories) nothing is known: that is
said loudly, and is no failure.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LOCKS = ("cpu.txt", "cuda.txt", "deploy.txt")
PATIENCE = 300
"""Seconds that a lock may take: one request a package."""
IGNORED: Mapping[str, str] = {}
"""Advisories that do not apply to us, each with the reason."""


def ask(lock: Path) -> Mapping[str, Any] | None:
    """Return pip-audit's report on a lock, None when it got no answer."""
    command = [sys.executable, "-m", "pip_audit", "--require-hashes", "--disable-pip", "--progress-spinner=off"]
    try:
        ran = subprocess.run(
            [*command, "--format=json", "--requirement", str(lock)],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        report = json.loads(ran.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        return None
    return report if isinstance(report, dict) else None


def judge(report: Mapping[str, Any] | None) -> tuple[bool, list[str]]:
    """Return whether a report is no reason to fail, and the lines that tell what it says."""
    packages = report["dependencies"] if report else []
    asked = [package for package in packages if "vulns" in package]
    if not asked:
        return True, ["NOT AUDITED: no advisories could be looked up from here; run `make audit` where they can be"]
    found, lines = 0, []
    for package in asked:
        for advisory in package["vulns"]:
            names = [advisory["id"], *advisory.get("aliases", ())]
            reason = next((IGNORED[name] for name in names if name in IGNORED), None)
            found += reason is None
            fixed = ", ".join(advisory.get("fix_versions", ())) or "no version yet"
            told = f"ignored: {reason}" if reason else f"VULNERABLE, mended in {fixed}"
            lines.append(f"{package['name']} {package['version']}: {' '.join(names)}: {told}")
    unknown = len(packages) - len(asked)
    lines.append(f"{len(asked)} packages looked up, {unknown} not to be found; vulnerable: {found}")
    return not found, lines


def main() -> int:
    """Audit each lock."""
    good = True
    for lock in LOCKS:
        fine, lines = judge(ask(HERE / lock))
        good = good and fine
        for line in lines:
            sys.stdout.write(f"audit {lock}: {line}\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
