"""`stoker up`, with real processes and the fake engine: it serves, mends itself, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from stoker.client import Client
from tests.journeys.running import NAMES, STOKER, Up, finished, left_of
from tests.tasks.inprocess import until

pytestmark = [pytest.mark.journey, pytest.mark.timeout(600)]


def test_it_serves_stops_and_goes_on(data: Path) -> None:
    """Ready, a job gets its answer, a second `up` is refused, Ctrl-C leaves nothing, a new start knows the old job."""
    up = Up(data)
    url = up.url()
    listed = json.loads(subprocess.check_output([*STOKER, "ps", "--json", "--data", str(data)]))
    assert sorted(process["name"] for process in listed) == sorted(NAMES)
    assert {process["name"]: process["pid"] for process in listed} == up.pids()
    ran = subprocess.run(
        [*STOKER, "submit", "hello there", "--wait", "--json", "--url", url], capture_output=True, text=True, check=True
    )
    job = json.loads(ran.stdout)
    assert job["result"]["choices"][0]["message"]["content"] == "echo: hello there"

    second = Up(data)
    assert second.process.wait(120) == 1
    second._listener.join(10)
    assert second.lines == [f"stoker: another `stoker up` uses {data}: stop it, or choose another folder with --data"]

    assert up.end() == 0
    assert left_of(data) == []
    assert [line for line in up.lines if line.startswith("ready")] == [f"ready {url}"]
    assert "hello there" not in "".join(log.read_text() for log in (data / "logs").iterdir())

    again = Up(data)
    with closing(Client(again.url())) as client:
        assert client.get(job["id"]).text == "echo: hello there"
        assert finished(client, prompt="once more").text == "echo: once more"
    assert again.end(signal.SIGTERM) == 0
    assert left_of(data) == []


def test_whatever_is_killed_comes_back(data: Path) -> None:
    """`kill -9` of each process in turn: it is started again, no other is touched, and a job still gets its answer."""
    up = Up(data)
    with closing(Client(up.url())) as client:
        for name in NAMES:
            before = up.pids()
            os.kill(before[name], signal.SIGKILL)
            job = finished(client, prompt=f"after {name}")
            assert job.text == f"echo: after {name}"
            until(lambda before=before, name=name: up.pids().get(name) not in {None, before[name]}, 60)  # type: ignore[misc]  # binds the loop's variables
            assert {one: pid for one, pid in up.pids().items() if one != name} == {
                one: pid for one, pid in before.items() if one != name
            }
    assert [line for line in up.lines if "died" in line and "SIGKILL" not in line] == []
    assert up.end() == 0
    assert left_of(data) == []


def test_a_killed_up_is_cleaned_up_by_the_next(data: Path) -> None:
    """`kill -9` of `stoker up` leaves its processes; the next one ends them, and the jobs go on."""
    up = Up(data, "--engine", "fake", STOKER_FAKE_TOKEN_MS="1")
    with closing(Client(up.url())) as client:
        finished(client, prompt="before")
        waiting = client.submit(prompt="[[slow:2]] through it all")
        old = up.pids()
        up.end(signal.SIGKILL)
    assert set(old.values()) <= set(left_of(data))
    again = Up(data)
    with closing(Client(again.url())) as client:
        assert client.wait(waiting.id, timeout=120).state == "succeeded"
    assert not set(old.values()) & set(left_of(data))
    assert "ended what an earlier run left" in again.lines[0]
    assert again.end() == 0
    assert left_of(data) == []


def test_nobody_reads_what_it_says(data: Path) -> None:
    """The reader of its output is gone (`stoker up | tee`, a lost ssh): it serves on, and Ctrl-C leaves nothing."""
    command = [*STOKER, "up", "--port", "0", "--data", str(data), "--engine", "fake"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        url = next(line.split()[1] for line in process.stdout if line.startswith("ready "))
        process.stdout.close()
        (worker,) = [
            item["pid"]
            for item in json.loads(subprocess.check_output([*STOKER, "ps", "--json", "--data", str(data)]))
            if item["name"] == "worker"
        ]
        os.kill(worker, signal.SIGKILL)
        with closing(Client(url)) as client:
            assert finished(client, prompt="unseen").text == "echo: unseen"
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0
    assert left_of(data) == []


def test_an_engine_that_cannot_start_ends_it(data: Path, tmp_path: Path) -> None:
    """A folder that holds no model: one readable line, status 78, nothing left."""
    empty = tmp_path / "no-model"
    empty.mkdir()
    up = Up(data, "--model", str(empty))
    status = up.process.wait(180)
    up._listener.join(10)
    assert status == 78, "\n".join(up.lines)
    (line,) = [line for line in up.lines if line.startswith("stoker: ")]
    assert line.startswith("stoker: the engine cannot start: ")
    assert str(empty) in line
    assert not any(line.startswith("ready") for line in up.lines)
    assert left_of(data) == []
