"""Run benchmarks: `python -m benchmarks [NAME ...] [options]`; without a name all of them, one after another."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from itertools import takewhile

from benchmarks.service import BenchmarkError
from tests.servers import ServerError

NAMES = (
    "overhead",
    "path",
    "batch_size",
    "latency",
    "queue_depth",
    "recovery",
    "poison",
    "blame",
    "outage",
    "soak",
    "ingest",
    "fairness",
    "bulk_million",
    "policies",
    "first_token",
    "overtaking",
    "router",
    "failover",
    "waiters",
    "overload",
    "webhooks",
    "machines",
    "console",
)


def main(argv: Sequence[str]) -> int:
    """Run the benchmarks that are named, each with the options behind the names; return the exit status."""
    names = list(takewhile(lambda word: not word.startswith("-"), argv))
    options = argv[len(names) :]
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        print(f"there is no benchmark {unknown[0]!r}: choose of {', '.join(NAMES)}", file=sys.stderr)
        return 2
    if not names and set(options) & {"-h", "--help"}:
        print(__doc__)
        print("\n".join(f"  {name:12} {_about(name)}" for name in NAMES))
        print("\nThe options of each: python -m benchmarks NAME --help")
        return 0
    status = 0
    for name in names or NAMES:
        try:
            importlib.import_module(f"benchmarks.{name}").main(options)
        except (BenchmarkError, ServerError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            status = 1
    return status


def _about(name: str) -> str:
    text = importlib.import_module(f"benchmarks.{name}").__doc__ or ""
    return text.strip().partition("\n")[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
