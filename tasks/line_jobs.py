"""One line of an upload to a job, or to what is wrong with it: pure, and each value's bytes stay as they were sent.

Only what stoker itself must know is checked; whatever else is in a body is for the engine to judge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import msgspec

from models import calls
from models.calls import ANSWER_LIMITS, CHAT, CONTENT, EMBEDDINGS, estimate
from tasks import line_forms
from tasks.line_forms import Call, Wrong, invalid, missing

MOST_ID = 512
MOST_TOKENS = 2**31 - 1
"""What the column takes."""
_SHOWN = 64
_LIMITS = frozenset(ANSWER_LIMITS)


class _Around(msgspec.Struct):
    body: msgspec.Raw


_around = msgspec.json.Decoder(_Around)


@dataclass(slots=True)  # not frozen: that makes it three times as slow to make
class LineJob:
    """A job as a line describes it: `body` is the engine's, `columns` what else a CSV line has, both JSON text."""

    custom_id: str | None
    model: str
    endpoint: str
    body: str = field(repr=False)
    tokens: int
    columns: str | None = field(default=None, repr=False)
    prefix: int = 0


@dataclass(frozen=True, slots=True)
class LineError:
    """Why a line is no job; `param` names the field, as OpenAI does."""

    code: str
    message: str
    param: str | None = None
    custom_id: str | None = None


@dataclass(frozen=True)
class Rules:
    """What holds for every line of an upload.

    `known`: the models that may be named, and how many tokens each takes, None when nobody knows.
    `endpoint`: of a batch, its own, which every line must name; of a bulk, that of lines that name none.
    `model`, `system`: those of a bulk's lines that have none.
    `defaults`: JSON values that a body gets where its line says nothing; `overrides` replace what it says.
    """

    known: Mapping[str, int | None]
    endpoint: str | None = None
    model: str | None = None
    system: str | None = field(default=None, repr=False)
    defaults: Mapping[str, bytes | msgspec.Raw] = field(default_factory=dict)
    overrides: Mapping[str, bytes | msgspec.Raw] = field(default_factory=dict)

    @cached_property
    def model_text(self) -> msgspec.Raw:
        """Return the default model as JSON."""
        return msgspec.Raw(msgspec.json.encode(self.model))

    @cached_property
    def filled(self) -> list[tuple[str, Any, msgspec.Raw]]:
        """Return the defaults: name, value, bytes."""
        return _decoded(self.defaults)

    @cached_property
    def replaced(self) -> list[tuple[str, Any, msgspec.Raw]]:
        """Return the overrides: name, value, bytes."""
        return _decoded(self.overrides)


def _decoded(given: Mapping[str, bytes | msgspec.Raw]) -> list[tuple[str, Any, msgspec.Raw]]:
    return [(name, line_forms.anything.decode(raw), msgspec.Raw(raw)) for name, raw in given.items()]


def too_large(most_bytes: int) -> LineError:
    """Return what is wrong with a line that is longer than the limit."""
    return LineError("line_too_large", f"This line is longer than {most_bytes} bytes.")


def batch_line(data: bytes, rules: Rules) -> LineJob | LineError:
    """Return the job of a line of an OpenAI batch, or what is wrong with it."""
    return _judged(data, rules, _batch_job)


def bulk_line(data: bytes, rules: Rules) -> LineJob | LineError:
    """Return the job of a JSON line of a native bulk, or what is wrong with it."""
    return _judged(data, rules, _bulk_job)


def csv_line(columns: Mapping[str, str], rules: Rules) -> LineJob | LineError:
    """Return the job of a line of CSV, or what is wrong with it; an empty cell counts as missing."""
    id_column = "custom_id" if "custom_id" in columns else "id"
    custom_id = columns.get(id_column) or None
    endpoint = rules.endpoint or CHAT
    try:
        if not columns.get("prompt"):
            raise missing("prompt")
        content = line_forms.of_prompt(columns["prompt"], columns.get("system") or rules.system, endpoint)
        others = {name: cell for name, cell in columns.items() if name not in {"prompt", "system", id_column}}
        beside = msgspec.json.encode(others).decode() if others else None
        return _job(Call(endpoint, {}, content), rules, _checked_id(custom_id), beside)
    except Wrong as wrong:
        return _error(wrong, custom_id)


def remade(
    body: str, endpoint: str, rules: Rules, *, custom_id: str | None = None, columns: str | None = None
) -> LineJob | LineError:
    """Return a stored job once more, its body changed by the rules' overrides, or what is then wrong with it."""
    raw = body.encode()
    call = Call(endpoint, line_forms.anything.decode(raw), line_forms.members.decode(raw))
    try:
        return _job(call, rules, custom_id, columns)
    except Wrong as wrong:
        return _error(wrong, custom_id)


def _judged(
    data: bytes, rules: Rules, job_of: Callable[[dict[str, Any], bytes, Rules], LineJob]
) -> LineJob | LineError:
    values: dict[str, Any] = {}
    try:
        values = line_forms.parsed(data)
        return job_of(values, data, rules)
    except Wrong as wrong:
        return _error(wrong, values.get("custom_id", values.get("id")))


def _error(wrong: Wrong, custom_id: Any) -> LineError:
    shown = str(custom_id) if type(custom_id) in {str, int} else ""
    return LineError(wrong.code, wrong.message, wrong.param, shown if 1 <= len(shown) <= MOST_ID else None)


def _checked_id(given: Any) -> str | None:
    if given is None or (isinstance(given, str) and 1 <= len(given) <= MOST_ID):
        return given
    raise Wrong("invalid_custom_id", f"'custom_id' must be a text of 1 to {MOST_ID} characters.", "custom_id")


def _batch_job(values: dict[str, Any], data: bytes, rules: Rules) -> LineJob:
    for name in ("custom_id", "method", "url", "body"):
        if values.get(name) is None:
            raise missing(name)
    custom_id = _checked_id(values["custom_id"])
    endpoint = rules.endpoint or ""
    if values["method"] != "POST":
        raise invalid("method", "it must be POST")
    if values["url"] != endpoint:
        raise Wrong("invalid_url", f"The URL of this line is not the endpoint of the batch, {endpoint}.", "url")
    body = values["body"]
    if not isinstance(body, dict):
        raise invalid("body", "it must be an object")
    _refuse_stream(body, "body.stream")
    model = _known(body.get("model"), "body.model", rules)
    raw = _around.decode(data).body
    text = str(raw, "utf-8")
    prefix = _prefix(endpoint, line_forms.members.decode(raw)) if len(text) >= calls.PREFIX else 0
    return LineJob(custom_id, model, endpoint, text, _tokens(endpoint, len(text), body), prefix=prefix)


def _bulk_job(values: dict[str, Any], data: bytes, rules: Rules) -> LineJob:
    raw = line_forms.members.decode(data)
    if not line_forms.OF_THE_BULK.isdisjoint(values):
        _refuse_of_the_bulk(values)
    name = "custom_id" if values.get("custom_id") is not None else "id"
    custom_id = values.get(name)
    if type(custom_id) is int:
        custom_id = str(raw[name], "utf-8")
    if values.get("body") is None:
        call = line_forms.short_form(values, raw, rules.endpoint, rules.system)
    else:
        call = line_forms.long_form(values, raw, rules.endpoint)
    return _job(call, rules, _checked_id(custom_id))


def _refuse_of_the_bulk(values: Mapping[str, Any]) -> None:
    for name in sorted(line_forms.OF_THE_BULK):
        if values.get(name) is not None:
            raise Wrong("unsupported_on_a_line", f"'{name}' is set for the whole bulk, not on a line.", name)


def _job(call: Call, rules: Rules, custom_id: str | None, columns: str | None = None) -> LineJob:
    _merge(call, rules)
    values, raw = call.values, call.raw
    _refuse_stream(values, call.prefix + "stream")
    given = values.get("model")
    model = _known(rules.model if given is None else given, call.prefix + "model", rules)
    _check_numbers(values, call.prefix, rules.known[model])
    if given is None:
        raw["model"] = rules.model_text
    body = msgspec.json.encode(raw).decode()
    tokens = _tokens(call.endpoint, len(body), values)
    return LineJob(custom_id, model, call.endpoint, body, tokens, columns, _prefix(call.endpoint, raw))


def _prefix(endpoint: str, raw: Mapping[str, msgspec.Raw]) -> int:
    content = raw.get(CONTENT[endpoint])
    return 0 if content is None else calls.prefix(endpoint, memoryview(content))


def _merge(call: Call, rules: Rules) -> None:
    # The limits of an answer are one parameter with three names: of two of them, an engine might take the other one.
    values, raw = call.values, call.raw
    if rules.filled:
        taken = raw.keys() | _LIMITS if not _LIMITS.isdisjoint(raw) else raw.keys()
        for name, value, text in rules.filled:
            if name not in taken:
                values[name], raw[name] = value, text
    if any(name in _LIMITS for name, _, _ in rules.replaced):
        for name in _LIMITS:
            values.pop(name, None)
            raw.pop(name, None)
    for name, value, text in rules.replaced:
        values[name], raw[name] = value, text


def _refuse_stream(body: Mapping[str, Any], param: str) -> None:
    stream = body.get("stream")
    if stream is True:
        raise Wrong("streaming_unsupported", "The answer of a line is not streamed.", param)
    if stream not in (None, False):
        raise invalid(param, "it must be false or left out")


def _known(model: Any, param: str, rules: Rules) -> str:
    if model is None:
        raise Wrong("invalid_request", f"Missing required parameter: '{param}'.", param)
    if not isinstance(model, str):
        raise invalid(param, "it must be a text")
    if model not in rules.known:
        raise Wrong("model_not_found", f"The model '{model[:_SHOWN]}' does not exist.", param)
    return model


def _check_numbers(body: Mapping[str, Any], prefix: str, most: int | None) -> None:
    for name in (*ANSWER_LIMITS, "n"):
        if (given := body.get(name)) is None:
            continue
        if not _counts(given):
            raise invalid(prefix + name, "it must be a whole number of at least 1")
        if most is not None and given > most and name != "n":
            raise invalid(prefix + name, f"it must be at most {most}, the context of the model")


def _tokens(endpoint: str, characters: int, body: Mapping[str, Any]) -> int:
    if endpoint == EMBEDDINGS:
        return min(estimate(characters, 0), MOST_TOKENS)
    answer = None
    for name in ANSWER_LIMITS:
        limit = body.get(name)
        if limit is not None and _counts(limit) and (answer is None or limit < answer):
            answer = limit
    if answer is not None and _counts(several := body.get("n")):
        answer *= several
    return min(estimate(characters, answer), MOST_TOKENS)


def _counts(value: Any) -> bool:
    return type(value) is int and value > 0
