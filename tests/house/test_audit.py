"""`make audit` fails for a known vulnerability, and says loudly when nothing could be looked up."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def audit() -> Any:
    """Return the script as a module."""
    spec = importlib.util.spec_from_file_location("audit", ROOT / "requirements/audit.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GOOD = {"name": "flask", "version": "3.1.3", "vulns": []}
BAD = {
    "name": "old",
    "version": "1.0",
    "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["1.1"], "description": "x"}],
}
UNKNOWN = {"name": "odd", "skip_reason": "Dependency not found on PyPI and could not be audited: odd (1)"}


def test_a_known_vulnerability_fails(audit: Any) -> None:
    """The line names package, advisory and the version that mends it."""
    fine, lines = audit.judge({"dependencies": [GOOD, BAD, UNKNOWN]})
    assert not fine
    assert lines == [
        "old 1.0: PYSEC-1 CVE-1: VULNERABLE, mended in 1.1",
        "2 packages looked up, 1 not to be found; vulnerable: 1",
    ]


def test_none_is_well(audit: Any) -> None:
    """And it is told how many were looked up."""
    assert audit.judge({"dependencies": [GOOD]}) == (True, ["1 packages looked up, 0 not to be found; vulnerable: 0"])


@pytest.mark.parametrize("report", [None, {"dependencies": []}, {"dependencies": [UNKNOWN, UNKNOWN]}])
def test_nothing_looked_up_is_no_clean_bill(audit: Any, report: Any) -> None:
    """No answer, or an index that knows of no package: not a failure, and not silence."""
    fine, lines = audit.judge(report)
    assert fine
    assert lines[0].startswith("NOT AUDITED: ")


def test_what_is_ignored_is_told_with_its_reason(audit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By any of its names."""
    monkeypatch.setattr(audit, "IGNORED", {"CVE-1": "we never call it"})
    fine, lines = audit.judge({"dependencies": [BAD]})
    assert fine
    assert "PYSEC-1 CVE-1: ignored: we never call it" in lines[0]


def test_ci_audits(audit: Any) -> None:
    """It is a step of CI, over every lock that there is."""
    assert "make audit" in (ROOT / ".ci/run").read_text()
    assert set(audit.LOCKS) == {
        path.name for path in (ROOT / "requirements").glob("*.txt") if not path.name.startswith("overrides")
    }
