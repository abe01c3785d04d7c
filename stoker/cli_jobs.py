"""The commands that hand in jobs and ask for them, over HTTP."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stoker.cli_http import print_json, service
from stoker.console import URL, JsonOption, KeyOption, UrlOption, fail

if TYPE_CHECKING:
    from stoker.client import Job

app = typer.Typer()


@app.command(
    epilog='Examples:\n\n  stoker submit "What is the capital of France?" --wait\n\n  '
    "cat question.txt | stoker submit - --lane realtime --max-tokens 200 --wait"
)
def submit(  # noqa: PLR0913  # a command's options
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads it from the standard input.")],
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the answer and print it.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait at most.")] = 600.0,
    model: Annotated[str | None, typer.Option(help="Model.  [default: the service's own]")] = None,
    lane: Annotated[str | None, typer.Option(help="realtime, standard or bulk.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer, in tokens.")] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    url: UrlOption = URL,
    api_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hand in a job; print its id, or its answer with --wait."""
    text = sys.stdin.read() if prompt == "-" else prompt
    options = {"model": model, "lane": lane, "max_tokens": max_tokens, "system": system}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    with service(url, api_key) as client:
        job = client.submit(prompt=text, **given)
        if wait:
            job = client.wait(job.id, timeout=timeout)
    if wait or as_json:
        _show(job, as_json=as_json, answer=wait)
    else:
        typer.echo(job.id)


@app.command()
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


@app.command()
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


def _show(job: Job, *, as_json: bool, answer: bool) -> None:
    """Print a job: as JSON, or its answer alone, or its id and where it is. A job that went wrong ends the program."""
    if as_json:
        print_json(job)
    elif answer and job.state == "succeeded":
        typer.echo(_answer(job))
    elif not answer:
        typer.echo(_described(job))
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
