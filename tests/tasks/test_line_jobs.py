"""One line to a job, or to what is wrong with it: the forms, the codes, and bytes that stay as they were sent."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import calls
from models.calls import CHAT, COMPLETIONS, DEFAULT_ANSWER_TOKENS, EMBEDDINGS, RESPONSES
from tasks.line_jobs import (
    MOST_TOKENS,
    LineError,
    LineJob,
    Rules,
    batch_line,
    bulk_line,
    csv_line,
    remade,
    too_large,
)

CANARY = "c4n4ry-in-the-prompt"
MESSAGES = [{"role": "user", "content": CANARY}]
BODY = {"model": "demo", "messages": MESSAGES}
BATCH = {"custom_id": "a", "method": "POST", "url": CHAT, "body": BODY}
P = {"prompt": CANARY}
KNOWN = {"demo": 1000, "big": None}
RULES = Rules(KNOWN, endpoint=CHAT)
BULK = Rules(KNOWN, model="demo")


def line(values: object) -> bytes:
    """Return a line."""
    return json.dumps(values).encode()


def job_of(values: object, rules: Rules = BULK) -> LineJob:
    """Return the job of a line of a bulk that is good."""
    made = bulk_line(line(values), rules)
    assert isinstance(made, LineJob), made
    return made


def sent(job: LineJob | LineError) -> dict[str, Any]:
    """Return what the engine gets."""
    assert isinstance(job, LineJob), job
    body: dict[str, Any] = json.loads(job.body)
    return body


def without(values: dict[str, Any], name: str) -> dict[str, Any]:
    """Return an object without one of its members."""
    return {key: value for key, value in values.items() if key != name}


UNREADABLE = [
    (b"{", "invalid_json_line"),
    (b"not json", "invalid_json_line"),
    (b'{"a":NaN}', "invalid_json_line"),
    (b'{"a":"\xff"}', "invalid_json_line"),
    (b"\x1f\x8b\x08\x00\xff", "invalid_json_line"),
    (b"\xef\xbb\xbf{}", "invalid_json_line"),
    (b"[]", "invalid_json_line"),
    (b'"text"', "invalid_json_line"),
    (b"null", "invalid_json_line"),
    (rb'{"prompt":"\u0000"}', "nul_character"),
    (rb'{"prompt":"\ud800"}', "lone_surrogate"),
    (b'{"a":1e999}', "number_out_of_range"),
    (b'{"a":' + b"[" * 64 + b"]" * 64 + b"}", "nested_too_deep"),
    (b"[" * 100_000 + b"]" * 100_000, "nested_too_deep"),
]


@pytest.mark.parametrize(("data", "code"), UNREADABLE)
def test_what_cannot_be_read_has_a_code(data: bytes, code: str) -> None:
    """Whatever is no JSON object, or holds what no database stores, is refused by both kinds of uploads alike."""
    for found in (batch_line(data, RULES), bulk_line(data, BULK)):
        assert isinstance(found, LineError)
        assert (found.code, found.param, found.custom_id) == (code, None, None)


def test_bad_json_has_the_words_of_openai() -> None:
    """Clients may look for these words."""
    found = batch_line(b"{", RULES)
    assert found == LineError("invalid_json_line", "This line is not parseable as valid JSON.")


BAD_BATCH_LINES: list[tuple[dict[str, Any], str, str]] = [
    *((without(BATCH, name), "missing_required_parameter", name) for name in BATCH),
    *((BATCH | {name: None}, "missing_required_parameter", name) for name in BATCH),
    (BATCH | {"custom_id": 7}, "invalid_custom_id", "custom_id"),
    (BATCH | {"custom_id": ""}, "invalid_custom_id", "custom_id"),
    (BATCH | {"custom_id": "a" * 513}, "invalid_custom_id", "custom_id"),
    (BATCH | {"custom_id": "a" * 10_000}, "invalid_custom_id", "custom_id"),
    (BATCH | {"method": "GET"}, "invalid_request", "method"),
    (BATCH | {"method": ["POST"]}, "invalid_request", "method"),
    (BATCH | {"url": COMPLETIONS}, "invalid_url", "url"),
    (BATCH | {"url": {}}, "invalid_url", "url"),
    (BATCH | {"body": "text"}, "invalid_request", "body"),
    (BATCH | {"body": []}, "invalid_request", "body"),
    (BATCH | {"body": BODY | {"stream": True}}, "streaming_unsupported", "body.stream"),
    (BATCH | {"body": BODY | {"stream": "yes"}}, "invalid_request", "body.stream"),
    (BATCH | {"body": without(BODY, "model")}, "invalid_request", "body.model"),
    (BATCH | {"body": BODY | {"model": None}}, "invalid_request", "body.model"),
    (BATCH | {"body": BODY | {"model": {}}}, "invalid_request", "body.model"),
    (BATCH | {"body": BODY | {"model": ""}}, "model_not_found", "body.model"),
    (BATCH | {"body": BODY | {"model": "other"}}, "model_not_found", "body.model"),
]


@pytest.mark.parametrize(("values", "code", "param"), BAD_BATCH_LINES)
def test_each_bad_line_of_a_batch_has_its_code(values: dict[str, Any], code: str, param: str) -> None:
    """The code and the field are those of OpenAI; the id is told where it is one; nothing of a prompt is."""
    found = batch_line(line(values), RULES)
    assert isinstance(found, LineError)
    assert (found.code, found.param) == (code, param)
    assert found.custom_id in ({"a"} if values.get("custom_id") == "a" else {None, "7"})
    assert CANARY not in repr(found)


def test_missing_fields_have_the_words_of_openai() -> None:
    """Clients may look for these words."""
    found = batch_line(b"{}", RULES)
    assert found == LineError("missing_required_parameter", "Missing required parameter: 'custom_id'.", "custom_id")


def test_a_line_of_a_batch_is_sent_as_it_is() -> None:
    """The body goes on byte for byte; other fields of the line do not matter; the engine judges the content."""
    body = b'{ "model":"demo",\t"messages": "what", "seed":12345678901234567890123, "x":"\\u00e9", "t":1.0E+2}'
    data = b'{"custom_id":"\\u00e9","method":"POST","url":"/v1/chat/completions","body":' + body + b',"more":[1]}'
    made = batch_line(data, replace(RULES, defaults={"max_tokens": b"5"}, model="big"))
    assert made == LineJob("é", "demo", CHAT, body.decode(), len(body) // 4 + DEFAULT_ANSWER_TOKENS)


def test_ids_may_be_as_long_as_the_column() -> None:
    """512 characters are allowed, whatever their bytes."""
    made = batch_line(line(BATCH | {"custom_id": "é" * 512}), RULES)
    assert isinstance(made, LineJob)
    assert made.custom_id == "é" * 512


@pytest.mark.parametrize(
    ("more", "answer"),
    [
        ({}, DEFAULT_ANSWER_TOKENS),
        ({"max_tokens": 10}, 10),
        ({"max_tokens": 10, "n": 3}, 30),
        ({"max_tokens": 10, "max_completion_tokens": 7}, 7),
        ({"max_tokens": -5, "n": "x"}, DEFAULT_ANSWER_TOKENS),
        ({"max_tokens": True, "n": 2}, DEFAULT_ANSWER_TOKENS),
        ({"max_tokens": 10**30}, MOST_TOKENS),
    ],
)
def test_tokens_are_the_text_and_the_answer(more: dict[str, Any], answer: int) -> None:
    """The estimate counts the body and what the answer may have, and never more than can be stored."""
    made = batch_line(line(BATCH | {"body": BODY | more}), RULES)
    assert isinstance(made, LineJob)
    assert made.tokens == min(MOST_TOKENS, len(made.body) // 4 + answer)


def test_prompts_that_begin_alike_are_known_by_it_in_every_form() -> None:
    """Lines of batches, bulks and CSV, and remade ones, have the number that the same call has anywhere else."""
    system = "You are a careful assistant. " * 20
    messages = [{"role": "system", "content": system}, {"role": "user", "content": "and?"}]
    body = {"model": "demo", "messages": messages}
    found = [
        job_of({"messages": messages}),
        job_of({"prompt": "other", "system": system}),
        job_of({"prompt": "third"}, replace(BULK, system=system)),
        job_of({"endpoint": CHAT, "body": body}),
        batch_line(line({**BATCH, "body": body}), RULES),
        csv_line({"prompt": "fourth", "system": system}, BULK),
        remade(json.dumps(body, indent=1), CHAT, BULK),
    ]
    want = calls.prefix(CHAT, json.dumps(messages).encode())
    assert want > 0
    assert [made.prefix for made in found if isinstance(made, LineJob)] == [want] * len(found)
    assert job_of(P).prefix == 0


def test_a_line_without_content_has_no_prefix() -> None:
    """A batch's body is sent as it is; what is missing is for the engine to say."""
    made = batch_line(line({**BATCH, "body": {"model": "demo"}}), RULES)
    assert isinstance(made, LineJob)
    assert made.prefix == 0


def test_embeddings_have_no_answer() -> None:
    """Only their text counts."""
    made = job_of({"input": CANARY, "max_tokens": 50})
    assert (made.endpoint, made.tokens) == (EMBEDDINGS, len(made.body) // 4)


@pytest.mark.parametrize(
    ("values", "endpoint", "body"),
    [
        (P, CHAT, {"messages": MESSAGES}),
        (P | {"system": "s"}, CHAT, {"messages": [{"role": "system", "content": "s"}, *MESSAGES]}),
        (P | {"endpoint": COMPLETIONS}, COMPLETIONS, P),
        ({"messages": MESSAGES}, CHAT, {"messages": MESSAGES}),
        ({"input": ["a", "b"]}, EMBEDDINGS, {"input": ["a", "b"]}),
        ({"input": "a", "endpoint": RESPONSES}, RESPONSES, {"input": "a"}),
        ({"endpoint": CHAT, "body": {"messages": MESSAGES}}, CHAT, {"messages": MESSAGES}),
        ({"url": COMPLETIONS, "body": {"prompt": [1, 2]}}, COMPLETIONS, {"prompt": [1, 2]}),
        ({"endpoint": CHAT, "url": CHAT, "method": "POST", "body": BODY}, CHAT, {"messages": MESSAGES}),
        ({"endpoint": CHAT, "body": BODY | {"metadata": {"a": "b"}}}, CHAT, BODY | {"metadata": {"a": "b"}}),
        (
            P | {"guided": {"a": [1]}, "stream": False},
            CHAT,
            {"messages": MESSAGES, "guided": {"a": [1]}, "stream": False},
        ),
        (P | {"custom_id": "a", "id": "b", "lane": None, "messages": None}, CHAT, {"messages": MESSAGES}),
    ],
)
def test_each_form_of_a_line_becomes_its_call(values: dict[str, Any], endpoint: str, body: dict[str, Any]) -> None:
    """Short forms and long ones end as the body of an endpoint, with the bulk's model, other fields unchanged."""
    made = job_of(values)
    assert (made.endpoint, made.model) == (endpoint, "demo")
    assert sent(made) == {"model": "demo", **body}


BAD_BULK_LINES: list[tuple[dict[str, Any], str, str]] = [
    ({}, "missing_required_parameter", "prompt"),
    ({"prompt": None}, "missing_required_parameter", "prompt"),
    (P | {"messages": MESSAGES}, "one_of", "messages"),
    ({"prompt": ""}, "invalid_request", "prompt"),
    ({"prompt": [CANARY]}, "invalid_request", "prompt"),
    ({"messages": []}, "invalid_request", "messages"),
    ({"messages": CANARY}, "invalid_request", "messages"),
    ({"input": 5}, "invalid_request", "input"),
    (P | {"endpoint": EMBEDDINGS}, "invalid_request", "endpoint"),
    (P | {"endpoint": [1]}, "invalid_request", "endpoint"),
    (P | {"system": 5}, "invalid_request", "system"),
    (P | {"system": ""}, "invalid_request", "system"),
    (P | {"system": "s", "endpoint": COMPLETIONS}, "invalid_request", "system"),
    ({"messages": MESSAGES, "system": "s"}, "invalid_request", "system"),
    (P | {"lane": "bulk"}, "unsupported_on_a_line", "lane"),
    (P | {"metadata": {}}, "unsupported_on_a_line", "metadata"),
    (P | {"webhook_url": "https://a.example"}, "unsupported_on_a_line", "webhook_url"),
    (P | {"webhook": {}}, "unsupported_on_a_line", "webhook"),
    (P | {"expires_in": 5}, "unsupported_on_a_line", "expires_in"),
    (P | {"custom_id": 1.5}, "invalid_custom_id", "custom_id"),
    (P | {"id": True}, "invalid_custom_id", "custom_id"),
    (P | {"id": "a" * 10_000}, "invalid_custom_id", "custom_id"),
    (P | {"stream": True}, "streaming_unsupported", "stream"),
    (P | {"model": "other"}, "model_not_found", "model"),
    (P | {"model": 5}, "invalid_request", "model"),
    (P | {"max_tokens": 0}, "invalid_request", "max_tokens"),
    (P | {"max_tokens": "5"}, "invalid_request", "max_tokens"),
    (P | {"max_tokens": True}, "invalid_request", "max_tokens"),
    (P | {"max_completion_tokens": 1001}, "invalid_request", "max_completion_tokens"),
    (P | {"n": 1.0}, "invalid_request", "n"),
    ({"custom_id": "a", "method": "POST", "url": CHAT}, "missing_required_parameter", "body"),
    ({"body": BODY}, "missing_required_parameter", "endpoint"),
    ({"url": "/v1/nothing", "body": BODY}, "invalid_url", "url"),
    ({"endpoint": {}, "body": BODY}, "missing_required_parameter", "endpoint"),
    ({"endpoint": [CHAT], "body": BODY}, "invalid_url", "endpoint"),
    ({"endpoint": COMPLETIONS, "url": CHAT, "body": BODY}, "invalid_request", "endpoint"),
    ({"method": "GET", "url": CHAT, "body": BODY}, "invalid_request", "method"),
    ({"method": ["POST"], "url": CHAT, "body": BODY}, "invalid_request", "method"),
    ({"url": CHAT, "body": CANARY}, "invalid_request", "body"),
    ({"url": CHAT, "body": {}}, "missing_required_parameter", "body.messages"),
    ({"url": CHAT, "body": P}, "missing_required_parameter", "body.messages"),
    ({"url": COMPLETIONS, "body": {"prompt": []}}, "invalid_request", "body.prompt"),
    ({"url": CHAT, "body": BODY, "temperature": 1}, "beside_body", "temperature"),
    ({"url": CHAT, "body": BODY, "x" * 1000: 1}, "beside_body", "x" * 64),
    ({"url": CHAT, "body": BODY, "model": "big"}, "invalid_request", "body.model"),
    ({"url": CHAT, "body": BODY, "model": {}}, "invalid_request", "body.model"),
    ({"url": CHAT, "body": BODY | {"stream": True}}, "streaming_unsupported", "body.stream"),
    ({"url": CHAT, "body": BODY | {"max_tokens": -1}}, "invalid_request", "body.max_tokens"),
]


@pytest.mark.parametrize(("values", "code", "param"), BAD_BULK_LINES)
def test_each_bad_line_of_a_bulk_has_its_code(values: dict[str, Any], code: str, param: str) -> None:
    """The code and the field tell what to change; the message is short and repeats nothing of a prompt."""
    found = bulk_line(line(values), BULK)
    assert isinstance(found, LineError)
    assert (found.code, found.param) == (code, param)
    assert CANARY not in repr(found)
    assert len(repr(found)) < 1000


def test_a_line_without_any_model_is_refused() -> None:
    """Where neither the line nor the bulk names one."""
    found = bulk_line(line(P | {"custom_id": "a"}), Rules(KNOWN))
    assert found == LineError("invalid_request", "Missing required parameter: 'model'.", "model", "a")
    found = bulk_line(line(P | {"id": 7}), Rules(KNOWN))
    assert isinstance(found, LineError)
    assert found.custom_id == "7"


@pytest.mark.parametrize(
    ("values", "custom_id"),
    [
        ({"custom_id": "a", "id": "b"}, "a"),
        ({"id": "b"}, "b"),
        ({"custom_id": None, "id": 12345678901234567890123}, "12345678901234567890123"),
        ({"custom_id": -7}, "-7"),
        ({}, None),
    ],
)
def test_an_id_may_be_a_number_or_called_id(values: dict[str, Any], custom_id: str | None) -> None:
    """A line is known by its custom_id, or else its id."""
    assert job_of(P | values).custom_id == custom_id


def test_values_keep_their_bytes() -> None:
    """Large numbers, escapes and spaces come out as they were sent, duplicates as their last."""
    data = b'{"prompt": "\\u00e9\\/" , "seed":12345678901234567890123,"t":1.0E+2,"x":{ "a" : 1},"t":2}'
    made = bulk_line(data, BULK)
    assert isinstance(made, LineJob)
    assert '"\\u00e9\\/"' in made.body
    assert '"seed":12345678901234567890123' in made.body
    assert '"x":{ "a" : 1}' in made.body
    assert sent(made)["t"] == 2


def test_defaults_fill_what_a_line_leaves_out() -> None:
    """A line's own value wins, null too; the long forms get them as well; the system message goes to prompts only."""
    rules = replace(BULK, system="s", defaults={"temperature": b"0.50", "seed": msgspec.Raw(b"7")})
    system = {"role": "system", "content": "s"}
    assert sent(job_of(P, rules)) == {"model": "demo", "messages": [system, *MESSAGES], "temperature": 0.5, "seed": 7}
    assert sent(job_of({"messages": MESSAGES, "seed": None}, rules)) == BODY | {"temperature": 0.5, "seed": None}
    assert sent(job_of({"url": CHAT, "body": BODY | {"seed": 1}}, rules)) == BODY | {"temperature": 0.5, "seed": 1}
    assert sent(job_of(P | {"system": "own"}, rules))["messages"][0] == {"role": "system", "content": "own"}
    assert sent(job_of(P | {"endpoint": COMPLETIONS}, rules))["prompt"] == CANARY
    assert '"temperature":0.50' in job_of(P, rules).body


def test_the_limit_of_an_answer_is_one_parameter() -> None:
    """A default does not stand beside a line's own limit of another name, nor does an override."""
    rules = replace(BULK, defaults={"max_tokens": b"5"})
    assert sent(job_of(P, rules))["max_tokens"] == 5
    assert "max_tokens" not in sent(job_of(P | {"max_completion_tokens": 9}, rules))
    changed = remade(
        json.dumps(BODY | {"max_completion_tokens": 9}), CHAT, Rules(KNOWN, overrides={"max_tokens": b"50"})
    )
    assert sent(changed) == BODY | {"max_tokens": 50}


def test_an_endpoint_of_the_bulk_is_the_default() -> None:
    """Prompts become raw text where the bulk says so, and long forms need not name it."""
    rules = replace(BULK, endpoint=COMPLETIONS)
    assert sent(job_of(P, rules)) == P | {"model": "demo"}
    assert job_of({"body": P}, rules).endpoint == COMPLETIONS
    assert job_of({"url": CHAT, "body": BODY}, rules).endpoint == CHAT
    assert job_of({"messages": MESSAGES, "endpoint": CHAT}, rules).endpoint == CHAT


def test_a_bad_default_or_override_is_found_on_each_line() -> None:
    """What a rule brings in is checked as if the line had said it."""
    found = bulk_line(line(P), replace(BULK, defaults={"stream": b"true"}))
    assert isinstance(found, LineError)
    assert found.code == "streaming_unsupported"
    changed = remade(json.dumps(BODY), CHAT, Rules(KNOWN, overrides={"model": b'"other"'}), custom_id="a")
    assert isinstance(changed, LineError)
    assert (changed.code, changed.custom_id) == ("model_not_found", "a")


def test_a_job_is_remade_with_other_parameters() -> None:
    """What is overridden changes, all else keeps its bytes, the model too may be another."""
    rules = Rules(KNOWN, overrides={"model": b'"big"', "max_tokens": b"5000"})
    body = '{"model":"demo","messages":[{"role":"user","content":"\\u00e9"}],"seed":12345678901234567890123}'
    made = remade(body, CHAT, rules, custom_id="a", columns="{}")
    assert isinstance(made, LineJob)
    assert (made.model, made.custom_id, made.columns, made.endpoint) == ("big", "a", "{}", CHAT)
    assert made.body == body.replace("demo", "big")[:-1] + ',"max_tokens":5000}'
    assert remade(body, CHAT, Rules(KNOWN)) == LineJob(None, "demo", CHAT, body, len(body) // 4 + DEFAULT_ANSWER_TOKENS)


@pytest.mark.parametrize(
    ("endpoint", "content"),
    [
        (None, {"messages": MESSAGES}),
        (CHAT, {"messages": MESSAGES}),
        (COMPLETIONS, {"prompt": CANARY}),
        (EMBEDDINGS, {"input": CANARY}),
        (RESPONSES, {"input": CANARY}),
    ],
)
def test_a_line_of_csv_is_a_prompt(endpoint: str | None, content: dict[str, Any]) -> None:
    """The prompt goes where the bulk's endpoint has it, with the defaults; the other columns are kept."""
    rules = replace(BULK, endpoint=endpoint, defaults={"seed": b"7"})
    made = csv_line({"id": "7", "prompt": CANARY, "system": "", "lang": "é", "note": ""}, rules)
    assert isinstance(made, LineJob)
    assert sent(made) == {"model": "demo", "seed": 7, **content}
    assert (made.custom_id, made.endpoint) == ("7", endpoint or CHAT)
    assert json.loads(made.columns or "") == {"lang": "é", "note": ""}


def test_a_line_of_csv_may_have_its_own_system_message_and_no_other_columns() -> None:
    """A cell of its own wins over the bulk's message; without other columns nothing is kept."""
    made = csv_line({"custom_id": "", "prompt": "p", "system": "own"}, replace(BULK, system="s"))
    assert sent(made)["messages"][0] == {"role": "system", "content": "own"}
    assert isinstance(made, LineJob)
    assert (made.custom_id, made.columns) == (None, None)


def test_with_a_custom_id_the_id_is_a_column_like_others() -> None:
    """Only one column is the id."""
    made = csv_line({"custom_id": "a", "id": "b", "prompt": "p"}, BULK)
    assert isinstance(made, LineJob)
    assert (made.custom_id, made.columns) == ("a", '{"id":"b"}')


@pytest.mark.parametrize(
    ("columns", "code", "param"),
    [
        ({"prompt": "", "id": "a"}, "missing_required_parameter", "prompt"),
        ({"prompt": CANARY, "id": "a" * 513}, "invalid_custom_id", "custom_id"),
    ],
)
def test_a_bad_line_of_csv_has_its_code(columns: dict[str, str], code: str, param: str) -> None:
    """An empty prompt and an id that is too long are refused."""
    found = csv_line(columns, BULK)
    assert isinstance(found, LineError)
    assert (found.code, found.param, found.custom_id) == (code, param, "a" if columns["id"] == "a" else None)


def test_a_line_that_is_too_long_has_its_code() -> None:
    """The reader cannot show it, so it is only named."""
    assert too_large(5) == LineError("line_too_large", "This line is longer than 5 bytes.")


def test_a_prompt_is_in_no_repr() -> None:
    """Jobs may be logged, what was asked not."""
    assert CANARY not in repr(job_of(P))


names = st.sampled_from([*BATCH, *BODY, *P, "id", "endpoint", "system", "input", "n", "max_tokens", "stream", "lane"])
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.sampled_from(["POST", CHAT, "demo"])
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=4), max_leaves=8
)


@given(st.dictionaries(names, values) | st.binary())
def test_any_line_is_a_job_or_an_error(given_line: dict[str, Any] | bytes) -> None:
    """Whatever comes in, nothing is raised, and the body of a job is valid, with its model inside."""
    data = given_line if isinstance(given_line, bytes) else line(given_line)
    rules = replace(BULK, defaults={"max_tokens": b"5"}, overrides={"n": b"1"}, system="s")
    for made in (batch_line(data, RULES), bulk_line(data, rules)):
        assert made.code if isinstance(made, LineError) else sent(made)["model"] == made.model
