"""The rows of the contract, in its order. Each test belongs to one, by `@pytest.mark.row(...)`."""

from __future__ import annotations

ROWS = {
    "files.create": "`POST /v1/files`: `file`, `purpose`, `expires_after`",
    "files.list": "`GET /v1/files`: `after`, `limit`, `order`, `purpose`",
    "files.one": "`GET` and `DELETE /v1/files/{id}`",
    "files.content": "`GET /v1/files/{id}/content`",
    "files.object": "the file object",
    "batches.create": "`POST /v1/batches`",
    "batches.list": "`GET /v1/batches`: `after`, `limit`",
    "batches.one": "`GET /v1/batches/{id}`",
    "batches.cancel": "`POST /v1/batches/{id}/cancel`",
    "batches.object": "the batch object",
    "batches.states": "the states and their order",
    "lines.input": "input lines, as files spell them",
    "lines.output": "lines of the output file",
    "lines.errors": "lines of the error file",
    "lines.ends": "which line is in which file",
    "limits": "limits: lines a file, bytes a file, bytes a line",
    "errors.request": "requests that are refused",
    "errors.validation": "inputs that fail the batch",
    "errors.envelope": "the error envelope",
    "retries": "safe to send again: `Idempotency-Key`, `x-should-retry`",
    "owners": "what belongs to somebody else",
}
