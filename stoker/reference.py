"""What the reference has from the code: every setting, every metric, which state follows which.

`python -m stoker.reference docs` writes it into docs/settings.md, metrics.md and states.md, whose words around it are
written by hand; a test holds that the pages are what is generated.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from prometheus_client.metrics import MetricWrapperBase

from models.census import Census, Open
from models.engines import Live
from models.loads import Running
from models.states import BATCH, BULK, JOB, Machine
from stoker.settings import Settings
from tasks import metrics as of_tasks
from webapi import health
from webapi import metrics as of_web

_SETTINGS = r"(?:^\| `STOKER_.*\n)+"
_METRIC = r"^\| `(stoker_\w+)` \|.*$"
_CENSUS = Census(
    [Open("queued", "bulk", "m", "owner", 1, 1.0)],
    [("m", "bulk", 1)],
    [Live("e", 1, 0)],
    0,
    [Running("e", "m", 2, 1)],
    1.0,
)
"""One of each thing that the database is asked for, so that each metric of them is there."""


def settings(page: str) -> str:
    """Return the page with a row for each setting, in the order of the code."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = "" if field.default in {"", None} else f"`{field.default}`"
        rows.append(f"| `STOKER_{name.upper()}` | {default} | {field.description} |\n")
    return re.sub(_SETTINGS, lambda _: "".join(rows), page, count=1, flags=re.MULTILINE)


def metrics(page: str) -> str:
    """Return the page with each metric's row as it is in the code. Raises KeyError for one that there is not.

    Which metric stands in which section, and where, is the page's own.
    """
    rows = metric_rows()
    return re.sub(_METRIC, lambda found: rows[found[1]], page, flags=re.MULTILINE)


def metric_rows() -> Mapping[str, str]:
    """Return the row of each metric, by its name."""
    return {name: f"| `{name}` | {kind} | {', '.join(labels)} | {means} |" for name, kind, labels, means in known()}


def known() -> Iterator[tuple[str, str, Sequence[str], str]]:
    """Yield (name, type, labels, meaning) of metrics: what processes count, then what is looked up on request."""
    for module in (of_tasks, of_web):
        for made in vars(module).values():
            if isinstance(made, MetricWrapperBase):
                (family,) = made.describe()
                suffix = "_total" if family.type == "counter" else ""
                labels = made._labelnames  # noqa: SLF001 - it tells them nowhere else
                yield f"{family.name}{suffix}", family.type, labels, family.documentation
    for family in health.gauges(_CENSUS):
        yield family.name, family.type, [*family.samples[0].labels], f"*db* {family.documentation}"


def states(page: str) -> str:
    """Return the page with the states of each machine and its drawing."""
    for machine in (JOB, BATCH, BULK):
        section = rf"(?ms)(^## {machine.name.title()}\n.*?)^Open: .*?\. Ended: .*?\.(.*?^```mermaid\n).*?(^```)"
        page = re.sub(section, rf"\g<1>{_ends(machine)}\g<2>{_drawn(machine)}\g<3>", page)
    return page


def _ends(machine: Machine) -> str:
    left = ", ".join(f"`{state}`" for state in machine.steps if state in machine.open)
    ended = ", ".join(f"`{state}`" for state in machine.steps if state in machine.final)
    return f"Open: {left}. Ended: {ended}."


def _drawn(machine: Machine) -> str:
    """Return the drawing, as Mermaid has it: GitHub and many editors show it."""
    steps = [("[*]", state) for state in machine.steps if state in machine.initial]
    steps += [(state, target) for state in machine.steps for target in machine.steps if target in machine.steps[state]]
    return "".join(["stateDiagram-v2\n", *(f"    {one} --> {other}\n" for one, other in steps)])


PAGES = {"settings.md": settings, "metrics.md": metrics, "states.md": states}


def main(folder: Path) -> None:
    """Write what is generated into the pages of a folder."""
    for name, filled in PAGES.items():
        page = folder / name
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
