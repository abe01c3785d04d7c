"""Alerts and Grafana's dashboard ask for what there is, and the alerts fire when they should: promtool says so."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.house.deploying import ROOT, done, metrics, misnamed, parse, promtool, run

pytestmark = pytest.mark.timeout(600)  # the first one downloads what checks

ALERTS = ROOT / "deploy/prometheus/alerts.yml"
CASES = ROOT / "deploy/prometheus/alerts_test.yml"
DASHBOARD = ROOT / "deploy/grafana/stoker.json"
VARIABLES = {"$__rate_interval": "5m", "$namespace": ".*", "$model": ".*"}


@pytest.fixture(scope="module")
def rules() -> list[dict[str, Any]]:
    """Return the alerts."""
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    """Return Grafana's dashboard."""
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def queries(dashboard: dict[str, Any]) -> Iterator[str]:
    """Yield the queries of all panels, their variables filled in."""
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            query = target["expr"]
            for name, value in VARIABLES.items():
                query = query.replace(name, value)
            yield query


def test_prometheus_takes_the_alerts() -> None:
    """Their form and their queries."""
    assert "SUCCESS" in done(promtool(), "check", "rules", ALERTS)


def test_each_alert_fires_when_it_should() -> None:
    """The unit tests beside them: when it fires, with which words, and when it does not."""
    assert "SUCCESS" in done(promtool(), "test", "rules", CASES)


def test_each_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not(rules: list[dict[str, Any]]) -> None:
    """None is left out, so that a new one needs both."""
    checks = [check for case in yaml.safe_load(CASES.read_text())["tests"] for check in case["alert_rule_test"]]
    fire = {check["alertname"] for check in checks if check["exp_alerts"]}
    rest = {check["alertname"] for check in checks if not check["exp_alerts"]}
    names = [rule["alert"] for rule in rules]
    assert sorted(names) == sorted(fire) == sorted(rest)


def test_a_broken_alert_would_be_found(tmp_path: Path) -> None:
    """The cases notice an alert whose threshold is another one; a metric or label that is misspelt is told."""
    assert misnamed('rate(stoker_jobs_settled_total{stat="x"}[5m]) + stoker_nothing') == [
        "stoker_nothing",
        "stoker_jobs_settled_total{stat}",
    ]
    changed = ALERTS.read_text().replace('{lane="standard"}) > 300', '{lane="standard"}) > 3000')
    assert changed != ALERTS.read_text()
    (tmp_path / "alerts.yml").write_text(changed)
    (tmp_path / "cases.yml").write_text(CASES.read_text())
    ran = run(promtool(), "test", "rules", tmp_path / "cases.yml")
    assert ran.returncode != 0
    assert "StokerQueueOld" in ran.stdout + ran.stderr


def test_the_alerts_ask_for_metrics_that_there_are(rules: list[dict[str, Any]]) -> None:
    """Also their labels; each says what it is about and what to do."""
    assert [wrong for rule in rules for wrong in misnamed(rule["expr"])] == []
    for rule in rules:
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"].keys() == {"summary", "description"}
        assert len(rule["annotations"]["description"]) > 40


def test_commands_that_the_alerts_name_exist(rules: list[dict[str, Any]]) -> None:
    """What stands in backquotes and begins with stoker can be typed."""
    import typer.main

    from stoker.cli import app

    commands = typer.main.get_command(app)
    for rule in rules:
        for text in re.findall(r"`stoker ([a-z ]+)`", rule["annotations"]["description"]):
            here: Any = commands
            for word in text.split():
                if not hasattr(here, "commands"):
                    break  # an argument
                assert word in here.commands, text
                here = here.commands[word]


def test_the_dashboard_asks_for_metrics_that_there_are(dashboard: dict[str, Any], tmp_path: Path) -> None:
    """Every query names metrics and labels that exist, and Prometheus parses it."""
    found = list(queries(dashboard))
    assert len(found) > 40
    assert [wrong for query in found for wrong in misnamed(query)] == []
    assert [query for query in found if "$" in query] == []
    parse(found, tmp_path)


def test_the_dashboard_leaves_no_metric_out(dashboard: dict[str, Any]) -> None:
    """Each one that we have is on a panel; of a histogram one of its three, of a batch's size in a commit none."""
    text = " ".join(queries(dashboard))
    base = {re.sub(r"_(bucket|sum|count)$", "", name) for name in metrics()}
    assert {name for name in base if name not in text} == {"stoker_flush_outcomes"}


def test_what_all_web_servers_tell_is_never_added_up(dashboard: dict[str, Any], rules: list[dict[str, Any]]) -> None:
    """A metric of the database comes once from each web server: the queries take its maximum first."""
    page = (ROOT / "docs/metrics.md").read_text()
    same = re.findall(r"^\| `(stoker_\w+)` \|[^|]*\|[^|]*\| \*db\*", page, flags=re.MULTILINE)
    assert len(same) >= 9
    for query in [*queries(dashboard), *(rule["expr"] for rule in rules)]:
        for name in same:
            for at in re.finditer(rf"\b{name}\b", query):
                before = query[: at.start()]
                assert re.search(r"(max( by \([^)]*\))? \(?|max\(|absent\(|(changes|deriv)\()$", before), query


def test_the_dashboards_panels_have_their_places(dashboard: dict[str, Any]) -> None:
    """No two have one id or lie on each other, and all ask the data source that is chosen on the page."""
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
    assert [variable["name"] for variable in dashboard["templating"]["list"]] == ["datasource", "namespace", "model"]
