"""A client of stoker's HTTP API, on httpx alone.

```
with Client() as client:
    job = client.wait(client.submit(prompt="What is the capital of France?").id, timeout=60)
    print(job.text)

    bulk = client.bulk("prompts.jsonl", max_tokens=200)
    for result in client.iter_results(bulk.id):
        print(result.custom_id, result.text)
```
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self, TypeVar

import httpx

from stoker import calls, connection, openai_calls, steps
from stoker.api_errors import StokerAPIError, WebhookVerificationError
from stoker.job_events import Event, Events
from stoker.resources import Batch, Bulk, Counts, File, Job, Result, Usage
from stoker.result_pages import Results
from stoker.steps import Call, Lost, Outcome, Pause, Steps
from stoker.transfers import Download, Progress, Source, Target, opened
from stoker.webhook_client import Deliveries, WebhookEndpoints
from stoker.webhook_signature import verify_webhook

__all__ = [
    "Batch",
    "Bulk",
    "Client",
    "Counts",
    "Event",
    "File",
    "Job",
    "Result",
    "StokerAPIError",
    "Usage",
    "WebhookVerificationError",
    "verify_webhook",
]

T = TypeVar("T")


class Client:
    """A connection to one service. Close it, or use it in a `with`.

    Requests that do no harm twice are repeated when the service is busy or the connection breaks, as late as it asks.
    """

    def __init__(self, base_url: str = connection.URL, api_key: str | None = None) -> None:
        self.rest: Callable[[Pause], object] = steps.rest  # also told why a request is sent again
        options = connection.options(base_url, api_key)
        # With a transport of its own httpx does not look for proxies in the environment: none of them reaches loopback.
        transport = httpx.HTTPTransport() if connection.is_direct(base_url) else None
        self._http = httpx.Client(transport=transport, **options)
        self.webhook_endpoints, self.deliveries = WebhookEndpoints(self._call), Deliveries(self._call)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    verify_webhook = staticmethod(verify_webhook)

    # Jobs

    def submit(self, *, idempotency_key: str | None = None, **params: Any) -> Job:
        """Submit a job: `prompt`, `messages`, `input`, or `endpoint` and `body`, and whatever POST /v1/jobs takes.

        Safe to repeat, and repeated when the answer is lost: it carries an Idempotency-Key, made if none is given.
        """
        return self._call(calls.submit(params, idempotency_key))

    def get(self, job_id: str) -> Job:
        """Return a job as it is now."""
        return self._call(calls.job(job_id))

    def wait(self, job_id: str, timeout: float = 600.0) -> Job:
        """Return a job when it has ended. Raises TimeoutError when it has not after so many seconds."""
        return self.perform(steps.wait_job(lambda seconds: calls.job(job_id, seconds), job_id, timeout))

    def events(self, job_id: str, after: str = "") -> Iterator[Event]:
        """Yield what happens to a job until its end: its states, and the chunks of one submitted with `stream=True`.

        A broken connection is mended on the way: no chunk comes twice, none is left out. Begin behind a chunk that you
        have with `after=event.id`. Leaving does nothing to the job.
        """
        reader = Events(job_id, after)
        while not reader.ended:
            yield from self._read_events(reader)
            if not reader.ended:
                self.rest(reader.pause())

    def result(self, job_id: str) -> Any:
        """Return the engine's answer alone. Raises StokerAPIError (404) while there is none."""
        return self._call(calls.job_result(job_id))

    def cancel(self, job_id: str) -> Job:
        """Cancel a job. Raises StokerAPIError (409) when it has ended."""
        return self._call(calls.cancel_job(job_id))

    def list(self, *, metadata: Mapping[str, str] | None = None, **filters: Any) -> list[Job]:
        """Return a page of jobs, newest first, without results; filters: limit, after, state, lane, model, metadata."""
        return self._call(calls.jobs(metadata, filters))

    def usage(self, first: str | None = None, last: str | None = None, **filters: Any) -> Sequence[Usage]:
        """Return what was used from day to day (`2026-11-28`, UTC), by owner and model; filters: model, owner."""
        return self._call(calls.usage(first, last, filters))

    # Bulks

    def bulk(
        self,
        source: Source,
        *,
        model: str | None = None,
        lane: str | None = None,
        max_tokens: int | None = None,
        idempotency_key: str | None = None,
        on_progress: Progress | None = None,
        **params: Any,
    ) -> Bulk:
        """Upload lines and return their bulk, which begins to run: a path, a binary file, or the lines themselves.

        A path or file is JSON Lines, or CSV with a column `prompt`, either with `.gz`. A line is a mapping, or a text:
        a prompt. `params` are further defaults for all lines (system, temperature, ...), and metadata, expires_in,
        webhook_url, dry_run, stop_after_failed. `on_progress` is told the bytes sent, and of how many.
        """
        params |= {"model": model, "lane": lane, "max_tokens": max_tokens}
        return self._call(calls.bulk(source, params, idempotency_key, on_progress))

    def bulk_from(
        self,
        *,
        file_id: str | None = None,
        input_url: str | None = None,
        idempotency_key: str | None = None,
        **params: Any,
    ) -> Bulk:
        """Start a bulk of an uploaded file, or of an object that the service fetches (s3://bucket/key)."""
        return self._call(calls.bulk_from({"file_id": file_id, "input_url": input_url, **params}, idempotency_key))

    def get_bulk(self, bulk_id: str) -> Bulk:
        """Return a bulk as it is now."""
        return self._call(calls.get_bulk(bulk_id))

    def bulks(self, *, metadata: Mapping[str, str] | None = None, **filters: Any) -> Sequence[Bulk]:
        """Return a page of bulks, newest first; filters: limit, after, state, metadata."""
        return self._call(calls.bulks(metadata, filters))

    def wait_bulk(
        self, bulk_id: str, timeout: float | None = None, on_progress: Callable[[Bulk], object] | None = None
    ) -> Bulk:
        """Return a bulk when it has ended; `on_progress` is told of it now and then. Raises TimeoutError."""
        return self.perform(steps.wait_ended(calls.get_bulk(bulk_id), timeout, on_progress))

    def iter_results(
        self, bulk_id: str, *, after: int = 0, errors: bool = False, follow: bool = True
    ) -> Iterator[Result]:
        """Yield the results of a bulk (or its errors) as they come, until it has ended and all are read.

        A broken connection is mended on the way: no result comes twice, none is left out. Begin behind a result that
        you have with `after=result.seq`. Without `follow` it ends with what there is now.
        """
        reader = Results(bulk_id, after=after, errors=errors, follow=follow)
        while not reader.ended:
            for line in self.perform(reader.page()):
                yield line.result

    def download_results(self, bulk_id: str, to: Target, *, format: str = "jsonl", errors: bool = False) -> bool:  # noqa: A002  # the service's name for it
        """Download what results there are as jsonl, csv or parquet; return whether these are all."""
        with opened(to) as file:
            return self._call(calls.download_results(bulk_id, format, Download(file), errors=errors))

    def cancel_bulk(self, bulk_id: str) -> Bulk:
        """Cancel a bulk; what is finished stays. Raises StokerAPIError (409) when it has ended."""
        return self._call(calls.steer_bulk(bulk_id, "cancel"))

    def pause_bulk(self, bulk_id: str) -> Bulk:
        """Let a bulk's lines wait, all but those that run."""
        return self._call(calls.steer_bulk(bulk_id, "pause"))

    def resume_bulk(self, bulk_id: str) -> Bulk:
        """Let a paused bulk go on."""
        return self._call(calls.steer_bulk(bulk_id, "resume"))

    def move_bulk(self, bulk_id: str, lane: str) -> Bulk:
        """Bring what has not run yet into another lane."""
        return self._call(calls.move_bulk(bulk_id, lane))

    def retry_bulk(self, bulk_id: str, *, idempotency_key: str | None = None, **changes: Any) -> Bulk:
        """Run the lines that failed again, as a new bulk; `changes` replace parameters (max_tokens=500)."""
        return self._call(calls.retry_bulk(bulk_id, changes, idempotency_key))

    def delete_bulk(self, bulk_id: str) -> None:
        """Delete a bulk that has ended, its results too. Raises StokerAPIError (409) while it runs."""
        self._call(calls.delete_bulk(bulk_id))

    # OpenAI's files and batches

    def upload_file(self, source: Source, *, purpose: str = "batch", on_progress: Progress | None = None) -> File:
        """Upload a file."""
        return self._call(openai_calls.upload_file(source, purpose, on_progress))

    def get_file(self, file_id: str) -> File:
        """Return a file's description."""
        return self._call(openai_calls.get_file(file_id))

    def files(self, **filters: Any) -> Sequence[File]:
        """Return a page of files; filters: limit, after, order, purpose."""
        return self._call(openai_calls.files(filters))

    def download_file(self, file_id: str, to: Target) -> None:
        """Download a file's content."""
        with opened(to) as file:
            self._call(openai_calls.download_file(file_id, Download(file)))

    def delete_file(self, file_id: str) -> None:
        """Delete a file."""
        self._call(openai_calls.delete_file(file_id))

    def batch(self, input_file_id: str, *, idempotency_key: str | None = None, **params: Any) -> Batch:
        """Start a batch of an uploaded file; `params`: endpoint, completion_window, metadata, output_expires_after."""
        return self._call(openai_calls.batch({"input_file_id": input_file_id, **params}, idempotency_key))

    def get_batch(self, batch_id: str) -> Batch:
        """Return a batch as it is now."""
        return self._call(openai_calls.get_batch(batch_id))

    def batches(self, **filters: Any) -> Sequence[Batch]:
        """Return a page of batches, newest first; filters: limit, after."""
        return self._call(openai_calls.batches(filters))

    def wait_batch(
        self, batch_id: str, timeout: float | None = None, on_progress: Callable[[Batch], object] | None = None
    ) -> Batch:
        """Return a batch when it has ended; `on_progress` is told of it now and then. Raises TimeoutError."""
        return self.perform(steps.wait_ended(openai_calls.get_batch(batch_id), timeout, on_progress))

    def cancel_batch(self, batch_id: str) -> Batch:
        """Cancel a batch; what is finished stays. Raises StokerAPIError (409) when it has ended."""
        return self._call(openai_calls.cancel_batch(batch_id))

    # How steps are performed

    def _call(self, call: Call[T]) -> T:
        return self.perform(steps.answered(call))

    def perform(self, procedure: Steps[T]) -> T:
        """Perform a procedure of stoker.steps, and return what it returns."""
        outcome: Outcome = None
        while True:
            try:
                step = procedure.send(outcome)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]  # a generator's return value has no type here
            outcome = None
            if isinstance(step, Pause):
                self.rest(step)
            else:
                outcome = self._send(step)

    def _read_events(self, reader: Events) -> Iterator[Event]:
        try:
            with self._http.stream(**connection.arguments(reader.call())) as answer:
                reader.outcome = answer
                if not answer.is_success:
                    answer.read()
                    return
                for block in answer.iter_bytes():
                    yield from reader.feed(block)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reader.outcome = Lost(self._http.base_url, error)

    def _send(self, call: Call[Any]) -> Outcome:
        content = call.upload.blocks() if call.upload else None
        try:
            with self._http.stream(content=content, **connection.arguments(call)) as answer:
                if call.download and answer.is_success:
                    call.download.begin()
                    for block in answer.iter_bytes():
                        call.download.write(block)
                else:
                    answer.read()
                return answer
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return Lost(self._http.base_url, error)
