"""`python -m tests.chaos --seed 1 --minutes 5`: break a real service in every way there is and count what was lost."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

from tests.chaos.disk import disk
from tests.chaos.run import Run, armed
from tests.chaos.service import Service, service


def main() -> int:
    """Run one seed; 1 when a promise was broken."""
    wanted = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    wanted.add_argument("--seed", type=int, default=1)
    wanted.add_argument("--minutes", type=float, default=5.0)
    wanted.add_argument("--sqlite", action="store_true", help="on SQLite; PostgreSQL otherwise")
    engines = ["fake", "vllm", "upstream"]
    wanted.add_argument("--engine", choices=engines, default="fake", help="vllm: the real one, with the demo model")
    wanted.add_argument("--out", type=Path, help="a file for the figures, as JSON")
    wanted.add_argument("--keep", type=Path, help="a folder for the logs, when a promise was broken")
    options = wanted.parse_args()
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {text}", flush=True)

    environment = {"STOKER_FAILPOINTS": armed(options.seed)}
    engine = options.engine
    with disk() as small, service(sqlite=options.sqlite, environment=environment, disk=small, engine=engine) as found:
        say(f"ready; failpoints: {environment['STOKER_FAILPOINTS']}{'' if small else '; no disk can be filled here'}")
        run = Run(found, options.seed, say)
        findings = run.go(options.minutes * 60)
        summary = run.summary(findings)
        broken = findings.broken()
        if broken and options.keep is not None:
            _keep(found, options.keep)
    print(json.dumps(summary, indent=2))
    for name, what in broken.items():
        print(f"BROKEN {name}: {len(what)}")
        for one in what[:10]:
            print(f"  {one}")
    if options.out is not None:
        options.out.write_text(json.dumps(summary, indent=2) + "\n")
    return 1 if broken else 0


def _keep(found: Service, where: Path) -> None:
    for folder in (found.folder, found.witness):
        shutil.copytree(folder, where, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.so.1"))


if __name__ == "__main__":
    sys.exit(main())
