"""Lines: as files spell them, and as they come out."""

from __future__ import annotations

import json

import pytest

from .kit import Api, Ended, every_once, faulty, jsonl

row = pytest.mark.row

BOM = b"\xef\xbb\xbf"


# Input


def spelled(api: Api) -> dict[str, bytes]:
    """Return the same two lines, as files may spell them."""
    plain = jsonl(api.line("a"), api.line("b"))
    return {
        "plain": plain,
        "no newline at the end": plain.rstrip(b"\n"),
        "CRLF": plain.replace(b"\n", b"\r\n"),
        "byte order mark": BOM + plain,
        "blank lines": b"\n" + plain.replace(b"\n", b"\n\n  \n"),
        "all at once": BOM + b"\r\n" + plain.replace(b"\n", b"\r\n\r\n").rstrip(),
        "spaces around": b"".join(b"  " + line + b" \t\n" for line in plain.splitlines()),
    }


@row("lines.input")
@pytest.mark.parametrize(
    "how",
    ["plain", "no newline at the end", "CRLF", "byte order mark", "blank lines", "all at once", "spaces around"],
)
def test_spellings(api: Api, how: str) -> None:
    """A byte order mark, CRLF, blank lines, spaces and a missing last newline do not matter."""
    ended = api.end(api.create(api.upload(spelled(api)[how])["id"]))
    assert ended.batch["status"] == "completed", ended.batch
    assert ended.batch["request_counts"] == {"total": 2, "completed": 2, "failed": 0}
    every_once(ended, ["a", "b"])


@row("lines.input")
def test_custom_ids_come_back(api: Api) -> None:
    """Any text is a custom_id, and comes back as it is."""
    names = ["with spaces", "Größe-数据-🙂", '"quoted" \\ and\ttabbed', "1", "x" * 200, "</script>"]
    every_once(api.run(*(api.line(name) for name in names)), names)


@row("lines.input")
def test_more_fields_do_no_harm(api: Api) -> None:
    """Fields that a line does not need are let through."""
    ended = api.run(api.line("a") | {"comment": {"of": ["mine"]}})
    assert ended.batch["status"] == "completed"


@row("lines.input")
def test_the_order_of_fields(api: Api) -> None:
    """The fields of a line may stand in any order."""
    assert api.run(dict(reversed(api.line("a").items()))).batch["request_counts"]["completed"] == 1


@row("lines.input")
def test_escapes_in_a_body(api: Api) -> None:
    """What JSON escapes reaches the engine: quotes, line ends, characters in two halves."""
    odd = json.dumps(api.line("odd", prompt="PLACE")).replace("PLACE", '\\ud83d\\ude42 \\u2028 \\u0085 \\n \\" \\u007f')
    assert api.run(odd).batch["request_counts"] == {"total": 1, "completed": 1, "failed": 0}


@row("lines.input")
@pytest.mark.parametrize("escape", ["\\u0000", "\\ud800"], ids=["NUL", "half a character"])
def test_what_is_no_text(api: Api, escape: str) -> None:
    """An escape that is no character costs its own line at most, or fails the batch with the line's number."""
    odd = json.dumps(api.line("odd", prompt="PLACE")).replace("PLACE", escape)
    ended = api.run(api.line("a"), odd, api.line("b"))
    if ended.batch["status"] == "failed":
        faulty(ended, line=2)
    else:
        every_once(ended, ["a", "odd", "b"])
        assert {line["custom_id"] for line in ended.output} >= {"a", "b"}


# Output


@row("lines.output")
def test_the_shape_of_an_answer(mixed: Ended) -> None:
    """An output line has an id of its own, its custom_id, the answer with status 200 and request id, and no error."""
    for line in mixed.output:
        assert set(line) == {"id", "custom_id", "response", "error"}
        assert line["id"].startswith("batch_req_")
        assert set(line["response"]) == {"status_code", "request_id", "body"}
        assert line["response"]["status_code"] == 200
        assert isinstance(line["response"]["request_id"], str)
        assert line["response"]["request_id"]
        assert line["error"] is None


@row("lines.output")
def test_ids_are_unique(mixed: Ended) -> None:
    """No two lines have the same id, over both files."""
    ids = [line["id"] for line in [*mixed.output, *mixed.errors]]
    assert len(set(ids)) == len(ids) == 5


@row("lines.output")
def test_the_body_is_the_endpoints_own(mixed: Ended, api: Api) -> None:
    """The body of an answer is the endpoint's object, as it would answer one request."""
    for line in mixed.output:
        body = line["response"]["body"]
        assert body["object"] == "chat.completion"
        assert body["model"].startswith(api.model)
        assert body["choices"][0]["message"]["role"] == "assistant"
        assert isinstance(body["choices"][0]["message"]["content"], str)
        assert body["usage"]["total_tokens"] > 0


@row("lines.output")
def test_files_of_one_line_each(api: Api, mixed: Ended) -> None:
    """Output and error files are JSON Lines: UTF-8, one object a line, a newline after each, nothing else."""
    for name in ("output_file_id", "error_file_id"):
        content = api.content(mixed.batch[name])
        assert content.endswith(b"}\n")
        assert all(isinstance(json.loads(line), dict) for line in content.decode().split("\n")[:-1])


# Errors


@row("lines.errors")
def test_the_shape_of_a_refusal(mixed: Ended) -> None:
    """What the engine refused has its status and its error in `response`, and null as its own `error`."""
    for line in mixed.errors:
        assert set(line) == {"id", "custom_id", "response", "error"}
        assert line["id"].startswith("batch_req_")
        assert 400 <= line["response"]["status_code"] < 500
        error = line["response"]["body"]["error"]
        assert set(error) >= {"message", "type", "param", "code"}
        assert error["message"]
        assert line["error"] is None


@row("lines.errors")
def test_the_shape_of_what_never_ran(cancelled: Ended) -> None:
    """A line that was cancelled has no response, and the error `batch_cancelled`."""
    assert cancelled.errors
    for line in cancelled.errors:
        assert set(line) == {"id", "custom_id", "response", "error"}
        assert line["response"] is None
        assert line["error"]["code"] == "batch_cancelled"
        assert line["error"]["message"]


# Which line is where


@row("lines.ends")
def test_each_line_is_in_one_file(mixed: Ended) -> None:
    """Every custom_id comes once: what succeeded in the output file, what did not in the error file."""
    assert mixed.batch["status"] == "completed"
    assert sorted(line["custom_id"] for line in mixed.output) == ["a", "b", "c"]
    assert sorted(line["custom_id"] for line in mixed.errors) == ["bad-1", "bad-2"]
    assert mixed.batch["request_counts"] == {"total": 5, "completed": 3, "failed": 2}


@row("lines.ends")
def test_all_lines_failed(bad: Ended) -> None:
    """A batch all of whose lines failed is `completed`, with an error file and no output file."""
    assert bad.batch["status"] == "completed"
    assert bad.batch["output_file_id"] is None
    assert bad.batch["error_file_id"] is not None
    assert bad.batch["request_counts"] == {"total": 2, "completed": 0, "failed": 2}
    every_once(bad, ["bad-1", "bad-2"])


@row("lines.ends")
def test_no_line_failed(good: Ended) -> None:
    """A batch without failures has no error file."""
    assert good.batch["error_file_id"] is None
    assert good.batch["output_file_id"] is not None
    every_once(good, ["a", "b", "c"])


@row("lines.ends")
def test_a_thousand_lines(api: Api) -> None:
    """Of a thousand lines, some of them refused, each comes back once, and the counts are those of the files."""
    names = [f"line-{n}" for n in range(1000)]
    lines = [api.refused_line(name) if n % 10 == 0 else api.line(name) for n, name in enumerate(names)]
    ended = api.run(*lines)
    every_once(ended, names)
    assert ended.batch["request_counts"] == {"total": 1000, "completed": 900, "failed": 100}
    assert (len(ended.output), len(ended.errors)) == (900, 100)
