"""The results of a bulk on their way out: JSON Lines, CSV and Parquet, complete or not yet, in bounded memory."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from pyarrow import parquet as pq

from models import bulk_results
from models.db import Database
from models.ends import Settled
from models.errors import DatabaseUnavailable
from models.results import NewResult
from tests.webapi.bulk_kit import Service, bad, good_but, jsonl, prompts, taken

CSV = b'prompt,topic,state,"a ""b"""\n' + "\n".join(f'say {n},=t{n},own,"ü, {n}"' for n in range(1, 4)).encode()
TABLE = ["line", "custom_id", "prompt"]
TAIL = ["state", "text", "model", "prompt_tokens", "completion_tokens", "error_code", "error_message"]


def table(service: Service, bulk_id: str, which: str = "results", **query: Any) -> list[dict[str, str]]:
    """Return a bulk's results as CSV, by the names of the columns."""
    answer = service.read(bulk_id, which, format="csv", **query)
    assert answer.status_code == 200, answer.text
    return list(csv.DictReader(io.StringIO(answer.data.decode(), newline=""), strict=True))


# JSON Lines


def test_a_line_of_the_results(service: Service) -> None:
    """It says where it is from, what was asked, by whom it was answered, and the answer as the engine gave it."""
    raw = '{"object": "x", "n": 1.50,\n "choices": []}'
    bulk_id = service.begin(prompts(1, max_tokens=5, stop=["\n"]), temperature=0.5)
    service.run(bulk_id, lambda job: Settled(job.id, "succeeded", NewResult(200, raw, prompt_tokens=2)))
    answer = service.read(bulk_id)
    assert answer.content_type == "application/x-ndjson"
    assert b'"n": 1.50,  "choices"' in answer.data
    (line,) = service.lines(bulk_id)
    assert line.pop("finished_at") == pytest.approx(service.get(bulk_id)["finished_at"], abs=5)
    assert line == {
        "seq": 1,
        "line": 1,
        "custom_id": "line-1",
        "job_id": service.jobs(bulk_id)[0].id,
        "state": "succeeded",
        "model": "fake",
        "engine": "engine",
        "attempts": 1,
        "params": {"max_tokens": 5, "stop": ["\n"], "temperature": 0.5},
        "result": {"object": "x", "n": 1.5, "choices": []},
        "error": None,
        "usage": {"prompt_tokens": 2, "completion_tokens": 0, "total_tokens": 2},
    }


def test_lines_that_did_not_succeed(service: Service) -> None:
    """Refused, unreadable and cancelled lines are the errors, each with its reason; they are no results."""
    bulk_id = service.begin(prompts(3) + b"nonsense\n")
    service.run(bulk_id, bad, most=1)
    service.do(bulk_id, "cancel")
    service.tend(bulk_id)
    assert service.lines(bulk_id) == []
    errors = {line["line"]: line for line in service.lines(bulk_id, "errors")}
    assert {n: line["state"] for n, line in errors.items()} == {
        1: "failed",
        2: "cancelled",
        3: "cancelled",
        4: "failed",
    }
    assert errors[1]["error"] == {"code": "bad_request", "message": "too long", "status": 400}
    assert (errors[2]["error"]["code"], errors[2]["error"]["status"]) == ("cancelled", None)
    assert errors[4]["error"]["code"] == "invalid_json_line"
    assert (errors[1]["job_id"], errors[4]["job_id"]) == (service.jobs(bulk_id)[0].id, None)
    assert (errors[4]["model"], errors[4]["params"], errors[4]["attempts"]) == (None, None, 0)
    assert {(line["result"], line["usage"]) for line in errors.values()} == {(None, None)}


def test_results_while_it_runs(service: Service) -> None:
    """`X-Incomplete: true` as long as more may come; `after` goes on behind a line, and none is left out or twice."""
    bulk_id = service.begin(prompts(10))
    seen: list[int] = []
    for _ in range(5):
        service.run(bulk_id, good_but(3, 8), most=2)
        answer = service.read(bulk_id, after=seen[-1] if seen else 0)
        lines = [json.loads(line) for line in answer.data.splitlines()]
        assert (answer.headers.get("X-Incomplete") == "true") == (service.get(bulk_id)["state"] == "running")
        seen += [line["seq"] for line in lines]
    assert seen == [1, 2, 4, 5, 6, 7, 9, 10]
    assert [line["seq"] for line in service.lines(bulk_id, "errors")] == [3, 8]
    assert [line["seq"] for line in service.lines(bulk_id, after=4, limit=2)] == [5, 6]
    assert service.lines(bulk_id, after=2**63 - 1) == []


def test_an_answer_that_is_not_called_incomplete_is_complete(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bulk that ends while its results are read was not known to have ended: the answer does not claim so."""
    bulk_id = service.begin(prompts(4))
    service.run(bulk_id, most=2)
    real = bulk_results.page

    def page(*args: Any, **more: Any) -> Any:
        if service.get(bulk_id)["state"] == "running":
            service.run(bulk_id)
        return real(*args, **more)

    monkeypatch.setattr(bulk_results, "page", page)
    answer = service.read(bulk_id)
    assert service.get(bulk_id)["state"] == "completed"
    assert answer.headers["X-Incomplete"] == "true"
    again = service.read(bulk_id)
    assert "X-Incomplete" not in again.headers
    assert len(again.data.splitlines()) == 4


@pytest.mark.parametrize("query", ["after=-1", "after=x", "limit=0", "format=xml", "nonsense=1", f"after={2**63}"])
def test_bad_queries(service: Service, query: str) -> None:
    """They are refused before anything is sent."""
    bulk_id = service.submit(prompts(1))
    for which in ("results", "errors"):
        assert service.client.get(f"/v1/bulks/{bulk_id}/{which}?{query}").status_code == 422


def test_a_bulk_without_results(service: Service) -> None:
    """Before the first line has ended every format is empty, and says that more may come."""
    bulk_id = service.submit(prompts(1))
    for format_ in ("jsonl", "csv", "parquet"):
        answer = service.read(bulk_id, format=format_)
        assert answer.headers["X-Incomplete"] == "true"
    assert service.lines(bulk_id) == []
    assert table(service, bulk_id) == []
    assert pq.read_table(io.BytesIO(service.read(bulk_id, format="parquet").data)).num_rows == 0


def test_results_of_a_batch(service: Service) -> None:
    """A batch's lines are read like those of any bulk, while it runs and afterwards."""
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"model": "fake", "prompt": "hi"}}
    batch = service.batch(service.upload(jsonl(line)), endpoint="/v1/completions")
    service.tend(batch.json["id"])
    service.run(
        batch.json["id"], lambda job: Settled(job.id, "succeeded", NewResult(200, '{"choices":[{"text":"ho"}]}'))
    )
    assert [line["custom_id"] for line in service.lines(batch.json["id"])] == ["a"]
    assert [row["text"] for row in table(service, batch.json["id"])] == ["ho"]


# CSV


def test_csv_of_prompts(service: Service) -> None:
    """One line a result: the line, its name, the last thing that a user said, and the answer's text."""
    chat = {
        "messages": [{"role": "user", "content": "old"}, {"role": "user", "content": [{"type": "text", "text": "new"}]}]
    }
    bulk_id = service.ended(prompts(1) + jsonl(chat | {"custom_id": 'x,"y"\n'}))
    answer = service.read(bulk_id, format="csv")
    assert answer.content_type == "text/csv; charset=utf-8"
    assert answer.headers["Content-Disposition"] == f'attachment; filename="{bulk_id}-results.csv"'
    assert answer.data.startswith(",".join([*TABLE, *TAIL]).encode() + b"\r\n")
    first, second = table(service, bulk_id)
    told = ["1", "line-1", "say 1", "succeeded", "answer to line-1", "fake", "2", "3", "", ""]
    assert first == dict(zip([*TABLE, *TAIL], told, strict=True))
    assert (second["custom_id"], second["prompt"], second["text"]) == ('x,"y"\n', "new", 'answer to x,"y"\n')


def test_csv_of_csv(service: Service) -> None:
    """The input's own columns come back as they were, beside ours; one with a name of ours gets a prefix."""
    bulk_id = service.begin(CSV, "text/csv")
    service.run(bulk_id, good_but(3))
    answer = service.read(bulk_id, format="csv")
    header = next(csv.reader(io.StringIO(answer.data.decode(), newline="")))
    assert header == [*TABLE, "topic", "input.state", 'a "b"', *TAIL]
    rows = table(service, bulk_id)
    assert [(row["line"], row["topic"], row["input.state"], row['a "b"']) for row in rows] == [
        ("2", "=t1", "own", "ü, 1"),
        ("4", "=t3", "own", "ü, 3"),
    ]
    (failed,) = table(service, bulk_id, "errors")
    assert (failed["line"], failed["topic"], failed["prompt"], failed["text"]) == ("3", "=t2", "say 2", "")
    assert (failed["state"], failed["error_code"], failed["error_message"]) == ("failed", "bad_request", "too long")


def test_columns_come_through_a_retry(service: Service) -> None:
    """The columns of a line that is run again are still its own; a line that could not be read has none."""
    bulk_id = service.begin(CSV + b"\nonly one cell\n", "text/csv")
    service.run(bulk_id, good_but(2))
    assert [row["topic"] for row in table(service, bulk_id, "errors")] == ["", "=t1"]
    again = taken(service.do(bulk_id, "retry"))["id"]
    service.tend(again)
    service.run(again)
    (row,) = table(service, again)
    assert (row["line"], row["topic"], row['a "b"']) == ("2", "=t1", "ü, 1")


def test_pages_of_a_table(service: Service) -> None:
    """`after` and `limit` hold for tables as well."""
    bulk_id = service.ended(prompts(5))
    assert [row["line"] for row in table(service, bulk_id, after=2, limit=2)] == ["3", "4"]


# Parquet


def test_parquet(service: Service) -> None:
    """The columns of the table with their types, `seq` and others, and the engine's answer as JSON text."""
    bulk_id = service.begin(CSV, "text/csv")
    service.run(bulk_id, good_but(3))
    answer = service.read(bulk_id, format="parquet")
    assert answer.content_type == "application/vnd.apache.parquet"
    assert answer.headers["Content-Disposition"] == f'attachment; filename="{bulk_id}-results.parquet"'
    read = pq.read_table(io.BytesIO(answer.data))
    more = ["seq", "job_id", "engine", "attempts", "finished_at", "result"]
    assert read.column_names == [*TABLE, "topic", "input.state", 'a "b"', *TAIL, *more]
    rows = read.to_pylist()
    assert [(row["line"], row["seq"], row["topic"], row["error_code"]) for row in rows] == [
        (2, 1, "=t1", None),
        (4, 3, "=t3", None),
    ]
    assert json.loads(rows[0]["result"])["choices"][0]["message"]["content"] == rows[0]["text"]
    (failed,) = pq.read_table(io.BytesIO(service.read(bulk_id, "errors", format="parquet").data)).to_pylist()
    assert (failed["state"], failed["error_code"], failed["result"], failed["prompt_tokens"]) == (
        *("failed", "bad_request"),
        *(None, None),
    )


def test_a_column_of_the_input_named_like_one_of_ours(service: Service) -> None:
    """In Parquet, too, every column has a name of its own."""
    bulk_id = service.begin(b"prompt,seq,result,line,input.line\na,x,y,z,w\n", "text/csv")
    service.run(bulk_id)
    (row,) = pq.read_table(io.BytesIO(service.read(bulk_id, format="parquet").data)).to_pylist()
    assert (row["input.seq"], row["input.result"], row["input.input.line"]) == ("x", "y", "z")
    assert row["input.line"] == "w"
    assert (row["seq"], row["line"]) == (1, 2)


def test_without_pyarrow(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is not installed, the answer says what to install."""
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "pyarrow" else real(name, *more)
    )
    answer = service.read(service.submit(prompts(1)), format="parquet")
    assert (answer.status_code, answer.json["code"]) == (501, "parquet_unavailable")
    assert "stoker[parquet]" in answer.json["detail"]


# Many of them


@pytest.fixture
def large(service: Service) -> str:
    """Return a bulk of 1,500 results of 16 kB each."""
    body = json.dumps({"choices": [{"message": {"content": "x" * 16_000}}]})
    return service.ended(prompts(1500), lambda job: Settled(job.id, "succeeded", NewResult(200, body)))


@pytest.mark.parametrize("format_", ["jsonl", "csv", "parquet"])
def test_memory_is_bounded(service: Service, large: str, format_: str) -> None:
    """24 MB of results go out through a few, and no database session is held between two blocks."""
    pool = service.database.engine.pool
    answer = service.client.get(f"/v1/bulks/{large}/results?format={format_}", buffered=False)
    size = 0
    tracemalloc.start()
    for block in answer.response:
        size += len(block)
        assert pool.checkedout() == 0  # type: ignore[attr-defined]  # of a QueuePool
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    answer.close()
    assert peak < (40_000_000 if format_ == "parquet" else 16_000_000)
    assert size > 24_000_000 or format_ == "parquet"


def test_who_hangs_up_leaves_nothing(service: Service, large: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read for a client that is gone."""
    pages = 0
    real = bulk_results.page

    def page(*args: Any, **more: Any) -> Any:
        nonlocal pages
        pages += 1
        return real(*args, **more)

    monkeypatch.setattr(bulk_results, "page", page)
    answer = service.client.get(f"/v1/bulks/{large}/results", buffered=False)
    blocks: Iterator[bytes] = iter(answer.response)
    next(blocks)
    answer.close()
    assert pages <= 2


def test_an_outage_before_the_first_line_is_503(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first page is read before the answer begins, so that it can still say that there is none."""
    bulk_id = service.ended(prompts(1))

    def page(*_: Any, **__: Any) -> Any:
        raise DatabaseUnavailable("gone")

    monkeypatch.setattr(bulk_results, "page", page)
    answer = service.read(bulk_id)
    assert (answer.status_code, answer.json["code"]) == (503, "database_unavailable")


def test_an_outage_in_the_middle_breaks_off(
    service: Service, large: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is cut off never looks whole: the answer ends in an error, not in the end of the lines."""
    answer = service.client.get(f"/v1/bulks/{large}/results", buffered=False)
    blocks = iter(answer.response)
    next(blocks)

    def page(*_: Any, **__: Any) -> Any:
        raise DatabaseUnavailable("gone")

    monkeypatch.setattr(bulk_results, "page", page)
    with pytest.raises(DatabaseUnavailable):
        list(blocks)
    answer.close()


# What is not quite JSON

ODD = '{"choices": [{"message": {"content": "a\\ud800\\u0000b"}}], "n": NaN,\r\n "m": 1e999}'


@pytest.mark.parametrize("format_", ["jsonl", "csv", "parquet"])
def test_an_odd_answer(service: Service, format_: str) -> None:
    """What is JSON to Python alone is handed on as it came, on one line; in a table its text is mended."""
    bulk_id = service.begin(prompts(1))
    service.run(bulk_id, lambda job: Settled(job.id, "succeeded", NewResult(200, ODD)))
    data = service.read(bulk_id, format=format_).data
    if format_ == "jsonl":
        assert data.count(b"\n") == 1
        assert ODD.replace("\r\n", "  ").encode() in data
    elif format_ == "csv":
        assert "a\ufffd\x00b".encode() in data
    else:
        (row,) = pq.read_table(io.BytesIO(data)).to_pylist()
        assert (row["text"], row["result"]) == ("a\ufffd\x00b", ODD)
