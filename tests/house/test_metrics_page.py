"""docs/metrics.md has every metric as the code has it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

from models.census import Census, Open
from models.engines import Live
from models.loads import Running
from tasks import metrics as of_tasks
from tasks import webhook
from webapi import health
from webapi import metrics as of_web

PAGE = Path(__file__).parents[2] / "docs/metrics.md"
KINDS = {Counter: "counter", Histogram: "histogram", Gauge: "gauge"}


def counted() -> Iterator[tuple[str, str, list[str]]]:
    """Yield (name, type, labels) of what processes count."""
    for module in (of_tasks, of_web, webhook):
        for made in vars(module).values():
            if isinstance(made, MetricWrapperBase):
                suffix = "_total" if isinstance(made, Counter) else ""
                yield f"{made._name}{suffix}", KINDS[type(made)], list(made._labelnames)


def looked_up() -> Iterator[tuple[str, str, list[str]]]:
    """Yield (name, type, labels) of what is made when the page is asked for."""
    full = Census(
        [Open("queued", "bulk", "m", "owner", 1, 1.0)],
        [("m", "bulk", 1)],
        [Live("e", 1, 0)],
        0,
        [Running("e", "m", 2, 1)],
        1.0,
    )
    for family in health._gauges(full):
        yield family.name, "gauge", list(family.samples[0].labels)


def test_every_metric_is_on_the_page_as_it_is() -> None:
    """Name, type and labels of each; nothing that is no metric."""
    rows = re.findall(r"^\| `(stoker_\w+)` \| (\w+) \|([^|]*)\|", PAGE.read_text(), flags=re.MULTILINE)
    listed = [(name, kind, re.findall(r"\w+", labels)) for name, kind, labels in rows]
    assert sorted(listed) == sorted([*counted(), *looked_up()])


def test_the_pages_queries_name_metrics_that_there_are() -> None:
    """What stands in a PromQL example is on the page's tables."""
    queries = "\n".join(re.findall(r"```promql\n(.*?)```", PAGE.read_text(), flags=re.DOTALL))
    used = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"stoker_\w+", queries)}
    assert used
    assert used <= {name for name, _, _ in [*counted(), *looked_up()]}
