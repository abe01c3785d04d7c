"""`stoker bulk` and `stoker batch`: one command does the whole, cut off anywhere it goes on, scripts can rely on it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from stoker import bulk_run, cli_http
from stoker.cli import app
from tests.stoker.bulk_service import BulkService, bulk_service
from tests.terminals import drawn_on

pytestmark = pytest.mark.timeout(300)

STOKER = [sys.executable, "-m", "stoker.cli"]


@pytest.fixture
def service() -> Iterator[BulkService]:
    """Return a service whose lines end at once."""
    with bulk_service() as running:
        yield running


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Return a file of three lines, one of which fails."""
    return written(tmp_path / "prompts.jsonl", 3, bad={2})


def written(path: Path, count: int, bad: set[int] | None = None) -> Path:
    """Write a file of lines."""
    texts = [f"{n}é\u2028" + (" [[fail]]" if n in (bad or ()) else "") for n in range(1, count + 1)]
    path.write_text("".join(json.dumps({"prompt": text}, ensure_ascii=False) + "\n" for text in texts), "utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    """Read JSON Lines."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def stoker(service: BulkService, *arguments: str | Path, **options: Any) -> Result:
    """Run a command in this process."""
    environment = {"STOKER_URL": service.url}
    return CliRunner().invoke(app, [str(one) for one in arguments], env=environment, catch_exceptions=False, **options)


def started(service: BulkService, *arguments: str | Path) -> subprocess.Popen[str]:
    """Start a command in a process of its own."""
    return subprocess.Popen(
        [*STOKER, *(str(one) for one in arguments), "--url", service.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )


def until(what: Any, seconds: float = 60) -> None:
    """Wait until something is so."""
    ends = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < ends
        time.sleep(0.005)


def test_a_run_does_the_whole(service: BulkService, prompts: Path, tmp_path: Path) -> None:
    """Results and errors in their files, a summary, status 3 since a line failed, and no state left."""
    output = tmp_path / "results.jsonl"
    ran = stoker(service, "bulk", "run", prompts, "-o", output, "--max-tokens", "5", "-p", "stop=END")
    assert ran.exit_code == 3, ran.output
    assert [one["line"] for one in read(output)] == [1, 3]
    assert [one["line"] for one in read(tmp_path / "results.errors.jsonl")] == [2]
    (bulk_id,) = service.bulks
    assert f"{bulk_id} completed: 2 of 3 succeeded" in ran.stdout
    assert f"errors   {tmp_path / 'results.errors.jsonl'}" in ran.stdout
    assert f"stoker bulk retry {bulk_id} -o {tmp_path / 'results.again.jsonl'}" in ran.stdout
    assert "uploading" in ran.stderr
    assert "3 of 3 done, 1 failed, completed" in ran.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "prompts.jsonl",
        "results.errors.jsonl",
        "results.jsonl",
    ]
    assert service.asked[0].query == {"max_tokens": "5", "stop": "END"}


def test_a_run_without_failures_has_status_0(service: BulkService, tmp_path: Path) -> None:
    """And no file of errors; the output's name is made of the input's."""
    prompts = written(tmp_path / "prompts.jsonl", 2)
    ran = stoker(service, "bulk", "run", prompts)
    assert ran.exit_code == 0, ran.output
    assert "again" not in ran.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prompts.jsonl", "prompts.results.jsonl"]


def test_json_is_one_document_on_the_standard_output(service: BulkService, prompts: Path, tmp_path: Path) -> None:
    """The bulk and where its results are; progress is told elsewhere."""
    ran = stoker(service, "bulk", "run", prompts, "-o", tmp_path / "r.jsonl", "--json")
    told = json.loads(ran.stdout)
    assert (told["results"], told["errors"]) == (str(tmp_path / "r.jsonl"), str(tmp_path / "r.errors.jsonl"))
    assert (told["bulk"]["state"], told["bulk"]["counts"]["failed"]) == ("completed", 1)


def test_results_as_csv(service: BulkService, prompts: Path, tmp_path: Path) -> None:
    """Fetched whole once the bulk has ended; errors are JSON Lines."""
    ran = stoker(service, "bulk", "run", prompts, "--format", "csv")
    assert ran.exit_code == 3, ran.output
    assert (tmp_path / "prompts.results.csv").read_bytes() == b"1,succeeded\r\n3,succeeded\r\n"
    assert [one["line"] for one in read(tmp_path / "prompts.results.errors.jsonl")] == [2]
    assert stoker(service, "bulk", "run", prompts, "--format", "xml").exit_code == 2


def test_nothing_is_overwritten(service: BulkService, prompts: Path, tmp_path: Path) -> None:
    """An output that exists and belongs to no run is refused before anything is uploaded."""
    output = tmp_path / "results.jsonl"
    output.write_text("mine")
    ran = stoker(service, "bulk", "run", prompts, "-o", output)
    assert ran.exit_code == 1
    assert ran.stderr == f"stoker: {output} exists: remove it, or choose another output\n"
    assert output.read_text() == "mine"
    assert service.asked == []


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_any_point_it_goes_on(service: BulkService, tmp_path: Path, seed: int) -> None:
    """`kill -9` again and again, at random moments: in the end one bulk, each line once, none missing."""
    chance = random.Random(seed)
    prompts, output = written(tmp_path / "p.jsonl", 900, bad={5, 500}), tmp_path / "r.jsonl"
    command = ("bulk", "run", prompts, "-o", output)
    service.rate = 15.0
    killed = 0
    for _ in range(30):
        with started(service, *command) as process:
            seen = len(service.asked)
            # Python needs a while to start: the dice are for what comes then.
            until(lambda seen=seen, process=process: len(service.asked) > seen or process.poll() is not None)
            time.sleep(chance.expovariate(2))
            process.kill()
            told = process.communicate()[1]
        if process.returncode != -signal.SIGKILL:
            break
        killed += 1
        if killed == 2:  # until here no machine is so slow that the bulk ends before the second kill
            service.hurry(150.0)
    assert killed >= 2
    # Killed as it ended, it had nothing more to do: another run is refused.
    assert process.returncode == 3 or f"{output} exists" in told
    assert len(service.bulks) == 1
    results, errors = read(output), read(tmp_path / "r.errors.jsonl")
    assert sorted(one["seq"] for one in results + errors) == list(range(1, 901))
    assert [one["seq"] for one in errors] == [5, 500]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.jsonl", "r.errors.jsonl", "r.jsonl"]


def test_an_upload_that_is_cut_off_makes_one_bulk(service: BulkService, prompts: Path, tmp_path: Path) -> None:
    """The service took it, but the program died before it knew: the same command finds the same bulk."""
    command = ("bulk", "run", prompts, "-o", tmp_path / "r.jsonl")
    service.lock.acquire()
    with started(service, *command) as process:
        until(lambda: service.arrived)
        process.kill()
        process.communicate()
    service.lock.release()
    state = json.loads((tmp_path / "r.jsonl.stoker").read_text())
    assert state["bulk_id"] == ""
    until(lambda: service.bulks)
    assert stoker(service, *command).exit_code == 3
    assert len(service.bulks) == 1
    assert {asked.headers["idempotency-key"] for asked in service.asked if asked.method == "POST"} == {state["key"]}


def test_ctrl_c_leaves_the_bulk_running(service: BulkService, tmp_path: Path) -> None:
    """Status 130, a line that says how to go on; the same command then does."""
    prompts, output = written(tmp_path / "p.jsonl", 400), tmp_path / "r.jsonl"
    service.rate = 10.0
    with started(service, "bulk", "run", prompts, "-o", output) as process:
        until(output.exists)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate()
    (made,) = service.bulks.values()
    assert process.returncode == 130
    assert f"interrupted: {made.id} runs on, and the same command goes on reading it" in told
    assert "Traceback" not in told
    assert made.stopped is None
    service.hurry()
    assert stoker(service, "bulk", "run", prompts, "-o", output).exit_code == 0
    assert [one["seq"] for one in read(output)] == list(range(1, 401))


@pytest.mark.parametrize("twice", [True, False], ids=["twice", "cancel-on-interrupt"])
def test_ctrl_c_twice_cancels(service: BulkService, tmp_path: Path, twice: bool) -> None:
    """Or once, when that is asked for; the same command fetches what was finished, the rest is among the errors."""
    prompts, output = written(tmp_path / "p.jsonl", 2000), tmp_path / "r.jsonl"
    service.rate = 100.0
    options = () if twice else ("--cancel-on-interrupt",)
    with started(service, "bulk", "run", prompts, "-o", output, *options) as process:
        until(output.exists)
        process.send_signal(signal.SIGINT)
        if twice:
            assert process.stderr is not None
            for line in process.stderr:
                if "Ctrl-C within" in line:
                    break
            process.send_signal(signal.SIGINT)
        process.communicate()
    assert process.returncode == 130
    (made,) = service.bulks.values()
    assert made.stopped is not None
    assert stoker(service, "bulk", "run", prompts, "-o", output).exit_code == 3
    assert len(read(output)) == made.stopped
    assert {one["state"] for one in read(tmp_path / "r.errors.jsonl")} == {"cancelled"}


@pytest.mark.parametrize("change", ["input", "parameters"])
def test_a_state_of_another_run_is_refused(service: BulkService, tmp_path: Path, change: str) -> None:
    """The input or a parameter is another one than when the run began."""
    prompts, output = written(tmp_path / "p.jsonl", 400), tmp_path / "r.jsonl"
    service.rate = 10.0
    with started(service, "bulk", "run", prompts, "-o", output) as process:
        until(output.exists)
        process.kill()
        process.communicate()
    written(prompts, 399 if change == "input" else 400)
    options = ("--max-tokens", "5") if change == "parameters" else ()
    ran = stoker(service, "bulk", "run", prompts, "-o", output, *options)
    assert ran.exit_code == 1
    assert f"{output}.stoker is of a run with {'an' if change == 'input' else ''}other {change}" in ran.stderr


def test_a_bulk_that_is_gone_is_told(service: BulkService, tmp_path: Path) -> None:
    """Deleted between two runs, or the service is another one: how to begin anew is said."""
    prompts, output = written(tmp_path / "p.jsonl", 400), tmp_path / "r.jsonl"
    service.rate = 10.0
    with started(service, "bulk", "run", prompts, "-o", output) as process:
        until(output.exists)
        process.kill()
        process.communicate()
    service.bulks.clear()
    ran = stoker(service, "bulk", "run", prompts, "-o", output)
    assert ran.exit_code == 1
    assert ran.stderr == f"stoker: There is no such bulk. To begin anew, remove {output}.stoker.\n"


def test_a_refused_upload_leaves_nothing(service: BulkService, prompts: Path, tmp_path: Path) -> None:
    """The service's own words, status 1, and the next try is a new one."""
    service.fail(1, status=422, document={"detail": "model: 'x' is not known", "code": "model_not_found"})
    ran = stoker(service, "bulk", "run", prompts, "-o", tmp_path / "r.jsonl")
    assert (ran.exit_code, ran.stderr.splitlines()[-1]) == (1, "stoker: model: 'x' is not known")
    assert list(tmp_path.iterdir()) == [prompts]


def test_an_outage_is_sat_out(service: BulkService, prompts: Path, tmp_path: Path) -> None:
    """Refusals and broken connections on the way change nothing."""
    for method in ("POST", "GET"):
        service.fail(2, lambda asked, method=method: asked.method == method)
        service.fail(2, lambda asked, method=method: asked.method == method, cut=True)
    assert stoker(service, "bulk", "run", prompts, "-o", tmp_path / "r.jsonl").exit_code == 3
    assert len(service.bulks) == 1
    assert [one["seq"] for one in read(tmp_path / "r.jsonl")] == [1, 3]


def test_an_outage_that_lasts_is_told_and_has_an_end(
    service: BulkService, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While errors cannot be read it says why it waits; in the end status 1, and the same command goes on later."""
    monkeypatch.setattr(cli_http, "_QUIET", 0.0)
    monkeypatch.setattr(bulk_run, "PATIENCE", 0.5)
    command = ("bulk", "run", prompts, "-o", tmp_path / "r.jsonl")
    service.fail(1000, lambda asked: asked.path.endswith("/errors"), status=500, document={"detail": "It is broken."})
    ran = stoker(service, *command)
    assert ran.exit_code == 1
    assert ran.stderr.count("stoker: It is broken.; trying again, for 0 s now\n") == 1
    assert ran.stderr.splitlines()[-1] == "stoker: It is broken.; the same command goes on where it was"
    service.faults.clear()
    assert stoker(service, *command).exit_code == 3
    assert len(service.bulks) == 1
    assert [one["line"] for one in read(tmp_path / "r.errors.jsonl")] == [2]


@pytest.mark.parametrize("command", ["wait", "results"])
def test_whoever_waits_is_told_of_an_outage(
    service: BulkService, prompts: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of one in which nobody answers at all; an outage that is short enough is not talked about."""
    bulk_id = stoker(service, "bulk", "submit", prompts).stdout.strip()
    for quiet, told in ((3600.0, 0), (0.0, 1)):
        monkeypatch.setattr(cli_http, "_QUIET", quiet)
        service.fail(2, cut=True)
        ran = stoker(service, "bulk", command, bulk_id)
        assert ran.exit_code in {0, 3}
        assert ran.stderr.count("trying again") == told


def test_a_full_disk_is_no_loss(service: BulkService, tmp_path: Path) -> None:
    """One line and status 1; with room again the same command goes on behind the last whole line."""
    prompts, output = written(tmp_path / "p.jsonl", 500), tmp_path / "r.jsonl"
    command = [*STOKER, "bulk", "run", str(prompts), "-o", str(output), "--url", service.url]
    full = subprocess.run(
        ["sh", "-c", 'ulimit -f 16; exec "$@"', "sh", *command], capture_output=True, text=True, check=False
    )
    assert full.returncode == 1
    assert full.stderr.splitlines()[-1].startswith("stoker: ")
    assert "File too large" in full.stderr
    assert 0 < output.stat().st_size <= 16_384
    assert stoker(service, "bulk", "run", prompts, "-o", output).exit_code == 0
    assert [one["seq"] for one in read(output)] == list(range(1, 501))


def test_what_failed_is_run_again(service: BulkService, prompts: Path, tmp_path: Path) -> None:
    """As a new bulk of those lines: its id alone, or followed into a file."""
    stoker(service, "bulk", "run", prompts, "-o", tmp_path / "r.jsonl")
    (first,) = service.bulks
    ran = stoker(service, "bulk", "retry", first, "-p", "mended=true", "--max-tokens", "9")
    assert ran.stdout.strip() in service.bulks
    assert service.asked[-1].document == {"mended": True, "max_tokens": 9}
    ran = stoker(service, "bulk", "retry", first, "-p", "mended=true", "-o", tmp_path / "again.jsonl")
    assert ran.exit_code == 0, ran.output
    assert [one["line"] for one in read(tmp_path / "again.jsonl")] == [2]


def test_submit_prints_the_id(service: BulkService, prompts: Path) -> None:
    """Of a file or of the standard input; twice under one key is one bulk."""
    ran = stoker(service, "bulk", "submit", prompts, "--key", "k", "--metadata", "run=1")
    assert ran.stdout.strip() in service.bulks
    assert stoker(service, "bulk", "submit", prompts, "--key", "k").stdout == ran.stdout
    piped = stoker(service, "bulk", "submit", "-", "--json", input='{"prompt": "hi"}\n')
    assert json.loads(piped.stdout)["counts"]["total"] == 1
    stoker(service, "bulk", "submit", "s3://bucket/key", "--lane", "standard")
    assert service.asked[-1].document == {"input_url": "s3://bucket/key", "lane": "standard"}


def test_a_dry_run_tells_what_is_wrong(service: BulkService, tmp_path: Path) -> None:
    """Lines, tokens, and each line that cannot run; status 3 when there is one."""
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "hi"}\nnonsense\n')
    ran = stoker(service, "bulk", "dry-run", prompts)
    assert ran.exit_code == 3
    assert "2 lines, 1 of them cannot run" in ran.stdout
    assert "line 2: no JSON (invalid_json_line)" in ran.stdout
    assert json.loads(stoker(service, "bulk", "dry-run", prompts, "--json").stdout)["report"]["invalid"] == 1


def test_a_bulk_is_looked_at_and_steered(service: BulkService, prompts: Path) -> None:
    """Each command prints where the bulk is then, as text or as JSON."""
    service.rate = 0.001
    bulk_id = stoker(service, "bulk", "submit", prompts).stdout.strip()
    assert f"{bulk_id}  running\n  0 of 3 done, 0 failed" in stoker(service, "bulk", "status", bulk_id).stdout
    assert json.loads(stoker(service, "bulk", "status", bulk_id, "--json").stdout)["id"] == bulk_id
    assert "paused" in stoker(service, "bulk", "pause", bulk_id).stdout
    assert not json.loads(stoker(service, "bulk", "resume", bulk_id, "--json").stdout)["paused"]
    assert "lane realtime" in stoker(service, "bulk", "lane", bulk_id, "realtime").stdout
    assert bulk_id in stoker(service, "bulk", "list", "--state", "running").stdout
    assert [one["id"] for one in json.loads(stoker(service, "bulk", "list", "--json").stdout)] == [bulk_id]
    assert "cancelled" in stoker(service, "bulk", "cancel", bulk_id).stdout
    assert stoker(service, "bulk", "wait", bulk_id).exit_code == 3
    assert json.loads(stoker(service, "bulk", "delete", bulk_id, "--json").stdout) == {"id": bulk_id, "deleted": True}
    gone = stoker(service, "bulk", "status", bulk_id)
    assert (gone.exit_code, gone.stdout, gone.stderr) == (1, "", "stoker: There is no such bulk.\n")


def test_results_are_printed_or_written(service: BulkService, prompts: Path, tmp_path: Path) -> None:
    """JSON Lines as they are, or another form; behind a given one; errors in words or as JSON Lines."""
    bulk_id = stoker(service, "bulk", "submit", prompts).stdout.strip()
    for options in ((), ("--json",), ("--follow",)):
        printed = stoker(service, "bulk", "results", bulk_id, *options).stdout
        assert [json.loads(line)["seq"] for line in printed.split("\n") if line] == [1, 3]
    assert json.loads(stoker(service, "bulk", "results", bulk_id, "--after", "1").stdout)["seq"] == 3
    assert (
        stoker(service, "bulk", "results", bulk_id, "--format", "csv").stdout_bytes == b"1,succeeded\r\n3,succeeded\r\n"
    )
    stoker(service, "bulk", "results", bulk_id, "-o", tmp_path / "r.jsonl")
    assert [one["seq"] for one in read(tmp_path / "r.jsonl")] == [1, 3]
    assert stoker(service, "bulk", "errors", bulk_id).stdout == "line 2: failed: It would not. (engine_error)\n"
    assert json.loads(stoker(service, "bulk", "errors", bulk_id, "--json").stdout)["line"] == 2
    stoker(service, "bulk", "errors", bulk_id, "-o", tmp_path / "e.jsonl")
    assert [one["seq"] for one in read(tmp_path / "e.jsonl")] == [2]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("-p", "novalue"), "--param takes NAME=VALUE, not 'novalue'"),
        (("-p", "=5"), "--param takes NAME=VALUE, not '=5'"),
        (("--metadata", "x"), "--metadata takes NAME=VALUE, not 'x'"),
    ],
)
def test_a_parameter_has_a_name_and_a_value(
    service: BulkService, prompts: Path, options: tuple[str, ...], told: str
) -> None:
    """Status 2, one line, nothing uploaded."""
    ran = stoker(service, "bulk", "submit", prompts, *options)
    assert (ran.exit_code, ran.stderr) == (2, f"stoker: {told}\n")
    assert service.asked == []


def test_a_missing_input_is_one_line(service: BulkService, tmp_path: Path) -> None:
    """Its name and what is the matter."""
    for command in ("run", "submit", "dry-run"):
        ran = stoker(service, "bulk", command, tmp_path / "none.jsonl")
        assert (ran.exit_code, ran.stderr) == (1, f"stoker: {tmp_path / 'none.jsonl'}: No such file or directory\n")


def test_progress_is_drawn_on_a_terminal(service: BulkService, prompts: Path, tmp_path: Path) -> None:
    """Bars for the upload and the lines, with what failed."""
    import pty

    leader, follower = pty.openpty()
    command = [*STOKER, "bulk", "run", str(prompts), "-o", str(tmp_path / "r.jsonl"), "--url", service.url]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=follower, env=environment) as process:
        os.close(follower)
        drawn = drawn_on(leader)
    os.close(leader)
    assert process.returncode == 3
    assert b"upload" in drawn
    assert b"3 of 3 done, 1 failed, completed" in drawn
