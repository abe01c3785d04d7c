"""What docs/deploying.md shows is what deploy/ has: values are rendered, configuration is checked, paths are there."""

from __future__ import annotations

import re
import shlex
import shutil
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.house.deploying import ROOT, documents, done, promtool, tools
from tests.house.test_deploy_helm import invalid

pytestmark = pytest.mark.timeout(600)  # the first one downloads what checks

PAGE = (ROOT / "docs/deploying.md").read_text()
CHART = ROOT / "deploy/helm/stoker"


def blocks(language: str) -> list[str]:
    """Return the page's blocks of code of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


def commands(program: str) -> list[list[str]]:
    """Return the page's calls of a program, each as its words; comments and continued lines are taken care of."""
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [line for line in words if line[:1] == [program] or line[:2] == ["sudo", program]]


@pytest.fixture
def values(tmp_path: Path) -> Path:
    """Return the page's values for the chart, as the file that its commands name."""
    (text,) = [block for block in blocks("yaml") if block.startswith("# my-values.yaml")]
    (tmp_path / "my-values.yaml").write_text(text)
    return tmp_path / "my-values.yaml"


def test_every_block_is_a_script_that_a_shell_reads(tmp_path: Path) -> None:
    """And every file of the repository that one names is there."""
    for number, block in enumerate(blocks("sh")):
        path = tmp_path / f"{number}.sh"
        path.write_text(block)
        done("bash", "-n", path)
    deployments = {"deploy/stoker-worker", "deploy/stoker-web"}
    named = set(re.findall(r"\bdeploy/[\w./*@-]+\b", PAGE)) - deployments
    assert len(named) > 10
    assert [name for name in named if not list(ROOT.glob(name))] == []


def test_the_charts_commands_work(values: Path) -> None:
    """Each `helm upgrade --install`, rendered instead of installed; what comes out is what Kubernetes takes."""
    calls = commands("helm")
    assert len(calls) == 2
    for _, upgrade, install, *rest in calls:
        assert (upgrade, install) == ("upgrade", "--install")
        told = [word.replace("my-values.yaml", str(values)) for word in rest]
        things = documents(done(tools() / "helm", "template", *told))
        assert [why for thing in things if (why := invalid(thing, "1.37"))] == []
        named = {thing["metadata"]["name"] for thing in things}
        assert {"stoker-engine-qwen", "stoker-engine-llama"} <= named
        # The names that the page's kubectl commands use.
        assert {"stoker-worker", "stoker-web"} <= named
    assert {"deploy/stoker-worker", "svc/stoker-web"} <= {word for line in commands("kubectl") for word in line}


def test_the_secret_has_what_every_process_needs() -> None:
    """The keys that the page gives it, in the name that the chart expects."""
    (call,) = [line for line in commands("kubectl") if "secret" in line]
    assert call[call.index("generic") + 1] == yaml.safe_load((CHART / "values.yaml").read_text())["secretName"]
    keys = {word.removeprefix("--from-literal=").partition("=")[0] for word in call if word.startswith("--from-lit")}
    assert keys == {"STOKER_DATABASE_URL", "STOKER_REDIS_URL", "STOKER_SECRET_KEY", "STOKER_WEBHOOK_SECRET"}


def test_the_values_for_keda_work(tmp_path: Path) -> None:
    """They make an object that scales the engine by its queue."""
    (text,) = [block for block in blocks("yaml") if block.startswith("serviceMonitor:")]
    (tmp_path / "keda.yaml").write_text(text)
    told = ("template", "stoker", CHART, "--values", tmp_path / "keda.yaml", "--set", "files.claim=f")
    things = documents(done(tools() / "helm", *told))
    (scaled,) = [thing for thing in things if thing["kind"] == "ScaledObject"]
    assert invalid(scaled, "1.37") is None
    assert scaled["spec"]["maxReplicaCount"] == 8


def test_prometheus_takes_the_pages_configuration(tmp_path: Path) -> None:
    """With the alerts beside it; and the ports are those of the units."""
    (text,) = [block for block in blocks("yaml") if block.startswith("scrape_configs:")]
    (tmp_path / "prometheus.yml").write_text(text)
    shutil.copy(ROOT / "deploy/prometheus/alerts.yml", tmp_path)
    assert "SUCCESS" in done(promtool(), "check", "config", tmp_path / "prometheus.yml")
    units = "".join(path.read_text() for path in (ROOT / "deploy/systemd").iterdir())
    told = set(re.findall(r"gpu1:(\d+)", text))
    assert told == {"8000", *re.findall(r"STOKER_METRICS_PORT=(\d+)", units)}


def test_the_extras_that_are_installed_exist() -> None:
    """Of each `.[...]` on the page."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {extra for text in re.findall(r"\.\[([a-z,-]+)\]", PAGE) for extra in text.split(",")}
    assert {"local", "postgres", "vllm"} <= named <= extras.keys()
