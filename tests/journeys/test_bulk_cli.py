"""`stoker bulk run` against the real service: interrupted, killed, the service restarted, and every line once."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stoker import AsyncClient, Bulk, Client
from tests.journeys.running import STOKER, Up

pytestmark = [pytest.mark.journey, pytest.mark.timeout(600)]


def written(path: Path, count: int, marks: dict[int, str] | None = None) -> Path:
    """Write a file of lines; some carry a mark that the fake engine knows, or are no JSON."""
    lines = [
        json.dumps({"prompt": f"{n} é {(marks or {}).get(n, '')}", "custom_id": f"c{n}"}) for n in range(1, count + 1)
    ]
    for number, mark in (marks or {}).items():
        if not mark:
            lines[number - 1] = "no JSON"
    path.write_text("\n".join(lines) + "\n")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    """Read JSON Lines."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def stoker(url: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    command = [*STOKER, *(str(one) for one in arguments), "--url", url]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=400)


def cut_off(url: str, how: signal.Signals, after: float, output: Path, *arguments: str | Path) -> int:
    """Run a command until its output has been growing for a while, then send it a signal; return its status."""
    command = [*STOKER, *(str(one) for one in arguments), "--url", url]
    size = output.stat().st_size if output.exists() else 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        until = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < until:
            if output.exists() and output.stat().st_size > size:
                break
            time.sleep(0.01)
        time.sleep(after)
        process.send_signal(how)
        process.communicate(timeout=60)
    return process.returncode


@pytest.fixture
def up(data: Path) -> Iterator[Up]:
    """Return a service whose engine takes its time."""
    running = Up(data, "--engine", "fake", STOKER_FAKE_SLOTS="32", STOKER_FAKE_TOKEN_MS="20")
    yield running
    running.end()


def test_a_run_survives_whatever_cuts_it_off(up: Up, tmp_path: Path) -> None:
    """Ctrl-C and `kill -9` at random moments; in the end one bulk, each line once, in one of the two files."""
    url, chance = up.url(), random.Random(8)
    prompts = written(tmp_path / "p.jsonl", 3000, {7: "[[reject]]", 900: ""})
    output = tmp_path / "r.jsonl"
    command = ("bulk", "run", prompts, "-o", output, "--max-tokens", "9")
    hows = (signal.SIGKILL, signal.SIGINT, signal.SIGKILL)
    statuses = [cut_off(url, how, chance.uniform(0, 1), output, *command) for how in hows]
    assert statuses == [-signal.SIGKILL, 130, -signal.SIGKILL]
    ran = stoker(url, *command, "--json")
    bulk = json.loads(ran.stdout)["bulk"] if ran.returncode == 3 else {}
    assert bulk, ran.stderr
    results, errors = read(output), read(tmp_path / "r.errors.jsonl")
    assert sorted(one["line"] for one in results + errors) == list(range(1, 3001))
    assert sorted(one["seq"] for one in results + errors) == list(range(1, 3001))
    assert [one["seq"] for one in results] == sorted(one["seq"] for one in results)
    assert {one["line"] for one in errors} == {7, 900}
    assert {one["custom_id"] for one in results} == {f"c{n}" for n in range(1, 3001)} - {"c7", "c900"}
    with Client(url) as client:
        assert [found.id for found in client.bulks()] == [bulk["id"]]
        assert client.get_bulk(bulk["id"]).counts.invalid == 1


def test_what_failed_is_run_again_and_fetched_as_csv(up: Up, tmp_path: Path) -> None:
    """A new bulk of the one line that ran and failed, with its line's number; the first one's results as CSV."""
    url = up.url()
    prompts = written(tmp_path / "p.jsonl", 20, {7: "[[reject]]", 9: ""})
    ran = stoker(url, "bulk", "run", prompts, "--format", "csv", "--json")
    assert ran.returncode == 3, ran.stderr
    told = json.loads(ran.stdout)
    rows = Path(told["results"]).read_text().splitlines()
    assert rows[0].startswith("line,custom_id,prompt,state,text")
    assert any("echo: 1 é" in row for row in rows)
    again = stoker(url, "bulk", "retry", told["bulk"]["id"], "-p", "max_tokens=500", "-o", tmp_path / "again.jsonl")
    assert again.returncode == 3, again.stderr
    assert [one["line"] for one in read(tmp_path / "again.errors.jsonl")] == [7]
    found = json.loads(stoker(url, "bulk", "list", "--json").stdout)
    assert [bulk["retry_of"] for bulk in found] == [told["bulk"]["id"], None]


def test_a_run_outlasts_the_services_restart(data: Path, tmp_path: Path) -> None:
    """The service is killed and comes back on the same port: the run goes on by itself, and loses nothing."""
    slow = {"STOKER_FAKE_SLOTS": "16", "STOKER_FAKE_TOKEN_MS": "20"}
    up = Up(data, "--engine", "fake", **slow)
    url = up.url()
    prompts, output = written(tmp_path / "p.jsonl", 600), tmp_path / "r.jsonl"
    command = [*STOKER, "bulk", "run", str(prompts), "-o", str(output), "--url", url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        until = time.monotonic() + 120
        while not output.exists():
            assert time.monotonic() < until, "nothing was written"
            time.sleep(0.01)
        up.end(signal.SIGKILL)
        again = Up(data, "--engine", "fake", "--port", url.rpartition(":")[2], **slow)
        again.url()
        told, _ = process.communicate(timeout=400)
    assert process.returncode == 0, told
    assert sorted(one["line"] for one in read(output)) == list(range(1, 601))
    assert again.end() == 0


def test_the_asynchronous_client(up: Up) -> None:
    """A bulk by AsyncClient: a generator's lines go up, it is paused and resumed, results come while it runs."""
    url = up.url()

    async def journey() -> tuple[list[int], Bulk]:
        async with AsyncClient(url) as client:
            # So many words that the bulk has not ended before it is paused.
            lines = ({"prompt": f"line {n}{' and on' * 10}"} for n in range(1, 301))
            bulk = await client.bulk(lines, max_tokens=20)
            assert (await client.pause_bulk(bulk.id)).paused
            assert not (await client.resume_bulk(bulk.id)).paused
            found = [result.line async for result in client.iter_results(bulk.id)]
            return found, await client.wait_bulk(bulk.id, timeout=120)

    found, bulk = asyncio.run(journey())
    assert sorted(found) == list(range(1, 301))
    assert (bulk.state, bulk.counts.succeeded, bulk.counted) == ("completed", 300, True)


def test_a_dry_run_and_a_batch(up: Up, tmp_path: Path) -> None:
    """Bad lines are named and nothing runs; a file in OpenAI's form goes up, runs, and its results come down."""
    url = up.url()
    prompts = written(tmp_path / "p.jsonl", 20, {9: ""})
    checked = stoker(url, "bulk", "dry-run", prompts)
    assert checked.returncode == 3
    assert "20 lines, 1 of them cannot run" in checked.stdout
    assert "line 9: " in checked.stdout
    requests = tmp_path / "requests.jsonl"
    body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    requests.write_text(json.dumps(line) + "\n")
    ran = stoker(url, "batch", "create", requests, "--wait", "--json")
    assert ran.returncode == 0, ran.stderr
    batch = json.loads(ran.stdout)
    assert batch["request_counts"] == {"total": 1, "completed": 1, "failed": 0}
    printed = stoker(url, "batch", "results", batch["id"]).stdout
    assert json.loads(printed)["response"]["body"]["choices"][0]["message"]["content"] == "echo: hi"
