"""The Helm chart's pods as processes of this machine: their environment, commands, probes and stops make a service.

Prometheus itself scrapes each of them: what dashboard, alerts and KEDA ask for is answered.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from stoker.client import Client
from tests import servers
from tests.debian import programs
from tests.house.test_deploy_helm import Object, pods, template
from tests.house.test_deploy_watching import ALERTS, DASHBOARD, queries
from tests.journeys.running import finished
from tests.receivers import receiver
from tests.tasks.inprocess import until
from tests.upstreams import Reply, Server, error, upstream

pytestmark = [pytest.mark.journey, pytest.mark.postgres, pytest.mark.redis, pytest.mark.timeout(600)]

PROGRAMS = Path(sys.executable).parent
VALUES = {
    "files.claim": "files",
    "settings.STOKER_WEBHOOK_ALLOW_CIDRS": "127.0.0.0/8",
    "engines[0].name": "tiny",
    "engines[0].kind": "upstream",
    "engines[0].modelName": "tiny",
    "engines[0].env[0].name": "STOKER_UPSTREAM_MAX_CONNECTIONS",
    "engines[0].env[0].value": "2",
}
SCALED = {"keda.enabled": "true", "engines[0].keda.min": "1", "engines[0].keda.max": "2"}
RARE = ("stoker_batches_ready", "stoker_retired_total", 'status=~"429|5.."', "node_filesystem")
"""What a short, good day does not bring: batches that wait for an engine, old jobs, refusals; and others' metrics."""


@dataclass(slots=True)
class Pod:
    """A pod that runs here, in a folder that is its own."""

    kind: str
    spec: Object
    box: Object
    folder: Path
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None

    def command(self, words: list[str]) -> list[str]:
        """Return a command as Kubernetes fills it in, its program that of this environment."""
        told = [re.sub(r"\$\((\w+)\)", lambda found: self.environment[found[1]], word) for word in words]
        return [str(PROGRAMS / told[0]), *told[1:]]

    def start(self) -> subprocess.Popen[bytes]:
        """Start its process."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command(self.box["command"]),
                env=self.environment,
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self.process

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command in it, as `kubectl exec` does."""
        told = self.command(list(words))
        return subprocess.run(told, env=self.environment, cwd=self.folder, capture_output=True, text=True, check=False)

    def passes(self, probe: Object | None) -> bool:
        """Tell whether a probe finds what it looks for; there is none: nothing to find."""
        if probe is None:
            return True
        if "exec" in probe:
            return self.run(*probe["exec"]["command"]).returncode == 0
        if "tcpSocket" in probe:
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", int(self.environment["STOKER_METRICS_PORT"])), timeout=5).close()
                return True
            return False
        with suppress(httpx.HTTPError):
            return httpx.get(self.url + probe["httpGet"]["path"], timeout=10).is_success
        return False

    @property
    def url(self) -> str:
        """Return the web server's."""
        return f"http://127.0.0.1:{self.environment['STOKER_PORT']}"


def made(thing: Object, spec: Object, box: Object, secret: dict[str, str], folder: Path) -> Pod:
    """Return a pod. Changed is only what each has for itself: its folder, and ports, which here share a machine."""
    folder = folder / thing["metadata"]["name"]
    folder.mkdir()
    given: dict[str, Any] = {entry["name"]: entry.get("value", f"{folder.name}-0") for entry in box["env"]}
    own = {"STOKER_DATA": str(folder), "HOME": str(folder), "PROMETHEUS_MULTIPROC_DIR": str(folder)}
    ports = {name: str(servers.free_port()) for name in ("STOKER_PORT", "STOKER_METRICS_PORT")}
    here = {name: value for name, value in (own | ports).items() if name in given}
    (folder / "files").symlink_to(folder.parent / "claim")
    return Pod(thing["kind"], spec, box, folder, {"PATH": os.environ["PATH"], **secret, **given, **here})


def chart(*more: dict[str, str]) -> list[Object]:
    """Return the chart's objects."""
    given = {
        name: value
        for values in ({"engines[0].upstreams": "http://u"}, VALUES, *more)
        for name, value in values.items()
    }
    numbers = [f"{name}={value}" for name, value in given.items() if name.startswith(("keda", "engines[0].keda"))]
    words = [f"{name}={value}" for name, value in given.items() if f"{name}={value}" not in numbers]
    return template("--set", ",".join(numbers), "--set-string", ",".join(words))


@dataclass(frozen=True, slots=True)
class Service:
    """A service of pods, the upstream behind its engine, and a key."""

    pods: dict[str, Pod]
    upstream: Server
    key: str


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: servers.Postgres, redis_server: servers.Redis
) -> Iterator[Service]:
    """Install the chart: tables by the hook, a key by a worker, then the web server; what is left is killed."""
    database, folder = f"chart_{secrets.token_hex(4)}", tmp_path_factory.mktemp("pods")
    redis_server.flush()
    (folder / "claim").mkdir()
    secret = {
        "STOKER_DATABASE_URL": postgres_server.create(database),
        "STOKER_REDIS_URL": redis_server.url,
        "STOKER_SECRET_KEY": urlsafe_b64encode(secrets.token_bytes(32)).decode(),
        "STOKER_WEBHOOK_SECRET": "whsec_" + b64encode(secrets.token_bytes(32)).decode(),
    }
    with upstream("tiny") as server:
        found = {
            pod["metadata"]["labels"]["app.kubernetes.io/component"]: made(thing, pod["spec"], box, secret, folder)
            for thing, pod, box in pods(chart({"engines[0].upstreams": server.url}))
        }
        try:
            yield Service(found, server, installed(found))
        finally:
            for pod in found.values():
                if pod.process is not None:
                    with suppress(ProcessLookupError):
                        os.killpg(pod.process.pid, signal.SIGKILL)
                    pod.process.wait()
            postgres_server.drop(database)


def installed(cluster: dict[str, Pod]) -> str:
    """Start the pods in the order that Kubernetes does; return the key without which the web server does not start."""
    assert cluster["migrations"].start().wait(120) == 0
    del cluster["migrations"]
    web = cluster["web"]
    assert web.start().wait(120) != 0
    assert b"stoker keys create" in (web.folder / "log").read_bytes()
    key = cluster["worker"].run("stoker", "keys", "create", "--owner", "me").stdout.split()[-1]
    for pod in cluster.values():
        pod.start()
    return key


class Prometheus(servers.Server):
    """Debian's server, with the alerts of deploy/."""

    def answers(self) -> bool:
        """Tell whether it takes queries."""
        with suppress(httpx.HTTPError):
            return httpx.get(f"http://127.0.0.1:{self.port}/-/ready", timeout=10).status_code == httpx.codes.OK
        return False

    def get(self, path: str, **parameters: str) -> Any:
        """Return the data of an answer of its API."""
        answer = httpx.get(f"http://127.0.0.1:{self.port}/api/v1/{path}", params=parameters, timeout=60).json()
        assert answer["status"] == "success", answer
        return answer["data"]


@contextmanager
def prometheus(cluster: dict[str, Pod]) -> Iterator[Prometheus]:
    """Run one that scrapes each pod as the chart's ServiceMonitor has it done: all series have a namespace."""
    found = programs("prometheus") / "prometheus"
    ports = [
        pod.environment.get("STOKER_PORT") or pod.environment.get("STOKER_METRICS_PORT") for pod in cluster.values()
    ]
    targets = [f"127.0.0.1:{port}" for port in ports if port]
    with servers.own_folder("prometheus") as folder:
        scraped = {"job_name": "stoker", "static_configs": [{"targets": targets, "labels": {"namespace": "default"}}]}
        every = {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "2s"}
        config = {"global": every, "rule_files": [str(ALERTS)], "scrape_configs": [scraped]}
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        told = [str(found), f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
        with servers.running(
            Prometheus(lambda port: [*told, f"--web.listen-address=127.0.0.1:{port}"], folder)
        ) as server:
            yield server


def asked() -> list[str]:
    """Return every query of the dashboard, of KEDA, and of the alerts, whose thresholds answer 0 or 1 here."""
    (scaled,) = [thing["spec"] for thing in chart(SCALED) if thing["kind"] == "ScaledObject"]
    keda = [trigger["metadata"]["query"].removesuffix(" or vector(0)") for trigger in scaled["triggers"]]
    rules = [rule["expr"] for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
    alerts = [re.sub(r"(==|>=|<=|>|<) *(?=[\d.])", r"\1 bool ", rule) for rule in rules]
    found = [*queries(json.loads(DASHBOARD.read_text())), *keda, *(re.sub(r"^absent", "max", each) for each in alerts)]
    # Errors are the rarest of all; that the alert works, promtool says.
    return [query for query in found if not any(word in query for word in RARE) and '"5.."' not in query]


def work(client: Client, hook: str, server: Server, held: threading.Event) -> None:
    """Let happen what a day brings: answers, failures of a job and of the upstream, webhooks, a bulk, a queue."""
    server.script.extend([error(400), error(500)])
    for number in range(4):
        client.wait(client.submit(prompt=f"{number}", webhook_url=hook).id, timeout=120)
    # Uploaded to the web server, read and written by the bulk process: the files are the same.
    bulk = client.bulk(iter([{"prompt": "a"}, {"prompt": "b"}]))
    assert client.wait_bulk(bulk.id, timeout=120).counts.succeeded == 2
    server.answer = lambda _body: Reply(until=held)
    for lane in ("realtime", "standard", "bulk"):
        for number in range(20):
            client.submit(prompt=f"{number}", lane=lane)


def test_every_probe_passes_and_jobs_are_done(service: Service) -> None:
    """Of each part those that the chart gives it; a request that names no model gets the only engine's."""
    for name, pod in service.pods.items():
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            until(lambda pod=pod, probe=probe: pod.passes(pod.box.get(probe)), 120)  # type: ignore[misc]
        assert pod.process is not None, name
        assert pod.process.poll() is None, name
    with closing(Client(service.pods["web"].url, service.key)) as client:
        assert finished(client, prompt="hello").model == "tiny"


def test_prometheus_answers_every_query(service: Service) -> None:
    """No metric, label or value of one is misspelt, and each alert is evaluated."""
    web, held = service.pods["web"], threading.Event()
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "stream": True}
    signed = {"Authorization": f"Bearer {service.key}"}
    with receiver() as hooks, prometheus(service.pods) as prom, closing(Client(web.url, service.key)) as client:
        until(lambda: web.passes(web.box["readinessProbe"]), 120)
        httpx.post(f"{web.url}/v1/chat/completions", json=chat, headers=signed, timeout=60).raise_for_status()
        try:
            work(client, f"{hooks.url}/hook", service.upstream, held)
            unanswered = asked()
            assert len(unanswered) > 60

            def look() -> bool:
                unanswered[:] = [query for query in unanswered if not prom.get("query", query=query)["result"]]
                return not unanswered

            with suppress(AssertionError):
                until(look, 60)
            assert unanswered == []
        finally:
            held.set()
        rules = [rule for group in prom.get("rules")["groups"] for rule in group["rules"]]
        assert [(rule["name"], rule["health"]) for rule in rules if rule["health"] != "ok"] == []


def test_each_pod_stops_in_the_time_that_it_has(service: Service) -> None:
    """At SIGTERM, by itself; nobody is killed."""
    for name, pod in service.pods.items():
        assert pod.process is not None
        pod.process.send_signal(signal.SIGTERM)
        assert pod.process.wait(pod.spec["terminationGracePeriodSeconds"]) == 0, name
