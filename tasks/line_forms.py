"""The forms of a line: JSON text to what an engine is to be asked. Pure; each value's bytes stay as they were sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from models.calls import CHAT, CONTENT, SHORT_FORMS
from models.json_text import MOST_DEPTH, bad_character, too_deep

OF_THE_BULK = frozenset({"lane", "metadata", "webhook", "webhook_url", "expires_in"})
"""What POST /v1/jobs takes beside the engine's fields, and a line cannot have of its own."""
_AROUND = frozenset({"custom_id", "id", "endpoint", "url", "method", "body", "model", *OF_THE_BULK})
_OWN = (_AROUND - {"model"}) | {*SHORT_FORMS, "system"}
_SHOWN = 64
"""Characters of a client's text that an error repeats."""

anything = msgspec.json.Decoder()
members = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Wrong(Exception):
    """Why a line is no job; `param` names the field."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param = code, message, param and param[:_SHOWN]


class Call(NamedTuple):
    """What an engine is to be asked: the members of its body decoded, and as they were sent. `prefix` names them."""

    endpoint: str
    values: dict[str, Any]
    raw: dict[str, msgspec.Raw]
    prefix: str = ""


def missing(param: str) -> Wrong:
    """Return the error of a field that is not there."""
    return Wrong("missing_required_parameter", f"Missing required parameter: '{param}'.", param)


def invalid(param: str, why: str) -> Wrong:
    """Return the error of a field that has a wrong value."""
    return Wrong("invalid_request", f"Invalid value for '{param}': {why}.", param)


def parsed(data: bytes) -> dict[str, Any]:
    """Return the JSON object in a line. Raises Wrong."""
    try:
        data.decode()
        if (bad := bad_character(data)) is not None:
            raise Wrong(bad.code, f"In this line {bad.why}.")
        values = anything.decode(data)
    except msgspec.ValidationError:
        raise Wrong("number_out_of_range", "A number in this line is out of range.") from None
    except (UnicodeDecodeError, msgspec.DecodeError):
        raise Wrong("invalid_json_line", "This line is not parseable as valid JSON.") from None
    except RecursionError:
        raise _too_deep() from None
    if too_deep(data):
        raise _too_deep()
    if not isinstance(values, dict):
        raise Wrong("invalid_json_line", "This line is not a JSON object.")
    return values


def _too_deep() -> Wrong:
    return Wrong("nested_too_deep", f"This line is nested deeper than {MOST_DEPTH} levels.")


def short_form(
    values: dict[str, Any], raw: dict[str, msgspec.Raw], default_endpoint: str | None, system: str | None
) -> Call:
    """Return the call made of `prompt`, `messages` or `input`, and of the fields that are not stoker's own."""
    form = _form(values)
    endpoint = values.get("endpoint") or default_endpoint or SHORT_FORMS[form][0]
    if endpoint not in SHORT_FORMS[form]:
        raise invalid("endpoint", f"with {form} it must be {' or '.join(SHORT_FORMS[form])}")
    said = raw["system"] if values.get("system") is not None else None
    if said is not None and not (values["system"] and isinstance(values["system"], str)):
        raise invalid("system", "it must be a text, not empty")
    if said is not None and (form, endpoint) != ("prompt", CHAT):
        raise invalid("system", "it goes only with prompt, for a chat")
    content = of_prompt(raw[form], said or system, endpoint) if form == "prompt" else {form: raw[form]}
    for name in _OWN.intersection(raw):
        del raw[name]
    raw.update(content)
    return Call(endpoint, values, raw)


def _form(values: Mapping[str, Any]) -> str:
    if "url" in values or "method" in values:
        raise missing("body")
    given = [name for name in SHORT_FORMS if values.get(name) is not None]
    if not given:
        why = "A line needs one of prompt, messages, input, or endpoint and body."
        raise Wrong("missing_required_parameter", why, "prompt")
    if len(given) > 1:
        raise Wrong("one_of", f"A line takes only one of {' and '.join(given)}.", given[1])
    if given == ["prompt"] and not isinstance(values["prompt"], str):
        raise invalid("prompt", "it must be a text")
    _check_content(values, given[0], "")
    return given[0]


def of_prompt(prompt: str | msgspec.Raw, system: str | msgspec.Raw | None, endpoint: str) -> dict[str, msgspec.Raw]:
    """Return the member of a body that carries a prompt: for a chat, its messages."""
    if endpoint != CHAT:
        return {CONTENT[endpoint]: msgspec.Raw(msgspec.json.encode(prompt))}
    chat = [{"role": "user", "content": prompt}]
    if system is not None:
        chat.insert(0, {"role": "system", "content": system})
    return {"messages": msgspec.Raw(msgspec.json.encode(chat))}


def long_form(values: dict[str, Any], raw: Mapping[str, msgspec.Raw], default_endpoint: str | None) -> Call:
    """Return the call given as `body` and `endpoint`, or `url` as in an OpenAI batch."""
    for name in values.keys() - _AROUND:
        if values[name] is not None:
            raise Wrong("beside_body", f"With body, '{name[:_SHOWN]}' belongs inside it.", name)
    endpoint = _endpoint(values, default_endpoint)
    body = values["body"]
    if not isinstance(body, dict):
        raise invalid("body", "it must be an object")
    _check_content(body, CONTENT[endpoint], "body.")
    inside = members.decode(raw["body"])
    if (model := values.get("model")) is not None:
        if body.get("model") not in (None, model):
            raise invalid("body.model", "it differs from model")
        body["model"], inside["model"] = model, raw["model"]
    return Call(endpoint, body, inside, "body.")


def _endpoint(values: Mapping[str, Any], default: str | None) -> str:
    if values.get("method") not in (None, "POST"):
        raise invalid("method", "it must be POST")
    name = "url" if values.get("url") is not None else "endpoint"
    endpoint = values.get(name) or default
    if endpoint is None:
        raise missing("endpoint")
    if not isinstance(endpoint, str) or endpoint not in CONTENT:
        raise Wrong("invalid_url", f"'{name}' must be one of {', '.join(CONTENT)}.", name)
    if values.get("endpoint") not in (None, endpoint):
        raise invalid("endpoint", "it differs from url")
    return endpoint


def _check_content(values: Mapping[str, Any], name: str, prefix: str) -> None:
    content = values.get(name)
    if content is None:
        raise missing(prefix + name)
    if not content or not isinstance(content, list if name == "messages" else str | list):
        raise invalid(prefix + name, f"it must be a {'list' if name == 'messages' else 'text or a list'}, not empty")
