"""What clients may send and will get: the checks, and the OpenAPI page that is made of them.

Numbers are strict (`"5"` is no number). Fields that are not named here go to the engine as they came.
"""

from __future__ import annotations

import functools
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, WithJsonSchema
from pydantic_core import PydanticCustomError

from models.secrets import valid_secret
from stoker.settings import Lane

Endpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"]
State = Literal["queued", "delayed", "batched", "running", "succeeded", "failed", "cancelled", "expired"]

MOST_TOKENS = 1_000_000
MOST_DAYS = 30
MOST_STOPS = 16


def _stop(value: Any) -> Any:
    listed = [value] if isinstance(value, str) else value
    if isinstance(listed, list) and len(listed) <= MOST_STOPS and all(isinstance(item, str) for item in listed):
        return value
    raise PydanticCustomError("stop", "must be a text or a list of at most 16 texts")


def _content(value: Any) -> Any:
    if isinstance(value, str | list) and value:
        return value
    raise PydanticCustomError("content", "must be a text or a list, and not empty")


def _secret(value: str) -> str:
    if valid_secret(value):
        return value
    raise PydanticCustomError("webhook_secret", "must be whsec_ and the base64 of 24 to 64 bytes")


def _one_or_many(least: int = 0, **more: Any) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [{"type": "string", "minLength": least}, {"type": "array", **more}]})


def ids(prefix: str, sign: str = "_") -> dict[str, Any]:
    """Return what the OpenAPI page says of an id, for `json_schema_extra`: the check itself is `is_id`."""
    return {"pattern": f"^{prefix}{sign}[0-9a-f]{{32}}$"}


Text = Annotated[str, StringConstraints(min_length=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
TokenCount = Annotated[int, Field(ge=1, le=MOST_TOKENS)]
Metadata = Annotated[
    dict[
        Annotated[str, StringConstraints(min_length=1, max_length=64)],
        Annotated[str, StringConstraints(max_length=512)],
    ],
    Field(max_length=16, fail_fast=True, description="Up to 16 pairs of texts, to find jobs again by."),
]
Stop = Annotated[Any, AfterValidator(_stop), _one_or_many(items={"type": "string"}, maxItems=MOST_STOPS)]
Content = Annotated[Any, AfterValidator(_content), _one_or_many(1, minItems=1)]


class Sampling(BaseModel):
    """The parameters of a request that are checked at the door; the engine checks the rest."""

    model_config = ConfigDict(strict=True, extra="allow", hide_input_in_errors=True)

    max_tokens: TokenCount | None = None
    max_completion_tokens: TokenCount | None = None
    max_output_tokens: TokenCount | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stop: Stop | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    stream: bool | None = Field(None, description="Tokens as they come; of a job, at /v1/jobs/{id}/events.")


class Message(BaseModel):
    """One message of a chat; `content` and whatever else it has goes to the engine as it came."""

    model_config = ConfigDict(strict=True, extra="allow", hide_input_in_errors=True)

    role: Text


# The first bad one is enough: with millions of them, each error made would cost more than the job.
Messages = Annotated[list[Message], Field(min_length=1, fail_fast=True)]


class EngineBody(Sampling):
    """The `body` of a job in the form of an OpenAI batch line: what the endpoint itself takes."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=255)] | None = None
    messages: Messages | None = None
    prompt: Content | None = None
    input: Content | None = None


class Webhook(BaseModel):
    """Where to tell of the job's end."""

    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)

    url: str
    secret: Annotated[str, AfterValidator(_secret)] | None = Field(
        None,
        description="whsec_ and base64; signs this job's events instead of the service's own secret.",
        json_schema_extra={"pattern": "^whsec_[A-Za-z0-9+/]{32,88}={0,2}$"},
    )
    include_result: bool = False


class JobRequest(Sampling):
    """A job: exactly one of `prompt`, `messages`, `input` or `body`; other fields go to the engine unchanged."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"prompt": "What is the capital of France?", "max_tokens": 50}],
        }
    )

    model: Annotated[str, StringConstraints(min_length=1, max_length=255)] | None = Field(
        None, description="A known model; left out: the one this service is configured for."
    )
    prompt: Text | None = Field(None, description="A chat of one message; with endpoint /v1/completions, raw text.")
    system: Text | None = Field(None, description="The system message of a `prompt`.")
    messages: Messages | None = Field(None, description="A chat.")
    input: Content | None = Field(None, description="What to embed; with endpoint /v1/responses, what to respond to.")
    endpoint: Endpoint | None = None
    body: dict[str, Any] | None = Field(None, description="What `endpoint` itself takes, as in an OpenAI batch line.")
    lane: Lane = Field("standard", description="How long the job may wait for company, and who goes first.")
    metadata: Metadata | None = None
    webhook_url: str | None = None
    webhook: Webhook | None = None
    expires_in: Annotated[float, Field(gt=0, le=MOST_DAYS * 86400, allow_inf_nan=False)] | None = Field(
        None, description="Seconds after which the job expires if it has not ended."
    )


OWN_FIELDS = frozenset(JobRequest.model_fields) - frozenset(Sampling.model_fields)
"""The fields that are stoker's; all others are the engine's."""


class Usage(BaseModel):
    """Tokens that a job cost."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class JobError(BaseModel):
    """Why a job failed; `status` as in HTTP."""

    code: str
    message: str
    status: int


class Job(BaseModel):
    """A job as clients see it; times are unix seconds."""

    id: str
    object: Literal["job"]
    state: State
    lane: Lane
    model: str
    endpoint: Endpoint
    attempts: int = Field(description="How often it was handed to an engine.")
    created_at: float
    started_at: float | None
    finished_at: float | None
    expires_at: float | None
    queue_position: int | None = Field(
        description="While queued: how many of your jobs in this lane go first. Null in the 202 answer and in lists."
    )
    usage: Usage | None
    result: Any = Field(description="The engine's own answer; lists leave it out.")
    error: JobError | None
    metadata: dict[str, str]
    webhook_url: str | None
    bulk_id: str | None
    line: int | None = Field(description="The line of the bulk's input that the job was made of.")
    custom_id: str | None = Field(description="The line's own name.")


class JobList(BaseModel):
    """A page of jobs, newest first."""

    object: Literal["list"]
    data: list[Job]
    has_more: bool
    next_after: str | None = Field(description="The `after` of the next page, null on the last.")


class ProblemField(BaseModel):
    """What is wrong with one field."""

    field: str
    message: str
    code: str


class ProblemDocument(BaseModel):
    """An error, as RFC 9457 describes it."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    request_id: str
    errors: list[ProblemField]


class Parameters(BaseModel):
    """Parameters of a path or query; the schema is made once, since it is asked for with every request."""

    model_config = ConfigDict(hide_input_in_errors=True)

    @classmethod
    def model_json_schema(cls, *args: Any, **options: Any) -> dict[str, Any]:
        """Return the JSON schema."""
        return _schema_of(cls, args, tuple(options.items()))


@functools.cache
def _schema_of(model: type[Parameters], args: tuple[Any, ...], options: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    schema = super(Parameters, model).model_json_schema(*args, **dict(options))
    return without_null(schema)


def without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of what comes as texts: there None is "not given", and has no spelling of its own."""
    return {**schema, "properties": {name: _given(told) for name, told in schema.get("properties", {}).items()}}


def _given(told: dict[str, Any]) -> dict[str, Any]:
    kinds = [kind for kind in told.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) != 1:
        return told
    return {**kinds[0], **{key: value for key, value in told.items() if key not in {"anyOf", "default"}}}


NO_NUL: dict[str, Any] = {"pattern": r"^[^\u0000]*$"}
"""What the OpenAPI page says of texts that the database is asked for."""


class JobPath(Parameters):
    """Names a job."""

    job_id: str


class WaitQuery(Parameters):
    """How long to hold the answer."""

    model_config = ConfigDict(extra="forbid")

    wait: Annotated[float, Field(ge=0, le=60, allow_inf_nan=False)] = Field(
        0, description="Seconds to hold the answer until the job has ended."
    )


class ListQuery(Parameters):
    """Which jobs to list; `metadata.<key>=<value>` may be given as well."""

    model_config = ConfigDict(extra="allow")

    limit: Annotated[int, Field(ge=1, le=100)] = 20
    after: str | None = Field(
        None, description="The id of the last job of the page before.", json_schema_extra=ids("job")
    )
    state: State | None = None
    lane: Lane | None = None
    model: str | None = Field(None, json_schema_extra=NO_NUL)
    bulk_id: str | None = Field(None, json_schema_extra=NO_NUL)
