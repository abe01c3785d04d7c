"""Inputs that cannot be run: the batch fails, and says where and why."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable

import pytest

from .conftest import Server
from .kit import CHAT, Api, Json, faulty, jsonl, refused

row = pytest.mark.row


def without(line: Json, name: str) -> Json:
    """Return a line without one of its fields."""
    return {key: value for key, value in line.items() if key != name}


@row("errors.validation")
def test_an_unknown_file_fails_its_batch(api: Api) -> None:
    """A batch of a file that there is not is taken, and then fails: `invalid_request`, `file_id`, no line."""
    for file_id in (api.unknown_file(), "file-0123456789abcdef0123456789abcdef"):
        batch = api.create(file_id)
        assert batch["status"] in {"validating", "failed"}
        faulty(api.end(batch), "invalid_request", param="file_id", line=None)


@row("errors.validation")
@pytest.mark.parametrize(
    "line",
    ["this is not JSON", '{"custom_id": "a", "method"', "{'custom_id': 'a'}", b"\xff\xfe\x00", "}"],
    ids=["text", "cut off", "quotes", "not UTF-8", "brace"],
)
def test_a_line_that_is_not_json(api: Api, line: str | bytes) -> None:
    """A line that is not JSON fails the batch: `invalid_json_line`, with its number."""
    fault = faulty(api.run(api.line("a"), line, api.line("b")), "invalid_json_line", line=2)
    assert fault["message"] == "This line is not parseable as valid JSON."


@row("errors.validation")
def test_blank_lines_are_counted(api: Api) -> None:
    """The number of a line is that of the file: blank lines count."""
    faulty(api.run(api.line("a"), "", "", "nonsense"), "invalid_json_line", line=4)


@row("errors.validation")
@pytest.mark.parametrize("line", ["[1]", '"text"', "5", "null"])
def test_a_line_that_is_no_object(api: Api, line: str) -> None:
    """JSON that is no object fails the batch, with the line's number."""
    faulty(api.run(api.line("a"), line), line=2)


@row("errors.validation")
@pytest.mark.parametrize("name", ["custom_id", "method", "url", "body"])
def test_a_line_without_a_field(api: Api, name: str) -> None:
    """`custom_id`, `method`, `url` and `body` are all needed: `missing_required_parameter`."""
    ended = api.run(api.line("a"), api.line("b"), without(api.line("c"), name))
    faulty(ended, "missing_required_parameter", param=name, line=3)


@row("errors.validation")
@pytest.mark.parametrize(
    ("name", "value"), [("custom_id", 5), ("body", "text"), ("body", []), ("method", "GET"), ("url", 5)], ids=str
)
def test_a_field_of_another_kind(api: Api, name: str, value: object) -> None:
    """A custom_id or url that is no text, a body that is no object, another method: the batch fails at that field."""
    faulty(api.run(api.line("a"), api.line("b") | {name: value}), param=name, line=2)


@row("errors.validation")
def test_streaming(api: Api) -> None:
    """`stream: true` fails the batch: `streaming_unsupported`."""
    faulty(api.run(api.line("a", stream=True)), "streaming_unsupported", param="body.stream", line=1)


@row("errors.validation")
def test_not_streaming(api: Api) -> None:
    """`stream: false` is fine."""
    assert api.run(api.line("a", stream=False)).batch["request_counts"]["completed"] == 1


@row("errors.validation")
@pytest.mark.parametrize("url", ["/v1/completions", "/v1/nonsense", "https://localhost/v1/chat/completions", ""])
def test_another_url(api: Api, url: str) -> None:
    """A line for another endpoint than the batch's fails it: `invalid_url`."""
    faulty(api.run(api.line("a"), api.line("b") | {"url": url}), "invalid_url", param="url", line=2)


@row("errors.validation")
def test_an_unknown_model(api: Api) -> None:
    """A model that there is not fails the batch: `model_not_found`."""
    faulty(api.run(api.line("a", model="no-such-model")), "model_not_found", param="body.model", line=1)


@row("errors.validation")
def test_no_model(api: Api) -> None:
    """A body without a model fails the batch: `invalid_request`."""
    line = api.line("a")
    del line["body"]["model"]
    faulty(api.run(line), "invalid_request", param="body.model", line=1)


@row("errors.validation")
def test_the_same_custom_id_twice(api: Api) -> None:
    """A custom_id that came before fails the batch: `duplicate_custom_id`."""
    lines = [api.line("a"), api.line("b"), api.line("c"), api.line("b")]
    faulty(api.run(*lines), "duplicate_custom_id", line=4)


@row("errors.validation")
@pytest.mark.parametrize("content", [b"", b"\n\n \r\n", b"\xef\xbb\xbf"], ids=["no bytes", "blank lines", "mark only"])
def test_an_empty_file(api: Api, content: bytes) -> None:
    """A file without a line fails the batch: `empty_file`."""
    faulty(api.end(api.create(api.upload(content)["id"])), "empty_file")


def _nested(api: Api) -> bytes:
    return (
        b'{"custom_id":"a","method":"POST","url":"%s","body":' % CHAT.encode() + b"[" * 100_000 + b"]" * 100_000 + b"}"
    )


@row("errors.validation")
@pytest.mark.parametrize(
    "content",
    [
        lambda api: bytes(range(256)) * 1000,
        lambda api: b"\x00" * 100_000,
        lambda api: b"\n".join([b"x"] * 20_000),
        lambda api: jsonl(api.line("a"))[:-20],
        _nested,
        lambda api: jsonl(json.dumps(api.line("a")).replace('"a"', '"\\u0000\\ud800"')),
        lambda api: jsonl(json.dumps(api.line("a")).replace("8", "1" + "0" * 5000)),
    ],
    ids=["noise", "zeros", "many bad lines", "cut off", "deep", "odd custom_id", "big number"],
)
def test_garbage(api: Api, content: Callable[[Api], bytes]) -> None:
    """Whatever is in a file, its batch ends, and the server goes on."""
    ended = api.end(api.create(api.upload(content(api))["id"]))
    assert ended.batch["status"] in {"failed", "completed"}
    assert ended.batch["status"] == "completed" or ended.faults
    assert api.run(api.line("a")).batch["request_counts"]["completed"] == 1


# Limits


@row("limits")
def test_too_many_lines(api: Api, server: Server) -> None:
    """A file of more than 50,000 lines fails its batch: `too_many_tasks`."""
    lines = (jsonl(api.line(f"{n}")) for n in range(server.needs("max_lines") + 1))
    faulty(api.end(api.create(api.upload(b"".join(lines))["id"])), "too_many_tasks")


@row("limits")
def test_a_file_too_large(api: Api, server: Server) -> None:
    """A file for a batch of more than 200 MB is refused."""
    with tempfile.TemporaryFile() as file:
        file.truncate(server.needs("max_file_bytes") + 1_000_000)
        file.seek(0)
        assert refused(api.try_upload(file), 400)["type"] == "invalid_request_error"


@row("limits")
def test_a_long_line(api: Api, server: Server) -> None:
    """A line of nearly 1 MB is taken; whether the model has room for it is the engine's business."""
    ended = api.run(api.line("a"), api.line("long", prompt="x" * int(server.needs("max_line_bytes") * 0.9)))
    assert ended.batch["status"] == "completed"
    assert ended.custom_ids == ["a", "long"]


@row("limits")
@pytest.mark.parametrize("times", [1.1, 50])
def test_a_line_too_long(api: Api, server: Server, times: float) -> None:
    """A line of more than 1 MB, even of 50 MB, fails the batch, with its number."""
    size = int(server.needs("max_line_bytes") * times)
    faulty(api.run(api.line("a"), api.line("b", prompt="x" * size)), line=2)
