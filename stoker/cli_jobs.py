"""The commands that hand in jobs and ask for them, over HTTP."""

from __future__ import annotations

import json
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stoker.cli_http import (
    AfterOption,
    JobState,
    Lane,
    LimitOption,
    MetadataOption,
    duration,
    going_on,
    pairs,
    print_json,
    print_table,
    service,
)
from stoker.console import URL, JsonOption, KeyOption, UrlOption, examples, fail, hand_out, say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stoker.client import Client, Event, Job

app = typer.Typer()

_STARTED = 'id=$(stoker submit "Say hello.")'
"""How examples come to the id of a job."""


@app.command(
    epilog=examples(
        'stoker submit "What is the capital of France?" --wait',
        "cat question.txt | stoker submit - --max-tokens 200 --stream",
    )
)
def submit(  # noqa: PLR0913  # a command's options
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads it from the standard input.")],
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the answer and print it.")] = False,
    stream: Annotated[bool, typer.Option("--stream", help="Print the answer as it comes; lane: realtime.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to --wait at most.")] = 600.0,
    model: Annotated[str | None, typer.Option(help="Model.  [default: the service's own]")] = None,
    lane: Annotated[Lane | None, typer.Option(help="Lane that it waits in.  [default: standard]")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer, in tokens.")] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    url: UrlOption = URL,
    api_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hand in a job; print its id, or wait for its answer.

    With --wait or --stream the status is 0 when it succeeded, 1 when it did not.
    """
    text = sys.stdin.read() if prompt == "-" else prompt
    if stream:
        lane = lane or "realtime"
    options = {"model": model, "lane": lane, "max_tokens": max_tokens, "system": system, "stream": stream or None}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    with service(url, api_key) as client:
        job = client.submit(prompt=text, **given)
        if stream:
            _print_events(client, job.id, as_json=as_json)
            return
        if wait:
            from stoker.progress import working

            with going_on(job.id, "stoker follow"), working(f"{job.id} has not ended"):
                job = client.wait(job.id, timeout=timeout)
    if wait or as_json:
        _show(job, as_json=as_json, answer=wait)
    else:
        say(job.id)


@app.command(epilog=examples(_STARTED, "stoker status $id"))
def status(
    job_id: Annotated[str, typer.Argument(metavar="ID", help="The job's id.")],
    *,
    url: UrlOption = URL,
    api_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell where a job is, and its answer when it has ended."""
    with service(url, api_key) as client:
        job = client.get(job_id)
    _show(job, as_json=as_json, answer=False)


@app.command(epilog=examples(_STARTED, "stoker follow $id"))
def follow(
    job_id: Annotated[str, typer.Argument(metavar="ID", help="The job's id.")],
    *,
    url: UrlOption = URL,
    api_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print a job's answer as it comes, or when it has ended.

    It comes in pieces when the job was submitted with --stream. With --json its events are printed, one a line.
    """
    with service(url, api_key) as client:
        _print_events(client, job_id, as_json=as_json)


@app.command(epilog=examples(_STARTED, "stoker cancel $id"))
def cancel(
    job_id: Annotated[str, typer.Argument(metavar="ID", help="The job's id.")],
    *,
    url: UrlOption = URL,
    api_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Cancel a job that has not ended."""
    with service(url, api_key) as client:
        job = client.cancel(job_id)
    _show(job, as_json=as_json, answer=False)


@app.command(epilog=examples("stoker jobs --state failed", "stoker jobs --lane realtime --limit 100 --json"))
def jobs(  # noqa: PLR0913  # a command's options
    *,
    state: Annotated[JobState | None, typer.Option(help="Only those in this state.")] = None,
    lane: Annotated[Lane | None, typer.Option(help="Only those of this lane.")] = None,
    model: Annotated[str | None, typer.Option(help="Only those for this model.")] = None,
    metadata: MetadataOption = None,
    limit: LimitOption = 20,
    after: AfterOption = None,
    url: UrlOption = URL,
    api_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """List jobs, newest first."""
    filters = {"state": state, "lane": lane, "model": model, "limit": limit, "after": after}
    with service(url, api_key) as client:
        found = client.list(metadata=pairs(metadata, "--metadata"), **filters)
    if as_json:
        print_json(list(found))
        return
    now = time.time()
    print_table(
        [(job.id, job.state, job.lane, job.model, f"{duration(max(0.0, now - job.created_at))} ago") for job in found],
        empty="there are no such jobs",
    )


def _print_events(client: Client, job_id: str, *, as_json: bool) -> None:
    """Print the text of an answer as it comes, or each event as a line of JSON; a failed job ends the program."""
    printed = ""
    for event in _waited_for(client, job_id):
        if as_json:
            print_json({"event": event.kind, "id": event.id, "data": event.data})
        elif event.kind == "restart":
            say("\nstoker: the engine failed; the answer begins anew", err=True)
            printed = ""
        elif event.text:
            hand_out(event.text, nl=False)
            printed += event.text
        if event.kind == "end":
            _end(event.job, printed, as_json=as_json)


def _waited_for(client: Client, job_id: str) -> Iterator[Event]:
    """Yield a job's events; until one comes that is printed, it is told that it is waited for."""
    from stoker.progress import working

    with going_on(job_id, "stoker follow"), ExitStack() as waiting:
        waiting.enter_context(working(f"waiting for {job_id}"))
        for event in client.events(job_id):
            if event.text or event.kind != "state":
                waiting.close()
            yield event


def _end(job: Job, printed: str, *, as_json: bool) -> None:
    """Print what of an answer was not printed as it came."""
    if job.state != "succeeded":
        fail(f"job {job.id} {job.state}{_why(job)}")
    if as_json:
        return
    answer = _answer(job)
    whole = printed if printed and answer.startswith(printed) else ""
    if printed and not whole:
        say("\nstoker: parts were lost on their way; the whole answer:", err=True)
    hand_out(answer.removeprefix(whole))


def _show(job: Job, *, as_json: bool, answer: bool) -> None:
    """Print a job: as JSON, or its answer alone, or its id and where it is. A job that went wrong ends the program."""
    if as_json:
        print_json(job)
    elif answer and job.state == "succeeded":
        hand_out(_answer(job))
    elif not answer:
        say(_described(job))
    if answer and job.state != "succeeded":
        fail(f"job {job.id} {job.state}{_why(job)}")


def _described(job: Job) -> str:
    lines = [
        f"{job.id}  {job.state}{_why(job)}",
        f"  model {job.model}, lane {job.lane}, attempts {job.attempts}",
    ]
    if job.queue_position is not None:
        lines.append(f"  {job.queue_position} of your jobs in this lane go first")
    if job.finished_at is not None:
        lines.append(f"  took {job.finished_at - job.created_at:.2f} s, from the request to the end")
    if job.usage is not None:
        lines.append(f"  tokens: {job.usage['prompt_tokens']} read, {job.usage['completion_tokens']} written")
    if job.state == "succeeded":
        lines += ["", _answer(job)]
    return "\n".join(lines)


def _answer(job: Job) -> str:
    return job.text or json.dumps(job.result, ensure_ascii=False)


def _why(job: Job) -> str:
    return f": {job.error['message']} ({job.error['code']})" if job.error else ""
