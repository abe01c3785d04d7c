"""What clients may send to and will get from /v1/bulks and /v1/batches: the checks, and their OpenAPI descriptions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from stoker.settings import Lane
from webapi.schemas import MOST_DAYS, Endpoint, Metadata, Parameters, Sampling, Text, Usage, Webhook, ids

BulkState = Literal["validating", "running", "finalizing", "cancelling", "completed", "failed", "expired", "cancelled"]
Format = Literal["jsonl", "csv"]
MOST_ROWS = 2**63 - 1

Name = Annotated[str, StringConstraints(min_length=1, max_length=255)]
Seconds = Annotated[float, Field(gt=0, le=MOST_DAYS * 86400, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]
Place = Annotated[str, StringConstraints(min_length=1, max_length=2048)]


class _OfAnyBulk(Sampling):
    """What a new bulk and a retried one can be told."""

    model: Name | None = Field(None, description="Known model of the lines that name none.")
    lane: Lane | None = Field(None, description="How long the lines may wait for company, and who goes first: bulk.")
    metadata: Metadata | None = None
    expires_in: Seconds | None = Field(None, description="Seconds after which what has not ended expires.")
    webhook_url: str | None = Field(None, description="Where to tell of the bulk's end.")
    webhook: Webhook | None = None
    dry_run: bool = Field(default=False, description="Only read every line, and report what is wrong.")
    stop_after_failed: Share | None = Field(
        None, description="Share of failed lines beyond which the bulk is stopped, once 20 lines have ended."
    )


class BulkParameters(_OfAnyBulk):
    """Parameters of a bulk; other fields are sampling parameters of all lines that do not set them."""

    endpoint: Endpoint | None = Field(None, description="Endpoint of the lines that name none.")
    format: Format | None = Field(None, description="Left out: by the type or name of what was uploaded.")
    system: Text | None = Field(None, description="System message of the prompts that have none.")


class BulkRequest(BulkParameters):
    """A bulk of `requests`, of an uploaded file or of an object in storage: exactly one of the three."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"requests": [{"prompt": "One"}, {"prompt": "Two", "custom_id": "2"}], "max_tokens": 50}]
        }
    )

    requests: Annotated[list[Any], Field(min_length=1)] | None = Field(
        None, description="Lines, as they would stand in a file of JSON Lines."
    )
    file_id: Place | None = Field(None, description="A file of /v1/files; CSV and gzip are known by its name.")
    input_url: Place | None = Field(None, description="s3://, gs://, az:// or file:/// below STOKER_INPUT_URLS.")


class BulkRetry(_OfAnyBulk):
    """What is to be different this time: sampling parameters and `model` replace those of each line."""


class BulkChange(BaseModel):
    """What can be changed while a bulk runs."""

    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)

    lane: Lane


class Counts(BaseModel):
    """How many lines are where; `invalid` ones could not be read, and are among the failed."""

    total: int
    queued: int
    running: int
    succeeded: int
    failed: int
    cancelled: int
    expired: int
    invalid: int


class Fault(BaseModel):
    """What is wrong with a line or, without one, with the whole."""

    code: str
    message: str
    param: str | None
    line: int | None


class Report(BaseModel):
    """What a dry run found: `tokens` and `eta` (seconds) are estimates, `errors` the first 100."""

    lines: int
    valid: int
    invalid: int
    tokens: int
    errors: list[Fault]
    eta: float | None


class Bulk(BaseModel):
    """A bulk as clients see it; times are unix seconds."""

    id: str
    object: Literal["bulk"]
    kind: Literal["bulk", "batch"] = Field(description="A batch is one of /v1/batches.")
    state: BulkState
    lane: Lane
    paused: bool
    model: str | None
    endpoint: Endpoint | None
    created_at: float
    started_at: float | None
    finished_at: float | None
    expires_at: float | None
    counts: Counts
    counted: bool = Field(description="All lines are read: the total is final.")
    rate: float | None = Field(description="Lines that an engine answered, a second, since the start.")
    tokens_per_second: float | None = Field(description="Tokens of prompts and answers, a second, since the start.")
    eta: float | None = Field(description="Seconds that are left at this rate; null until all lines are read.")
    usage: Usage
    errors: list[Fault]
    report: Report | None
    metadata: dict[str, str]
    retry_of: str | None
    dry_run: bool
    stop_after_failed: float | None
    webhook_url: str | None


class BulkList(BaseModel):
    """A page of bulks, newest first."""

    object: Literal["list"]
    data: list[Bulk]
    has_more: bool
    next_after: str | None = Field(description="The `after` of the next page, null on the last.")


class BulkDeleted(BaseModel):
    """A bulk that is gone."""

    id: str
    object: Literal["bulk"]
    deleted: Literal[True]


class BulkPath(Parameters):
    """Names a bulk, or a batch."""

    bulk_id: str


class BulkQuery(Parameters):
    """Which bulks to list; `metadata.<key>=<value>` may be given as well."""

    model_config = ConfigDict(extra="allow")

    limit: Annotated[int, Field(ge=1, le=100)] = 20
    after: str | None = Field(
        None, description="The id of the last bulk of the page before.", json_schema_extra=ids("bulk")
    )
    state: BulkState | None = None
    kind: Literal["bulk", "batch"] | None = None


class ResultsQuery(Parameters):
    """Which results to read, and how they are written."""

    model_config = ConfigDict(extra="forbid")

    after: Annotated[int, Field(ge=0, le=MOST_ROWS)] = Field(0, description="Only lines with a greater `seq`.")
    limit: Annotated[int, Field(ge=1, le=MOST_ROWS)] | None = Field(None, description="At most so many lines.")
    format: Literal["jsonl", "csv", "parquet"] = Field(
        "jsonl",
        description="csv: RFC 4180, every cell as it is, also one that a spreadsheet would take for a formula. "
        "parquet: needs stoker[parquet].",
    )


class OutputExpiry(BaseModel):
    """When the files that a batch writes expire."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3600, le=2_592_000)]


class BatchRequest(BaseModel):
    """A batch of an uploaded file."""

    input_file_id: str = Field(
        description="A file with the purpose `batch`.", json_schema_extra={"minLength": 1, "maxLength": 64}
    )
    endpoint: Endpoint
    completion_window: str = Field(description="24h, or another one of STOKER_BATCH_WINDOWS.")
    metadata: Metadata | None = None
    output_expires_after: OutputExpiry | None = None
    idempotency_key: str | None = Field(
        None, description="The same as the header Idempotency-Key.", json_schema_extra={"pattern": "^[!-~]{1,255}$"}
    )


class RequestCounts(BaseModel):
    """How many lines are done; zeros while the batch is validated."""

    total: int
    completed: int
    failed: int


class FaultList(BaseModel):
    """Why a batch failed."""

    object: Literal["list"]
    data: list[Fault]


class InputDetails(BaseModel):
    """Of the tokens of prompts."""

    cached_tokens: int


class OutputDetails(BaseModel):
    """Of the tokens of answers."""

    reasoning_tokens: int


class BatchUsage(BaseModel):
    """The tokens of all lines that are done."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class Batch(BaseModel):
    """A batch as OpenAI's API has it; times are unix seconds."""

    id: str
    object: Literal["batch"]
    endpoint: str
    model: str | None
    errors: FaultList | None
    input_file_id: str
    completion_window: str
    status: Literal[
        "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
    ]
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: BatchUsage | None
    metadata: dict[str, str] | None


class BatchList(BaseModel):
    """A page of batches, newest first."""

    object: Literal["list"]
    data: list[Batch]
    first_id: str | None
    last_id: str | None
    has_more: bool


class BatchPath(Parameters):
    """Names a batch."""

    batch_id: str


class BatchQuery(Parameters):
    """Which batches to list."""

    after: str | None = Field(
        None, description="The id of the last batch of the page before.", json_schema_extra=ids("batch")
    )
    limit: Annotated[int, Field(ge=1, le=100)] = 20
