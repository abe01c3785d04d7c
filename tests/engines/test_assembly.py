"""Whole answers out of the events of their streams."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tasks.engines.assembly import Assembly, usage_of
from tasks.engines.base import Usage

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
RESPONSES = "/v1/responses"
HEAD = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": "tiny"}


def chunk(delta: dict[str, Any], index: int = 0, **rest: Any) -> dict[str, Any]:
    """Make one event of a chat."""
    return {**HEAD, "choices": [{"index": index, "delta": delta, "finish_reason": None, **rest}]}


def assembled(endpoint: str, *events: dict[str, Any], choices: int = 1) -> Assembly:
    """Put events together."""
    assembly = Assembly(endpoint, choices)
    for event in events:
        assembly.add(json.dumps(event))
    return assembly


def answer(endpoint: str, *events: dict[str, Any]) -> Any:
    """Return the whole answer."""
    return json.loads(assembled(endpoint, *events).body())


def test_a_chat() -> None:
    """Deltas become a message, the usage the one of the last chunk, and the object the one without a stream."""
    assembly = assembled(
        CHAT,
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "Hello"}),
        chunk({"content": " there"}, finish_reason="stop", stop_reason=3),
        {**HEAD, "choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 3}, "system_fingerprint": "f"},
    )
    assert json.loads(assembly.body()) == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 7,
        "model": "tiny",
        "usage": {"prompt_tokens": 2, "completion_tokens": 3},
        "system_fingerprint": "f",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello there"},
                "logprobs": None,
                "finish_reason": "stop",
                "stop_reason": 3,
            }
        ],
    }
    assert assembly.usage == Usage(2, 3)
    assert assembly.complete
    assert assembly.only_usage
    assert assembly.error is None


def test_it_is_complete_when_every_choice_is() -> None:
    """A choice that goes on, or has not begun, makes it incomplete."""
    first, second = chunk({"content": "a"}, finish_reason="stop"), chunk({"content": "b"}, 1)
    assert not assembled(CHAT).complete
    assert assembled(CHAT, first).complete
    assert not assembled(CHAT, first, choices=2).complete
    assert not assembled(CHAT, first, second).complete
    assert assembled(CHAT, first, second, chunk({}, 1, finish_reason="length"), choices=2).complete


def test_only_the_usage_chunk_is_only_usage() -> None:
    """Usage beside a delta is not alone, nor is a chunk without choices that tells something else."""
    usage = {"prompt_tokens": 1, "completion_tokens": 1}
    assert not assembled(CHAT, {**chunk({"content": "a"}), "usage": usage}).only_usage
    assert not assembled(CHAT, {**HEAD, "choices": [], "usage": None, "prompt_filter_results": []}).only_usage
    assert assembled(CHAT, {**HEAD, "usage": usage}).only_usage


def test_tool_calls_are_merged_by_index() -> None:
    """Arguments grow, ids and names come once, the order is that of the indices, which the answer does not have."""
    choice = answer(
        CHAT,
        chunk({"tool_calls": [{"index": 1, "id": "b", "type": "function", "function": {"name": "g"}}]}),
        chunk(
            {"tool_calls": [{"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}]}
        ),
        chunk({"tool_calls": [{"index": 0, "id": "", "type": "function", "function": {"arguments": '{"x"'}}]}),
        chunk({"tool_calls": [{"index": 1, "id": None, "function": {"name": None, "arguments": "{}"}}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]}, finish_reason="tool_calls"),
    )["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert choice["message"]["tool_calls"] == [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}},
        {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]


def test_tool_calls_without_an_index_go_on_until_a_new_id() -> None:
    """Some servers leave out the index: an id that was not seen begins a call, what has none goes on with the last."""
    message = answer(
        CHAT,
        chunk({"tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{"}}]}),
        chunk({"tool_calls": [{"function": {"arguments": "}"}}]}),
        chunk({"tool_calls": [{"id": "b", "function": {"name": "g", "arguments": "[]"}}]}),
    )["choices"][0]["message"]
    assert [call["function"]["arguments"] for call in message["tool_calls"]] == ["{}", "[]"]


def test_reasoning_refusals_and_what_nobody_knows() -> None:
    """Texts grow under any name, objects are merged, the rest is replaced; padding is left out."""
    message = answer(
        CHAT,
        chunk({"reasoning": "be", "reasoning_content": "so", "refusal": "N", "mood": 1, "audio": {"id": "x"}}),
        chunk({"reasoning": "cause", "reasoning_content": "", "refusal": "o", "mood": 2, "tool_calls": []}),
        chunk({"reasoning": None, "audio": {"id": "x", "data": "AA"}, "obfuscation": "zzz"}),
        chunk({"audio": {"data": "BB"}, "annotations": [{"type": "url"}]}),
    )["choices"][0]["message"]
    assert message == {
        "role": "assistant",
        "content": None,
        "reasoning": "because",
        "reasoning_content": "so",
        "refusal": "No",
        "mood": 2,
        "audio": {"id": "x", "data": "AABB"},
        "annotations": [{"type": "url"}],
    }


def test_logprobs_of_a_chat_are_one_list() -> None:
    """Each chunk brings the tokens that are its own; what is beside the delta is replaced, not joined."""
    first, second = ({"token": token, "logprob": -0.5, "top_logprobs": []} for token in ("index", "b"))
    choice = answer(
        CHAT,
        chunk({"content": "index"}, logprobs={"content": [first], "refusal": None}, filters={"hate": "safe"}),
        chunk({"content": "b"}, logprobs={"content": [second]}, filters={"hate": "safe"}, token_ids=[1]),
        chunk({}, logprobs=None, token_ids=[2]),
    )["choices"][0]
    assert choice["logprobs"] == {"content": [first, second], "refusal": None}
    assert choice["token_ids"] == [1, 2]
    assert choice["filters"] == {"hate": "safe"}


def test_completions() -> None:
    """Texts are joined and the parallel lists of logprobs stay parallel."""
    head = {"id": "cmpl-1", "object": "text_completion", "created": 7, "model": "tiny"}

    def piece(index: int, text: str, offset: int, **rest: Any) -> dict[str, Any]:
        logprobs = {"tokens": [text], "token_logprobs": [None], "text_offset": [offset], "top_logprobs": [{"index": 0}]}
        return {**head, "choices": [{"index": index, "text": text, "logprobs": logprobs, **rest}]}

    made = answer(
        COMPLETIONS,
        piece(1, "x", 0, prompt_logprobs=[None], finish_reason=None),
        piece(0, "a", 0, finish_reason=None),
        piece(0, "b", 1, finish_reason="stop"),
        piece(1, "y", 1, finish_reason="length"),
    )
    assert made["object"] == "text_completion"
    assert [(one["text"], one["finish_reason"]) for one in made["choices"]] == [("ab", "stop"), ("xy", "length")]
    assert made["choices"][0]["logprobs"] == {
        "tokens": ["a", "b"],
        "token_logprobs": [None, None],
        "text_offset": [0, 1],
        "top_logprobs": [{"index": 0}, {"index": 0}],
    }
    assert made["choices"][1]["prompt_logprobs"] == [None]


@pytest.mark.parametrize("end", ["completed", "incomplete", "failed"])
def test_a_response_comes_whole(end: str) -> None:
    """The last event of a response carries all of it."""
    whole = {"id": "resp_1", "object": "response", "usage": {"input_tokens": 2, "output_tokens": 3}}
    started = assembled(RESPONSES, {"type": "response.created", "response": {"id": "resp_1"}})
    assert not started.complete
    started.add(json.dumps({"type": "response.output_text.delta", "delta": "x"}))
    started.add(json.dumps({"type": f"response.{end}", "response": whole, "sequence_number": 3}))
    assert started.complete
    assert json.loads(started.body()) == whole
    assert started.usage == Usage(2, 3)


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"error": {"message": "no", "code": 500}}, "no"),
        ({"error": "overloaded", "error_type": "overloaded"}, "overloaded"),
        ({"object": "error", "message": "no", "code": 400}, "no"),
        ({"type": "error", "message": "no", "code": "server_error"}, "no"),
    ],
)
def test_errors_in_the_stream(event: dict[str, Any], message: str) -> None:
    """However a server writes an error in the middle of a stream, it is found, and is no part of the answer."""
    for endpoint in (CHAT, RESPONSES):
        assembly = assembled(endpoint, event)
        assert assembly.error is not None
        assert assembly.error["message"] == message
        assert not assembly.complete
    assert "error" not in answer(CHAT, event)


@pytest.mark.parametrize(
    "data",
    [
        "",
        "[DONE]",
        "[]",
        "{",
        "[" * 100_000,
        '{"choices": 3}',
        '{"choices": [3]}',
        '{"choices": [{"index": "x"}]}',
        '{"choices": [{"delta": "x"}]}',
        '{"choices": [{"index": 0, "delta": []}]}',
        '{"choices": [{"logprobs": 3}]}',
        '{"usage": {"prompt_tokens": NaN}}',
    ],
)
def test_what_is_no_event_is_a_value_error(data: str) -> None:
    """Neither JSON that is no event nor something that is no JSON gets into an answer."""
    with pytest.raises(ValueError, match=r".+"):
        Assembly(CHAT).add(data)


def test_a_text_is_a_text() -> None:
    """A completion's text is no number."""
    with pytest.raises(ValueError, match="text"):
        Assembly(COMPLETIONS).add('{"choices": [{"text": 3}]}')


@pytest.mark.parametrize("data", ["{}", '{"type": 3}', '{"type": "response.completed"}', "null"])
def test_what_is_no_event_of_a_response(data: str) -> None:
    """An event of a response has a type, and the last one the response."""
    with pytest.raises(ValueError, match=r".+"):
        Assembly(RESPONSES).add(data)


def test_embeddings_have_no_streams() -> None:
    """There is nothing to assemble for an endpoint without streams."""
    with pytest.raises(ValueError, match="no streams"):
        Assembly("/v1/embeddings")


def test_the_first_id_time_and_model_stay() -> None:
    """Servers that make up an id for each chunk, or leave it out at first, still give one answer one id."""
    made = answer(CHAT, {**HEAD, "id": "", "created": 0, "choices": []}, {**HEAD, "id": "a"}, {**HEAD, "id": "b"})
    assert (made["id"], made["created"], made["model"]) == ("a", 7, "tiny")


def test_half_a_character_stays_readable() -> None:
    """A character that was split between two deltas is whole again; half of one is an escape, which UTF-8 can carry."""
    whole = assembled(CHAT, chunk({"content": "\ud83d"}), chunk({"content": "\ude00"})).body()
    half = assembled(CHAT, chunk({"content": "\ud83d"})).body()
    assert json.loads(whole)["choices"][0]["message"]["content"] == "\U0001f600"
    assert "\\ud83d" in half
    half.encode()


def test_usage_of_any_endpoint() -> None:
    """Both vocabularies are understood, and what is not a number counts nothing."""
    chat = {"prompt_tokens": 1, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}}
    response = {"input_tokens": 1, "output_tokens": 2, "output_tokens_details": {"reasoning_tokens": 2}}
    assert usage_of({"usage": chat}) == Usage(1, 2, 1, 0)
    assert usage_of({"usage": response}) == Usage(1, 2, 0, 2)
    assert usage_of({"usage": {"prompt_tokens": "x", "prompt_tokens_details": 3}}) == Usage()
    assert usage_of({"usage": None}) == usage_of({"usage": 3}) == usage_of({}) == Usage()


@pytest.mark.parametrize("count", [-1, 2**31, 10**400, 1.5, "7", None], ids=range(6))
def test_a_count_of_tokens_that_cannot_be_is_none(count: Any) -> None:
    """What no database has room for, and what is no count, is not what an answer cost."""
    assert usage_of({"usage": {"prompt_tokens": 2, "completion_tokens": count}}) == Usage(2, 0)


def test_an_empty_reason_is_no_end() -> None:
    """Some servers write an empty finish reason until there is one."""
    begun = chunk({"content": "a"}, finish_reason="")
    assert not assembled(CHAT, begun).complete
    assert assembled(CHAT, begun, chunk({}, finish_reason="stop")).complete


def test_what_has_begun_may_end_before_all_is_there() -> None:
    """`finished` looks at the choices that have begun, of which there must be one."""
    first, second = chunk({"content": "a"}, finish_reason="stop"), chunk({"content": "b"}, 1)
    assert not assembled(CHAT).finished
    assert assembled(CHAT, first, choices=2).finished
    assert not assembled(CHAT, first, choices=2).complete
    assert not assembled(CHAT, first, second, choices=2).finished


@pytest.mark.parametrize("calls", [{"a": 1}, [1], [{"index": "x"}], "x", 5])
def test_tool_calls_that_are_none(calls: Any) -> None:
    """They are a ValueError at the latest when the answer is written."""
    with pytest.raises(ValueError, match="tool call"):
        assembled(CHAT, chunk({"tool_calls": calls}, finish_reason="stop")).body()
