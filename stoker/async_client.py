"""The same client for asyncio: what Client does, awaited.

```
async with AsyncClient() as client:
    bulk = await client.bulk(["What is the capital of France?", "And of Italy?"])
    async for result in client.iter_results(bulk.id):
        print(result.line, result.text)
```
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Self, TypeVar

import httpx

from stoker import calls, connection, openai_calls, steps
from stoker.job_events import Event, Events
from stoker.resources import Batch, Bulk, File, Job, Result, Usage
from stoker.result_pages import Results
from stoker.steps import Call, Lost, Outcome, Pause, Steps
from stoker.transfers import Download, Progress, Source, Target, drip, opened
from stoker.webhook_client import AsyncDeliveries, AsyncWebhookEndpoints
from stoker.webhook_signature import verify_webhook

T = TypeVar("T")


class AsyncClient:
    """A connection to one service, for one event loop. Close it, or use it in an `async with`."""

    def __init__(self, base_url: str = connection.URL, api_key: str | None = None) -> None:
        options = connection.options(base_url, api_key)
        # With a transport of its own httpx does not look for proxies in the environment: none of them reaches loopback.
        transport = httpx.AsyncHTTPTransport() if connection.is_direct(base_url) else None
        self._http = httpx.AsyncClient(transport=transport, **options)
        self.webhook_endpoints, self.deliveries = AsyncWebhookEndpoints(self._call), AsyncDeliveries(self._call)

    async def __aenter__(self) -> Self:
        """Return itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close it."""
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    verify_webhook = staticmethod(verify_webhook)

    # Jobs

    async def submit(self, *, idempotency_key: str | None = None, **params: Any) -> Job:
        """Submit a job: `prompt`, `messages`, `input`, or `endpoint` and `body`, and whatever POST /v1/jobs takes.

        Safe to repeat, and repeated when the answer is lost: it carries an Idempotency-Key, made if none is given.
        """
        return await self._call(calls.submit(params, idempotency_key))

    async def get(self, job_id: str) -> Job:
        """Return a job as it is now."""
        return await self._call(calls.job(job_id))

    async def wait(self, job_id: str, timeout: float = 600.0) -> Job:  # noqa: ASYNC109  # as Client.wait
        """Return a job when it has ended. Raises TimeoutError when it has not after so many seconds."""
        return await self.perform(steps.wait_job(lambda seconds: calls.job(job_id, seconds), job_id, timeout))

    async def events(self, job_id: str, after: str = "") -> AsyncIterator[Event]:
        """Yield what happens to a job until its end: its states, and the chunks of one submitted with `stream=True`.

        A broken connection is mended on the way: no chunk comes twice, none is left out. Begin behind a chunk that you
        have with `after=event.id`. Leaving does nothing to the job.
        """
        reader = Events(job_id, after)
        while not reader.ended:
            async for event in self._read_events(reader):
                yield event
            if not reader.ended:
                await asyncio.sleep(reader.pause().seconds)

    async def result(self, job_id: str) -> Any:
        """Return the engine's answer alone. Raises StokerAPIError (404) while there is none."""
        return await self._call(calls.job_result(job_id))

    async def cancel(self, job_id: str) -> Job:
        """Cancel a job. Raises StokerAPIError (409) when it has ended."""
        return await self._call(calls.cancel_job(job_id))

    async def list(self, *, metadata: Mapping[str, str] | None = None, **filters: Any) -> list[Job]:
        """Return a page of jobs, newest first, without results; filters: limit, after, state, lane, model, metadata."""
        return await self._call(calls.jobs(metadata, filters))

    async def usage(self, first: str | None = None, last: str | None = None, **filters: Any) -> Sequence[Usage]:
        """Return what was used from day to day (`2026-11-28`, UTC), by owner and model; filters: model, owner."""
        return await self._call(calls.usage(first, last, filters))

    # Bulks

    async def bulk(
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
        return await self._call(calls.bulk(source, params, idempotency_key, on_progress))

    async def bulk_from(
        self,
        *,
        file_id: str | None = None,
        input_url: str | None = None,
        idempotency_key: str | None = None,
        **params: Any,
    ) -> Bulk:
        """Start a bulk of an uploaded file, or of an object that the service fetches (s3://bucket/key)."""
        return await self._call(
            calls.bulk_from({"file_id": file_id, "input_url": input_url, **params}, idempotency_key)
        )

    async def get_bulk(self, bulk_id: str) -> Bulk:
        """Return a bulk as it is now."""
        return await self._call(calls.get_bulk(bulk_id))

    async def bulks(self, *, metadata: Mapping[str, str] | None = None, **filters: Any) -> Sequence[Bulk]:
        """Return a page of bulks, newest first; filters: limit, after, state, metadata."""
        return await self._call(calls.bulks(metadata, filters))

    async def wait_bulk(
        self,
        bulk_id: str,
        timeout: float | None = None,  # noqa: ASYNC109  # as Client.wait_bulk
        on_progress: Callable[[Bulk], object] | None = None,
    ) -> Bulk:
        """Return a bulk when it has ended; `on_progress` is told of it now and then. Raises TimeoutError."""
        return await self.perform(steps.wait_ended(calls.get_bulk(bulk_id), timeout, on_progress))

    async def iter_results(
        self, bulk_id: str, *, after: int = 0, errors: bool = False, follow: bool = True
    ) -> AsyncIterator[Result]:
        """Yield the results of a bulk (or its errors) as they come, until it has ended and all are read.

        A broken connection is mended on the way: no result comes twice, none is left out. Begin behind a result that
        you have with `after=result.seq`. Without `follow` it ends with what there is now.
        """
        reader = Results(bulk_id, after=after, errors=errors, follow=follow)
        while not reader.ended:
            for line in await self.perform(reader.page()):
                yield line.result

    async def download_results(self, bulk_id: str, to: Target, *, format: str = "jsonl", errors: bool = False) -> bool:  # noqa: A002  # the service's name for it
        """Download what results there are as jsonl, csv or parquet; return whether these are all."""
        with opened(to) as file:
            return await self._call(calls.download_results(bulk_id, format, Download(file), errors=errors))

    async def cancel_bulk(self, bulk_id: str) -> Bulk:
        """Cancel a bulk; what is finished stays. Raises StokerAPIError (409) when it has ended."""
        return await self._call(calls.steer_bulk(bulk_id, "cancel"))

    async def pause_bulk(self, bulk_id: str) -> Bulk:
        """Let a bulk's lines wait, all but those that run."""
        return await self._call(calls.steer_bulk(bulk_id, "pause"))

    async def resume_bulk(self, bulk_id: str) -> Bulk:
        """Let a paused bulk go on."""
        return await self._call(calls.steer_bulk(bulk_id, "resume"))

    async def move_bulk(self, bulk_id: str, lane: str) -> Bulk:
        """Bring what has not run yet into another lane."""
        return await self._call(calls.move_bulk(bulk_id, lane))

    async def retry_bulk(self, bulk_id: str, *, idempotency_key: str | None = None, **changes: Any) -> Bulk:
        """Run the lines that failed again, as a new bulk; `changes` replace parameters (max_tokens=500)."""
        return await self._call(calls.retry_bulk(bulk_id, changes, idempotency_key))

    async def delete_bulk(self, bulk_id: str) -> None:
        """Delete a bulk that has ended, its results too. Raises StokerAPIError (409) while it runs."""
        await self._call(calls.delete_bulk(bulk_id))

    # OpenAI's files and batches

    async def upload_file(self, source: Source, *, purpose: str = "batch", on_progress: Progress | None = None) -> File:
        """Upload a file."""
        return await self._call(openai_calls.upload_file(source, purpose, on_progress))

    async def get_file(self, file_id: str) -> File:
        """Return a file's description."""
        return await self._call(openai_calls.get_file(file_id))

    async def files(self, **filters: Any) -> Sequence[File]:
        """Return a page of files; filters: limit, after, order, purpose."""
        return await self._call(openai_calls.files(filters))

    async def download_file(self, file_id: str, to: Target) -> None:
        """Download a file's content."""
        with opened(to) as file:
            await self._call(openai_calls.download_file(file_id, Download(file)))

    async def delete_file(self, file_id: str) -> None:
        """Delete a file."""
        await self._call(openai_calls.delete_file(file_id))

    async def batch(self, input_file_id: str, *, idempotency_key: str | None = None, **params: Any) -> Batch:
        """Start a batch of an uploaded file; `params`: endpoint, completion_window, metadata, output_expires_after."""
        return await self._call(openai_calls.batch({"input_file_id": input_file_id, **params}, idempotency_key))

    async def get_batch(self, batch_id: str) -> Batch:
        """Return a batch as it is now."""
        return await self._call(openai_calls.get_batch(batch_id))

    async def batches(self, **filters: Any) -> Sequence[Batch]:
        """Return a page of batches, newest first; filters: limit, after."""
        return await self._call(openai_calls.batches(filters))

    async def wait_batch(
        self,
        batch_id: str,
        timeout: float | None = None,  # noqa: ASYNC109  # as Client.wait_batch
        on_progress: Callable[[Batch], object] | None = None,
    ) -> Batch:
        """Return a batch when it has ended; `on_progress` is told of it now and then. Raises TimeoutError."""
        return await self.perform(steps.wait_ended(openai_calls.get_batch(batch_id), timeout, on_progress))

    async def cancel_batch(self, batch_id: str) -> Batch:
        """Cancel a batch; what is finished stays. Raises StokerAPIError (409) when it has ended."""
        return await self._call(openai_calls.cancel_batch(batch_id))

    # How steps are performed

    async def _call(self, call: Call[T]) -> T:
        return await self.perform(steps.answered(call))

    async def perform(self, procedure: Steps[T]) -> T:
        """Perform a procedure of stoker.steps, and return what it returns."""
        outcome: Outcome = None
        while True:
            try:
                step = procedure.send(outcome)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]  # a generator's return value has no type here
            outcome = None
            if isinstance(step, Pause):
                await asyncio.sleep(step.seconds)
            else:
                outcome = await self._send(step)

    async def _read_events(self, reader: Events) -> AsyncIterator[Event]:
        try:
            async with self._http.stream(**connection.arguments(reader.call())) as answer:
                reader.outcome = answer
                if not answer.is_success:
                    await answer.aread()
                    return
                async for block in answer.aiter_bytes():
                    for event in reader.feed(block):
                        yield event
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reader.outcome = Lost(self._http.base_url, error)

    async def _send(self, call: Call[Any]) -> Outcome:
        content = drip(call.upload.blocks()) if call.upload else None
        try:
            async with self._http.stream(content=content, **connection.arguments(call)) as answer:
                if call.download and answer.is_success:
                    call.download.begin()
                    async for block in answer.aiter_bytes():
                        call.download.write(block)
                else:
                    await answer.aread()
                return answer
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return Lost(self._http.base_url, error)
