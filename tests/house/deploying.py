"""What checks deploy/: programs that requirements/ fetches. A missing one fails the run: nothing is skipped."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from stoker import reference
from tests.debian import programs

ROOT = Path(__file__).parents[2]
FOREIGN = {"node_filesystem_avail_bytes", "node_filesystem_size_bytes", "node_filesystem_readonly"}
"""Metrics that are not ours: node_exporter's."""


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a program in the repository."""
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def done(*command: str | Path) -> str:
    """Run a program that must succeed; return what it printed."""
    ran = run(*command)
    assert ran.returncode == 0, f"{command}: {ran.stdout}{ran.stderr}"
    return ran.stdout


def tools() -> Path:
    """Return the folder of Helm, Docker Compose, hadolint and Kubernetes' schemas."""
    ran = _fetched()
    assert ran.returncode == 0, ran.stderr.splitlines()[-1]
    return Path(ran.stdout.splitlines()[-1])


@cache
def _fetched() -> subprocess.CompletedProcess[str]:
    """Fetch them once: where that fails, no test after the first waits for it again."""
    return run(sys.executable, ROOT / "requirements/deploy_tools.py")


def promtool() -> Path:
    """Return where promtool is."""
    return programs("prometheus") / "promtool"


@cache
def metrics() -> dict[str, set[str]]:
    """Return the labels of each metric that we have, as Prometheus names it: a histogram's three, too."""
    found: dict[str, set[str]] = {}
    for name, kind, labels, _ in reference.known():
        if kind == "histogram":
            found[f"{name}_bucket"] = {*labels, "le"}
            found[f"{name}_sum"] = found[f"{name}_count"] = set(labels)
        else:
            found[name] = set(labels)
    return found


def misnamed(query: str) -> list[str]:
    """Return what a query asks for that does not exist: metrics, and labels of ours in its braces."""
    wrong = []
    for name in re.findall(
        r"\b[a-z]+_[a-z_]+(?=[{\[ )]|$)", re.sub(r"\b(by|without|on|ignoring) *\([^)]*\)", "", query)
    ):
        known = name in metrics() or name in FOREIGN or name in {"histogram_quantile", "label_replace", "clamp_min"}
        wrong += [] if known else [name]
    scraped = {"namespace", "pod", "job", "instance"}
    for name, braces in re.findall(r"\b(stoker_\w+)\{([^}]*)\}", query):
        asked = set(re.findall(r"(\w+) *(?:=~|!~|!=|=)", re.sub(r'"[^"]*"', '""', braces)))
        wrong += [f"{name}{{{label}}}" for label in asked - metrics().get(name, set()) - scraped]
    return wrong


def parse(queries: list[str], folder: Path) -> None:
    """Let Prometheus parse queries."""
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries)]
    path = folder / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    told = done(promtool(), "check", "rules", path)
    assert f"{len(queries)} rules found" in told


def documents(text: str) -> list[dict[str, Any]]:
    """Return the documents of a YAML text."""
    return [document for document in yaml.safe_load_all(text) if document]
