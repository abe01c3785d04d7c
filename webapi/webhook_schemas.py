"""What clients may send to and will get from webhook endpoints and the log of deliveries."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, WithJsonSchema
from pydantic_core import PydanticCustomError

from models import event_types
from webapi.schemas import NO_NUL, Parameters, ids

DeliveryState = Literal["pending", "sending", "delivered", "failed", "noted"]
MOST_NAME = 255
LEAST_WAIT, MOST_WAIT = 0.05, 60


def _event_type(value: str) -> str:
    if value in event_types.ALL:
        return value
    raise PydanticCustomError("unknown_event", "must be one of {supported}", {"supported": ", ".join(event_types.ALL)})


EventType = Annotated[
    str, AfterValidator(_event_type), WithJsonSchema({"type": "string", "enum": list(event_types.ALL)})
]
EventTypes = Annotated[list[EventType], Field(min_length=1, max_length=len(event_types.ALL), fail_fast=True)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=MOST_NAME)]
Url = Annotated[str, StringConstraints(min_length=1, max_length=2048)]
Wait = Annotated[float, Field(ge=LEAST_WAIT, le=MOST_WAIT, allow_inf_nan=False)]


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)


class EndpointRequest(_Body):
    """A webhook endpoint, as OpenAI's API has it; `include_result`, `coalesce` and `enabled` are ours."""

    event_types: EventTypes = Field(description="What it is told of.")
    name: Name = Field(description="For people.")
    url: Url = Field(description="Where events go: http or https, on the internet unless the operator opened networks.")
    include_result: bool = Field(default=False, description="Send the engine's answer with the events of jobs.")
    coalesce: Wait | None = Field(
        None, description="Seconds that an event waits for others, to be sent with them in one request."
    )
    enabled: bool = True


class EndpointChange(_Body):
    """What is to be different; what is left out stays. `enabled: true` lets a disabled endpoint try again."""

    # Made, and so not told of: the document would call what is not allowed a default.
    event_types: EventTypes = Field(default_factory=list)
    name: Name = Field(default_factory=str)
    url: Url = Field(default_factory=str)
    include_result: bool = False
    coalesce: Wait | None = None
    enabled: bool = True


class RotateRequest(_Body):
    """How to change the signing secret."""

    keep_old_secret_active_for_24_hours: bool = Field(
        default=False, description="Sign with both for a day, so that no receiver misses an event."
    )


class TestRequest(_Body):
    """Which event to send as a sample."""

    __test__ = False
    event_type: EventType


class Endpoint(BaseModel):
    """A webhook endpoint; times are unix seconds."""

    id: str
    object: Literal["webhook_endpoint"]
    created_at: int
    updated_at: int
    name: str
    url: str
    event_types: list[str]
    signing_secret_hint: str
    include_result: bool
    coalesce: float | None
    enabled: bool
    disabled_at: int | None
    disabled_reason: str | None


class EndpointWithSecret(Endpoint):
    """A webhook endpoint with its signing secret, which is shown this once."""

    signing_secret: str


class EndpointList(BaseModel):
    """A page of webhook endpoints, newest first."""

    object: Literal["list"]
    data: list[Endpoint]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedEndpoint(BaseModel):
    """What is left of a webhook endpoint."""

    id: str
    object: Literal["webhook_endpoint.deleted"]
    deleted: Literal[True]


class EventTypeList(BaseModel):
    """The events that an endpoint can be told of."""

    object: Literal["list"]
    data: list[str]


class TestResult(BaseModel):
    """What the receiver of a sample event answered."""

    __test__ = False
    event_type: str
    object: Literal["webhook_endpoint.test"]
    status_code: int
    success: Literal[True] = Field(description="There was an answer; `status_code` says which.")
    webhook_endpoint_id: str


class EndpointPath(Parameters):
    """Names a webhook endpoint."""

    webhook_endpoint_id: str


class EndpointQuery(Parameters):
    """Which webhook endpoints to list."""

    model_config = ConfigDict(extra="forbid")

    after: str | None = Field(
        None, description="The id of the last endpoint of the page before.", json_schema_extra=ids("whe")
    )
    limit: Annotated[int, Field(ge=1, le=100)] = 20


class Attempt(BaseModel):
    """One try of a delivery; `at` is null where it is not known."""

    attempt: int
    at: float | None
    status_code: int | None
    latency_ms: int | None
    error: str | None


class Delivery(BaseModel):
    """One event on its way to one URL; times are unix seconds."""

    id: str = Field(description="The `webhook-id` of its requests, unless it has a `group_id`.")
    object: Literal["delivery"]
    state: DeliveryState
    event: str
    job_id: str = Field(description="The job, bulk, batch or test that it tells of.")
    endpoint_id: str | None = Field(description="The webhook endpoint; null: the job or bulk itself named the URL.")
    url: str
    group_id: str | None = Field(description="The `webhook-id` of the one request that carries this and other events.")
    attempts: int
    created_at: float
    delivered_at: float | None
    next_attempt_at: float | None = Field(description="While it is pending: when it is tried next, or was to be.")
    status_code: int | None = Field(description="What the receiver answered last.")
    latency_ms: int | None
    error: str | None = Field(description="Why the last try was no success.")
    answer: str | None = Field(description="The first kilobyte of the receiver's last answer.")


class DeliveryWithTries(Delivery):
    """A delivery and every try of it that is known, the oldest first."""

    tries: list[Attempt]


class DeliveryList(BaseModel):
    """A page of deliveries, newest first."""

    object: Literal["list"]
    data: list[Delivery]
    has_more: bool
    next_after: str | None = Field(description="The `after` of the next page, null on the last.")


class DeliveryPath(Parameters):
    """Names a delivery."""

    delivery_id: str


Id = Annotated[str, StringConstraints(max_length=64)]


class DeliveryQuery(Parameters):
    """Which deliveries to list."""

    model_config = ConfigDict(extra="forbid")

    limit: Annotated[int, Field(ge=1, le=100)] = 20
    after: Id | None = Field(
        None, description="The id of the last delivery of the page before.", json_schema_extra=ids("msg")
    )
    state: DeliveryState | None = None
    event: Id | None = Field(None, description="As job.failed.", json_schema_extra=NO_NUL)
    endpoint_id: Id | None = Field(None, json_schema_extra=NO_NUL)
    job_id: Id | None = Field(None, description="The job, bulk or batch that they tell of.", json_schema_extra=NO_NUL)


Moment = Annotated[float, Field(ge=0, le=253402300799, allow_inf_nan=False)]


class RedeliverRequest(_Body):
    """Which deliveries to send once more; what is left out does not narrow them down."""

    endpoint_id: Id | None = None
    event: EventType | None = None
    state: Literal["failed", "delivered"] = "failed"
    created_after: Moment | None = Field(None, description="Unix seconds; at this moment or later.")
    created_before: Moment | None = Field(None, description="Unix seconds; before this moment.")
    after: Id | None = Field(None, description="The `next_after` of the call before.", json_schema_extra=ids("msg"))


class Redelivered(BaseModel):
    """How many deliveries are sent once more; with `has_more`, go on with `after`: `next_after`."""

    object: Literal["deliveries.redelivered"]
    redelivered: int
    has_more: bool
    next_after: str | None
