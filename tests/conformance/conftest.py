"""The server under test, how its answers are collected, and the table of what passed.

Any server: `BASE_URL=... API_KEY=... MODEL=... pytest tests/conformance`. Without BASE_URL, where stoker is installed,
the suite starts one of its own, with an engine that echoes.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import httpx
import pytest

from .kit import Api, Ended
from .table import Results

OPTIONS = {
    "base_url": ("", "the server, with or without /v1"),
    "api_key": ("", "a key of it"),
    "second_api_key": ("", "a key of another owner: for what belongs to somebody else"),
    "model": ("", "a model that it serves"),
    "embedding_model": ("", "a model for /v1/embeddings (default: --model)"),
    "endpoints": (
        "/v1/chat/completions,/v1/completions,/v1/embeddings,/v1/responses",
        "what batches may be made for, by commas",
    ),
    "patience": ("120", "seconds that a batch may take"),
    "max_lines": ("50000", "most lines a file; 0: there is no limit"),
    "max_file_bytes": ("200000000", "most bytes of a batch's file; 0: there is no limit"),
    "max_line_bytes": ("1000000", "most bytes a line; 0: there is no limit"),
    "short_window": ("", "a completion_window of a few seconds, if the server takes one: for what expires"),
    "table": ("", "file to which the table of what passed is written"),
}
"""Each is `--name-of-it` and the variable `NAME_OF_IT`."""

OURS = {"model": "fake", "short_window": "15s", "patience": "300"}
SERVICE = [sys.executable, "-m", "stoker.cli"]
# A word takes 50 ms: long enough to look at a batch while it runs, to cancel it, and to see slow lines expire (20 s).
ENVIRONMENT = {
    "STOKER_FAKE_TOKEN_MS": "50",
    "STOKER_BULK_WAIT": "0.05",
    "STOKER_BATCH_WINDOWS": f"24h,{OURS['short_window']}",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options; one that another plugin has (pytest-base-url) means the same there."""
    group = parser.getgroup("conformance")
    for name, (default, text) in OPTIONS.items():
        with suppress(ValueError):
            group.addoption(f"--{name.replace('_', '-')}", default=None, help=f"{text} [{name.upper()}, {default!r}]")


def pytest_configure(config: pytest.Config) -> None:
    """Make the mark known, and collect the results of each row."""
    config.addinivalue_line("markers", "row(name): the row of the contract that a test holds a server to")
    if path := _option(config, "table"):
        config.pluginmanager.register(Results(Path(path)))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give each test, where pytest-timeout limits them, time for the batches of its fixtures too."""
    if config.pluginmanager.hasplugin("timeout"):
        for item in items:
            if item.path.parent == Path(__file__).parent:
                item.add_marker(pytest.mark.timeout(900))


def _option(config: pytest.Config, name: str) -> str:
    default, _ = OPTIONS[name]
    return str(config.getoption(f"--{name.replace('_', '-')}", default=None) or os.environ.get(name.upper(), default))


@dataclass(frozen=True)
class Server:
    """The server under test, its limits, and who asks."""

    base_url: str
    api_key: str
    second_api_key: str
    model: str
    embedding_model: str
    endpoints: str
    patience: str
    max_lines: str
    max_file_bytes: str
    max_line_bytes: str
    short_window: str
    own: bool = False

    def skip(self, reason: str) -> NoReturn:
        """Skip a test of somebody's server; of our own nothing is skipped."""
        if self.own:
            raise AssertionError(reason)
        pytest.skip(reason)

    def needs(self, name: str) -> Any:
        """Return an option as a text or number; without it the test cannot be made."""
        value = getattr(self, name)
        if value in {"", "0"}:
            self.skip(f"needs --{name.replace('_', '-')}")
        return int(value) if value.isdecimal() else value

    def serves(self, endpoint: str) -> None:
        """Skip the test unless batches can be made for an endpoint."""
        if endpoint not in self.endpoints.split(","):
            self.skip(f"{endpoint} is not among --endpoints")


@pytest.fixture(scope="package")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Return the server that was named; else start one."""
    given = {name: _option(request.config, name) for name in OPTIONS if name != "table"}
    if given["base_url"]:
        if not given["model"]:
            raise pytest.UsageError("--model (or MODEL) names a model of the server under test")
        base_url = given.pop("base_url").rstrip("/").removesuffix("/v1")
        yield Server(base_url, **{**given, "embedding_model": given["embedding_model"] or given["model"]})
        return
    if importlib.util.find_spec("stoker") is None:
        raise pytest.UsageError("--base-url (or BASE_URL) names the server under test")
    data = tmp_path_factory.mktemp("conformance") / "var"
    with _started(data) as started:
        yield Server(**{**given, **OURS, **started, "embedding_model": OURS["model"], "own": True})


@contextmanager
def _started(data: Path) -> Iterator[dict[str, str]]:
    """Run `stoker up` with keys for two owners; nothing of it is left afterwards."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STOKER_")} | ENVIRONMENT

    def stoker(*arguments: str) -> str:
        command = [*SERVICE, *arguments, "--data", str(data)]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    data.mkdir()
    stoker("db", "upgrade")
    made = [json.loads(stoker("keys", "create", "--owner", owner, "--json"))["key"] for owner in ("one", "another")]
    up = subprocess.Popen(
        [*SERVICE, "up", "--engine", "fake", "--port", "0", "--data", str(data)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    with up:
        try:
            yield {"base_url": _ready(up), "api_key": made[0], "second_api_key": made[1]}
        finally:
            up.send_signal(signal.SIGINT)
            try:
                up.wait(120)
            except subprocess.TimeoutExpired:
                os.killpg(up.pid, signal.SIGKILL)
                raise


def _ready(up: subprocess.Popen[str]) -> str:
    """Return the address that it says once it is ready; it ends by itself if it cannot be."""
    said = []
    assert up.stdout is not None
    for line in up.stdout:
        said.append(line)
        if line.startswith("ready "):
            return line.split()[1]
    raise AssertionError(f"`stoker up` ended: {''.join(said)}")


def _client(server: Server, key: str) -> httpx.Client:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.Client(base_url=server.base_url, headers=headers, timeout=float(server.patience))


@pytest.fixture(scope="package")
def api(server: Server) -> Iterator[Api]:
    """Return the server as the first key sees it; what was uploaded is deleted in the end."""
    with _client(server, server.api_key) as client:
        made = Api(client, server.model, float(server.patience))
        yield made
        for file_id in made.made:
            made.ask("DELETE", f"/files/{file_id}")


@pytest.fixture(scope="package")
def other(server: Server) -> Iterator[Api]:
    """Return the server as the key of another owner sees it."""
    with _client(server, server.needs("second_api_key")) as client:
        yield Api(client, server.model, float(server.patience))


@pytest.fixture(scope="package")
def anonymous(server: Server) -> Iterator[Api]:
    """Return the server as somebody without a good key sees it."""
    server.needs("api_key")
    with _client(server, "sk-this-is-no-key") as client:
        yield Api(client, server.model, float(server.patience))


# Batches that many tests look at


@pytest.fixture(scope="package")
def good(api: Api) -> Ended:
    """Run three lines that succeed."""
    return api.run(*(api.line(name) for name in ("a", "b", "c")), metadata={"run": "good"})


@pytest.fixture(scope="package")
def mixed(api: Api) -> Ended:
    """Run three lines that succeed between two that the engine refuses."""
    refused = [api.refused_line("bad-1"), api.refused_line("bad-2")]
    return api.run(api.line("a"), refused[0], api.line("b"), refused[1], api.line("c"))


@pytest.fixture(scope="package")
def bad(api: Api) -> Ended:
    """Run two lines that the engine refuses."""
    return api.run(api.refused_line("bad-1"), api.refused_line("bad-2"))


@pytest.fixture(scope="package")
def failed(api: Api) -> Ended:
    """Make a batch that fails its validation."""
    return api.run(api.line("a"), "this is not JSON", api.line("b"))


@pytest.fixture(scope="package")
def cancelled(api: Api, server: Server) -> Ended:
    """Cancel a batch of quick and slow lines once some of them are done."""
    quick, slow = [api.line(f"quick-{n}") for n in range(4)], [api.slow_line(f"slow-{n}") for n in range(4)]
    batch = api.start(*quick, *slow)
    for now in api.states(batch):
        if now["status"] in {"finalizing", "completed"}:
            server.skip("the batch ended before it could be cancelled")
        if now["status"] == "in_progress" and now["request_counts"]["completed"]:
            break
    response = api.ask("POST", f"/batches/{batch['id']}/cancel")
    assert response.status_code == 200, response.text
    return api.end(response.json())
