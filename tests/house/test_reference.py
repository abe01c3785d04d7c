"""The reference is what the code says: settings, metrics and states are generated; no page names one that is not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from stoker import reference
from stoker.settings import Settings
from webapi.webhook_schemas import DeliveryState

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
METRIC = r"\bstoker_[a-z_]+"
CLIENTS = {"STOKER_URL", "STOKER_API_KEY", "STOKER_CACHE"}
"""Read by the command line and the examples, as docs/settings.md says; STOKER_FAILPOINTS is for tests alone."""


def texts() -> Iterator[str]:
    """Yield the text of everything that users read."""
    for path in (ROOT / "README.md", ROOT / "CHANGELOG.md", *DOCS.rglob("*.md"), *(ROOT / "examples").rglob("*")):
        if path.suffix in {".md", ".py", ".sh", ".mjs"}:
            yield path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", reference.PAGES)
def test_what_is_generated_is_up_to_date(name: str) -> None:
    """`make docs` would change nothing: names, defaults, types, labels, meanings, states and steps are the code's."""
    page = (DOCS / name).read_text(encoding="utf-8")
    assert reference.PAGES[name](page) == page


def test_every_setting_has_its_row() -> None:
    """None is missing, and nothing else is there."""
    rows = re.findall(r"^\| `STOKER_(\w+)` \|", (DOCS / "settings.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert rows == [name.upper() for name in Settings.model_fields]


def test_every_metric_has_its_row() -> None:
    """Each once, in one of the sections."""
    page = (DOCS / "metrics.md").read_text(encoding="utf-8")
    assert sorted(re.findall(rf"^\| `({METRIC})` \|", page, flags=re.MULTILINE)) == sorted(reference.metric_rows())


def test_every_machine_is_drawn() -> None:
    """Jobs, batches and bulks: a page without a place for the drawing would not miss it."""
    assert (DOCS / "states.md").read_text(encoding="utf-8").count("```mermaid\nstateDiagram-v2\n") == 3


def test_the_states_of_a_delivery_are_those_that_the_api_knows() -> None:
    """Its table is written by hand: a delivery's steps are SQL, fenced by its try."""
    _, _, section = (DOCS / "states.md").read_text(encoding="utf-8").partition("## Delivery\n")
    steps = re.findall(r"^\| ([^|]+) \| ([^|]+) \|", section.partition("\n## ")[0], flags=re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", str(steps))) == set(get_args(DeliveryState))


def test_a_metric_that_is_none_is_told() -> None:
    """A row of something that was renamed or removed does not stay on the page."""
    with pytest.raises(KeyError, match="stoker_of_old"):
        reference.metrics("| `stoker_of_old` | gauge | | Something. |\n")


def test_no_page_names_a_metric_or_a_setting_that_there_is_not() -> None:
    """In prose, queries, commands and examples."""
    read = "\n".join(texts())
    metrics = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(METRIC, read)}
    assert len(metrics) > 40
    assert metrics - set(reference.metric_rows()) == set()
    settings = {f"STOKER_{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(r"\bSTOKER_[A-Z_]+\b", read)) - settings - CLIENTS == {"STOKER_FAILPOINTS"}
