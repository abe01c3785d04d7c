"""The benchmarks' own arithmetic, and that each of them can be started and is described."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as entry
from benchmarks import load, profiling, report, workloads

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", entry.NAMES)
def test_each_benchmark_tells_its_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m benchmarks NAME --help` explains the benchmark and where its results go."""
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"benchmarks.{name}").main(["--help"])
    assert ended.value.code == 0
    assert "--results" in capsys.readouterr().out


def test_readme_describes_every_benchmark() -> None:
    """benchmarks/README.md has a section for each name."""
    text = (ROOT / "benchmarks/README.md").read_text()
    assert [name for name in entry.NAMES if f"## `{name}`" not in text] == []


def test_every_command_of_the_readme_is_one_that_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    """Each `python -m benchmarks ...` names benchmarks, and options that they have: the runs themselves take hours."""
    text = (ROOT / "benchmarks/README.md").read_text().replace("\\\n", " ")
    calls = re.findall(r"^(?:sudo )?(?:\.venv/bin/)?python -m benchmarks ([^#\n]+)", text, flags=re.MULTILINE)
    wrong = []
    for call in calls:
        names = [word for word in call.split("--")[0].split() if word in entry.NAMES]
        assert names, call
        for name in names:
            with pytest.raises(SystemExit):
                importlib.import_module(f"benchmarks.{name}").main(["--help"])
            known = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))
            told = set(re.findall(r"--[a-z][a-z-]*", re.sub(r'".*?"', "", call)))
            wrong += [f"{call}: {option}" for option in told - known]
    assert wrong == []
    assert len(calls) > 25


def test_unknown_name_is_refused() -> None:
    """A name that is none ends with status 2 and lists those that there are."""
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks", "speed"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 2
    assert "overhead" in ran.stderr


def test_what_a_benchmark_lacks_is_said_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Instead of a traceback; the status tells it too."""
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert entry.main(["machines"]) == 1
    assert capsys.readouterr().err.startswith("machines: machines are played by network namespaces: run this as root")


def test_same_seed_same_chats() -> None:
    """Both sides of a comparison get the same requests, with fixed and varied lengths of answers."""
    chats = load.chats(50, 20, "m", 16, 128)
    assert chats == load.chats(50, 20, "m", 16, 128)
    assert all(chat["ignore_eos"] and 16 <= chat["max_tokens"] <= 128 for chat in chats)
    assert len({json.dumps(chat) for chat in chats}) == 50
    assert len({chat["max_tokens"] for chat in chats}) > 20


def test_workloads_are_what_their_names_say() -> None:
    """The same seed gives the same jobs; lengths are even or varied, and eight beginnings are shared."""
    made = {name: workloads.chats(name, 200, 7, "m") for name in workloads.WORKLOADS}
    assert made["varied"] == workloads.chats("varied", 200, 7, "m")
    answers = {name: {json.loads(one.body)["max_tokens"] for one in some} for name, some in made.items()}
    assert answers["uniform"] == {32}
    assert min(answers["varied"]) == 4
    assert max(answers["varied"]) > 100
    assert {one.prefix > 0 for one in made["shared"]} == {True}
    assert len({one.prefix for one in made["shared"]}) == workloads.SHARED
    assert {one.owner for one in made["mixed"]} == {f"owner-{number}" for number in range(workloads.OWNERS)}


def test_samples_are_charged_to_our_innermost_function() -> None:
    """What a library does counts for the function of ours that called it; a recursion counts once."""
    site = "/venv/site-packages/sqlalchemy/engine.py"
    worker, db = (f"{ROOT}/{file}" for file in ("tasks/worker.py", "models/db.py"))
    raw = "\n".join(
        [
            f"run ({worker});begin ({db});begin ({db});execute ({site}) 6",
            f"run ({worker}) 3",
            "loop (/venv/site-packages/celery/worker.py);wait (/usr/lib/python3.11/threading.py) 1",
        ]
    )
    profile = profiling.summarise(raw)
    assert profile.top(1) == [["models/db.py:begin", 60.0, 60.0]]
    assert profile.own["tasks/worker.py:run"] == 3
    assert profile.inclusive["tasks/worker.py:run"] == 9
    assert profile.own["(celery)"] == 1


def test_percentile_and_spread() -> None:
    """A percentile is one of the values; a spread has median and extremes."""
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert report.percentile(values, 0.5) == 3.0
    assert report.percentile(values, 0.99) == 5.0
    assert report.spread(values) == {"median": 3.0, "min": 1.0, "max": 5.0, "n": 5}


def test_table_is_markdown() -> None:
    """Numbers stand right, texts left, and the columns line up."""
    assert report.markdown(["size", "what"], [[1000, "a"], [2, "bcdef"]]).splitlines() == [
        "|  size | what  |",
        "|------:|-------|",
        "| 1,000 | a     |",
        "|     2 | bcdef |",
    ]
