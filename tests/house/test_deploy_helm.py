"""The Helm chart: rendered by Helm itself, each object held against Kubernetes' own schemas. No cluster is needed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import referencing
import yaml

from stoker.services import commands
from stoker.settings import Settings, load
from tests.house.deploying import ROOT, documents, done, misnamed, parse, run, tools

pytestmark = pytest.mark.timeout(600)  # the first one downloads what checks

CHART = ROOT / "deploy/helm/stoker"
VALUES = sorted((CHART / "ci").glob("*-values.yaml"))
MINIMAL = ("--set", "files.storageUrl=s3://files")
KUBERNETES = ("1.29", "1.37")
Object = dict[str, Any]

# What the definitions of KEDA and of Prometheus' operator allow, of what the chart uses: unknown fields are dropped by
# a cluster without a word, so none passes here.
TEXT: Object = {"type": "string", "minLength": 1}
TRIGGER: Object = {
    "type": "object",
    "required": ["type", "metadata"],
    "additionalProperties": False,
    "properties": {
        "type": {"const": "prometheus"},
        "name": TEXT,
        "metricType": {"enum": ["Value", "AverageValue"]},
        "metadata": {
            "type": "object",
            "required": ["serverAddress", "query", "threshold", "activationThreshold"],
            "additionalProperties": TEXT,
        },
    },
}
CUSTOM: dict[str, Object] = {
    "ScaledObject": {
        "type": "object",
        "required": ["scaleTargetRef", "triggers", "minReplicaCount", "maxReplicaCount"],
        "additionalProperties": False,
        "properties": {
            "scaleTargetRef": {
                "type": "object",
                "required": ["name"],
                "additionalProperties": False,
                "properties": {"apiVersion": TEXT, "kind": TEXT, "name": TEXT},
            },
            "minReplicaCount": {"type": "integer"},
            "maxReplicaCount": {"type": "integer"},
            "pollingInterval": {"type": "integer"},
            "cooldownPeriod": {"type": "integer"},
            "advanced": {
                "type": "object",
                "additionalProperties": False,
                "properties": {"horizontalPodAutoscalerConfig": {"type": "object", "required": ["behavior"]}},
            },
            "triggers": {"type": "array", "minItems": 1, "items": TRIGGER},
        },
    },
    "ServiceMonitor": {
        "type": "object",
        "required": ["selector", "endpoints"],
        "additionalProperties": False,
        "properties": {
            "selector": {"type": "object", "required": ["matchLabels", "matchExpressions"]},
            "endpoints": {
                "type": "array",
                "minItems": 2,
                "items": {
                    "type": "object",
                    "required": ["port"],
                    "additionalProperties": False,
                    "properties": {"port": TEXT, "path": TEXT, "interval": TEXT},
                },
            },
        },
    },
    "PrometheusRule": {
        "type": "object",
        "required": ["groups"],
        "additionalProperties": False,
        "properties": {"groups": {"type": "array", "minItems": 1}},
    },
}


def template(*arguments: str | Path, release: str = "stoker") -> list[Object]:
    """Return the objects that Helm makes of the chart."""
    return documents(done(tools() / "helm", "template", release, CHART, *arguments))


@cache
def rendered(values: Path) -> list[Object]:
    """Return the objects of one of the examples."""
    return template("--values", values)


def invalid(thing: Object, version: str) -> str | None:
    """Return why Kubernetes of this version would refuse an object."""
    if thing["kind"] in CUSTOM:
        validator = jsonschema.Draft202012Validator(CUSTOM[thing["kind"]])
        found = next(validator.iter_errors(thing["spec"]), None)
    else:
        folder = tools() / f"kubernetes/v{version}.0"
        group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", thing["apiVersion"])
        schema = json.loads((folder / f"{thing['kind'].lower()}-{group}.json").read_text())
        found = next(jsonschema.Draft202012Validator(schema, registry=definitions(folder)).iter_errors(thing), None)
    return None if found is None else f"{thing['kind']} {thing['metadata']['name']}: {found.json_path}: {found.message}"


@cache
def definitions(folder: Path) -> referencing.Registry[Any]:
    """Return what the schemas of a version refer to."""
    shared = referencing.Resource.from_contents(json.loads((folder / "_definitions.json").read_text()))
    return referencing.Registry().with_resource("/api/_definitions.json", shared).crawl()


def pods(things: list[Object]) -> Iterator[tuple[Object, Object, Object]]:
    """Yield (object, pod's template, its container) of all that run something."""
    for thing in things:
        if thing["kind"] in {"Deployment", "StatefulSet", "Job"}:
            pod = thing["spec"]["template"]
            (container,) = pod["spec"]["containers"]
            yield thing, pod, container


def part(pod: Object) -> str:
    """Return which part of the service a pod is."""
    return str(pod["metadata"]["labels"]["app.kubernetes.io/component"])


@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_helm_finds_nothing_to_complain_about(values: Path) -> None:
    """`helm lint --strict`, the schema of the values included."""
    done(tools() / "helm", "lint", "--strict", CHART, "--values", values)


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_kubernetes_takes_every_object(values: Path, version: str) -> None:
    """By the strict schemas of the oldest and the newest version: no unknown field, no wrong type, no double name."""
    things = rendered(values)
    assert [why for thing in things if (why := invalid(thing, version))] == []
    names = [(thing["kind"], thing["metadata"]["name"]) for thing in things]
    assert len(names) == len(set(names))
    assert {"Deployment", "StatefulSet", "Service", "Job", "PodDisruptionBudget", "NetworkPolicy"} <= set(dict(names))


def test_a_wrong_object_would_be_found() -> None:
    """The check itself: a field that there is not, and a wrong type, in ours and in others' objects."""
    things = {thing["kind"]: json.loads(json.dumps(thing)) for thing in rendered(CHART / "ci/models-values.yaml")}
    things["Deployment"]["spec"]["replica"] = 2
    things["Service"]["spec"]["ports"][0]["port"] = "http"
    things["ScaledObject"]["spec"]["pollingIntervall"] = 1
    wrong = [invalid(things[kind], "1.37") for kind in ("Deployment", "Service", "ScaledObject")]
    assert all(wrong), wrong


@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_the_pods_run_what_the_procfile_runs(values: Path) -> None:
    """Same commands; an engine's with its pod's name."""
    ran = {}
    for thing, pod, container in pods(rendered(values)):
        name = thing["metadata"]["name"]
        told = [word.replace("$(STOKER_ENGINE_NAME)", "engine") for word in container["command"]]
        expected = ("stoker", "db", "upgrade") if part(pod) == "migrations" else commands(load())[part(pod)]
        assert tuple(told) == expected, name
        ran[part(pod)] = name
    assert ran.keys() == {*commands(load()), "migrations"}


@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_what_the_pods_are_told_are_settings(values: Path) -> None:
    """Each STOKER_ variable is one that there is, with a value that is allowed; none is a secret."""
    for _, _, container in pods(rendered(values)):
        assert container["envFrom"] == [{"secretRef": {"name": "stoker"}}]
        given = {entry["name"]: entry.get("value") for entry in container["env"] if entry["name"].startswith("STOKER_")}
        ours = {name.removeprefix("STOKER_").lower(): value for name, value in given.items()}
        assert ours.keys() <= Settings.model_fields.keys()
        load(**{name: value for name, value in ours.items() if value is not None})
    assert not [thing for thing in rendered(values) if thing["kind"] in {"Secret", "ConfigMap"}]


def test_large_numbers_arrive_as_they_were_written() -> None:
    """Helm reads numbers as floats: 2000000 does not become 2e+06, which is no whole number."""
    for _, _, container in pods(rendered(CHART / "ci/gpu-values.yaml")):
        given = {entry["name"]: entry.get("value") for entry in container["env"]}
        assert given["STOKER_MAX_QUEUED"] == "2000000"


@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_no_pod_has_more_rights_than_it_needs(values: Path) -> None:
    """Not root, no capabilities, no token, a read-only root but for vLLM; no variables of Services among settings."""
    for _, pod, container in pods(rendered(values)):
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        mine = container["securityContext"]
        assert mine["allowPrivilegeEscalation"] is False
        assert mine["capabilities"] == {"drop": ["ALL"]}
        assert mine.get("readOnlyRootFilesystem", False) is (part(pod) != "engine")
        places = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert {"/tmp", "/data"} <= places  # noqa: S108 - what a read-only root needs
        assert {mount["name"] for mount in container["volumeMounts"]} <= {
            *(volume["name"] for volume in spec["volumes"]),
            "models",
        }


@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_probes_ask_the_part_itself(values: Path) -> None:
    """Ready by /readyz or `stoker health PART`; and nobody is killed because the database or Redis is away."""
    for _, pod, container in pods(rendered(values)):
        match part(pod):
            case "web":
                assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
                assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
            case "beat":
                # It asks the database, with ten minutes of patience.
                probe = container["livenessProbe"]
                assert probe["exec"]["command"] == ["stoker", "health", "beat"]
                assert probe["failureThreshold"] * probe["periodSeconds"] >= 600
            case "migrations":
                assert "livenessProbe" not in container
            case other:
                assert container["readinessProbe"]["exec"]["command"] == ["stoker", "health", other]
                assert container["livenessProbe"]["tcpSocket"] == {"port": "metrics"}
                assert {entry["name"]: entry.get("value") for entry in container["env"]}["STOKER_METRICS_PORT"] == str(
                    container["ports"][0]["containerPort"]
                )


def test_a_stop_waits_for_the_drain() -> None:
    """Engines get longer than STOKER_DRAIN_TIMEOUT, whatever that is set to."""
    for _, pod, container in pods(template(*MINIMAL, "--values", VALUES[0], "--set", "drainTimeout=120")):
        if part(pod) == "engine":
            given = {entry["name"]: entry.get("value") for entry in container["env"]}
            assert given["STOKER_DRAIN_TIMEOUT"] == "120"
            assert pod["spec"]["terminationGracePeriodSeconds"] > 120


@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_selectors_find_their_own_pods_alone(values: Path) -> None:
    """A workload's selector is its pods'; each budget, policy and Service finds somebody."""
    things = rendered(values)
    labels = {thing["metadata"]["name"]: pod["metadata"]["labels"] for thing, pod, _ in pods(things)}

    def found(wanted: dict[str, str]) -> set[str]:
        return {name for name, mine in labels.items() if wanted.items() <= mine.items()}

    for thing in things:
        name, spec = thing["metadata"]["name"], thing.get("spec", {})
        if thing["kind"] in {"Deployment", "StatefulSet", "PodDisruptionBudget"}:
            assert found(spec["selector"]["matchLabels"]) == {name}
        elif thing["kind"] == "Service":
            assert found(spec["selector"])
        elif thing["kind"] == "NetworkPolicy":
            assert found(spec["podSelector"]["matchLabels"])


def test_the_monitor_scrapes_web_servers_and_workers() -> None:
    """Its selector finds the two Services whose ports it names."""
    things = rendered(CHART / "ci/gpu-values.yaml")
    (monitor,) = [thing for thing in things if thing["kind"] == "ServiceMonitor"]
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    services = [
        thing for thing in things if thing["kind"] == "Service" and "stoker/scraped" in thing["metadata"]["labels"]
    ]
    ports = {port["name"] for service in services for port in service["spec"]["ports"]}
    assert ports == {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} == {"http", "metrics"}


def test_engines_get_their_gpus_and_a_name_that_lasts() -> None:
    """As many GPUs as told; the pod's name is the engine's; models on a claim of the pod, a shared one, or none."""
    things = {
        thing["metadata"]["name"]: (thing, box) for thing, pod, box in pods(rendered(CHART / "ci/models-values.yaml"))
    }
    large, box = things["stoker-engine-large"]
    assert box["resources"]["limits"] == {"nvidia.com/gpu": 4}
    named = next(entry for entry in box["env"] if entry["name"] == "STOKER_ENGINE_NAME")
    assert named["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}
    assert {"name": "models", "persistentVolumeClaim": {"claimName": "models"}} in large["spec"]["template"]["spec"][
        "volumes"
    ]
    embed, _ = things["stoker-engine-embed"]
    assert embed["spec"]["volumeClaimTemplates"][0]["spec"]["resources"] == {"requests": {"storage": "20Gi"}}
    others, box = things["stoker-engine-others"]
    assert "resources" not in box
    assert box["image"] == "stoker:0.1.0"
    assert others["spec"]["replicas"] == 1


@pytest.mark.parametrize(
    ("values", "more", "usual"),
    [
        ("cpu", (), "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("models", (), ""),
        ("models", ("--set", "defaultModel=bge-m3"), "bge-m3"),
    ],
)
def test_all_processes_agree_on_the_usual_model(values: str, more: tuple[str, ...], usual: str) -> None:
    """The only engine's, or the one that is named; with several and none named requests must name theirs."""
    for _, pod, container in pods(template("--values", CHART / f"ci/{values}-values.yaml", *more)):
        if part(pod) != "engine":
            given = {entry["name"]: entry["value"] for entry in container["env"]}
            assert (
                load(engine=given["STOKER_ENGINE"], model_name=given.get("STOKER_MODEL_NAME", "")).served_name == usual
            )


def test_keda_scales_by_the_age_of_the_queue(tmp_path: Path) -> None:
    """Each engine by its own model's queue, in queries that Prometheus parses, of metrics that there are."""
    things = rendered(CHART / "ci/models-values.yaml")
    scaled = {thing["metadata"]["name"]: thing["spec"] for thing in things if thing["kind"] == "ScaledObject"}
    assert scaled.keys() == {"stoker-engine-large", "stoker-engine-embed"}
    queries = [trigger["metadata"]["query"] for spec in scaled.values() for trigger in spec["triggers"]]
    assert [wrong for query in queries for wrong in misnamed(query)] == []
    parse(queries, tmp_path)
    age, busy = scaled["stoker-engine-embed"]["triggers"]
    assert 'max(stoker_queue_age_seconds{namespace="default",model="bge-m3"})' in age["metadata"]["query"]
    assert age["metadata"]["threshold"] == "120"
    assert 'model="bge-m3"' in busy["metadata"]["query"]
    for thing in things:
        if thing["kind"] == "StatefulSet":
            # An upgrade does not take back what KEDA decided.
            assert ("replicas" in thing["spec"]) is (thing["metadata"]["name"] not in scaled)


def test_migrations_run_before_anything_else() -> None:
    """A hook, before the install as before each upgrade, which needs nothing that the chart makes."""
    things = rendered(CHART / "ci/cpu-values.yaml")
    (job,) = [thing for thing in things if thing["kind"] == "Job"]
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    assert {"name": "data", "emptyDir": {}} in job["spec"]["template"]["spec"]["volumes"]


def test_migrations_alone_go_past_pgbouncer() -> None:
    """Their own Secret comes last, so that its URL wins; the others have the service's alone."""
    for _, pod, container in pods(template(*MINIMAL, "--set", "migrations.secretName=direct")):
        mine = [source["secretRef"]["name"] for source in container["envFrom"]]
        assert mine == (["stoker", "direct"] if part(pod) == "migrations" else ["stoker"])


def test_streams_pass_the_ingress() -> None:
    """Neither held back nor cut after a minute."""
    (ingress,) = [thing for thing in rendered(CHART / "ci/gpu-values.yaml") if thing["kind"] == "Ingress"]
    told = ingress["metadata"]["annotations"]
    assert told["nginx.ingress.kubernetes.io/proxy-buffering"] == "off"
    assert int(told["nginx.ingress.kubernetes.io/proxy-read-timeout"]) >= 600
    assert ingress["spec"]["tls"] == [{"hosts": ["stoker.example.com"], "secretName": "stoker-tls"}]


def test_long_names_stay_within_what_kubernetes_allows() -> None:
    """The longest release and engine: names of 63 letters with a StatefulSet's hash, an engine's of 64."""
    engine = "e" * 20
    things = template(*MINIMAL, "--set", f"engines[0].name={engine},engines[0].model=m", release="r" * 53)
    sets = [thing["metadata"]["name"] for thing in things if thing["kind"] == "StatefulSet"]
    assert [name for name in sets if len(name) > 63 - 11] == []
    assert [why for thing in things if (why := invalid(thing, "1.37"))] == []
    assert all(len(thing["metadata"]["name"]) <= 63 for thing in things)
    load(engine_name=f"{sets[0]}-99")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("web.replicas=2", "files.storageUrl or files.claim is needed"),
        ("files.claim=f,web.replicass=2", "replicass"),
        ("files.claim=f,engines[0].name=a", "engine a: model is needed"),
        ("files.claim=f,engines[0].name=a,engines[0].kind=upstream", "engine a: upstreams is needed"),
        ("files.claim=f,engines[0].name=A,engines[0].model=m", "engines/0/name"),
        ("files.claim=f,engines[0].name=a,engines[0].model=m,engines[0].tensorParallelSize=2", "more than gpus"),
        ("files.claim=f,engines[0].name=a,engines[0].model=m,engines[1].name=a,engines[1].model=n", "two engines are"),
        ("files.claim=f,settings.STOKER_SECRET_KEY=k", "STOKER_SECRET_KEY"),
        ("files.claim=f,web.ingress.enabled=true", "web.ingress.host is needed"),
        ("files.claim=f,prometheusRule.enabled=true", "prometheusRule.rules is needed"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(given: str, told: str) -> None:
    """With a line that says what is missing, before anything is installed."""
    ran = run(tools() / "helm", "template", "stoker", CHART, "--set", given)
    assert ran.returncode != 0
    assert told in ran.stderr


def test_the_alerts_go_along() -> None:
    """The rules of deploy/prometheus become a PrometheusRule, unchanged."""
    alerts = ROOT / "deploy/prometheus/alerts.yml"
    things = template(*MINIMAL, "--set", "prometheusRule.enabled=true", "--set-file", f"prometheusRule.rules={alerts}")
    (rule,) = [thing for thing in things if thing["kind"] == "PrometheusRule"]
    assert rule["spec"] == yaml.safe_load(alerts.read_text())


def test_the_notes_say_how_to_go_on() -> None:
    """They name the commands that make the first key and start the web servers, with Deployments that there are."""
    told = done(tools() / "helm", "install", "mine", CHART, "--dry-run=client", *MINIMAL)
    (asked,) = re.findall(r"exec deploy/(\S+) -- stoker keys create", told)
    (started,) = re.findall(r"rollout restart deploy/(\S+)", told)
    assert {asked, started} <= {thing["metadata"]["name"] for thing in template(*MINIMAL, release="mine")}
    assert "NO ENGINES" in told
