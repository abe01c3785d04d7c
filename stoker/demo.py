"""The demo: real answers go the whole way, then everything is stopped. `make demo`, `stoker demo`.

It starts `stoker up` beside itself on a free port, talks to it as any client would, and looks into the database only to
tell which batches the collector formed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from standardwebhooks import Webhook, WebhookVerificationError

from stoker.client import Client, Job, StokerAPIError
from stoker.local import webhook_secret
from stoker.processes import Ledger, sessions
from stoker.receiver import Receiver
from stoker.unwinding import unwinding_at_signals

START_WITHIN = 1200.0
JOB_WITHIN = 180.0
JOBS_WITHIN = 600.0
STOP_WITHIN = 90.0
# Where another service is and how it signs; the demo's own is on loopback, with everything in its data folder.
_NOT_OURS = frozenset({"STOKER_DATABASE_URL", "STOKER_REDIS_URL", "STOKER_WEBHOOK_SECRET", "STOKER_HOST"})
JOBS = 32
AT_ONCE = 8

QUESTION = "What is the capital of France?"
SUBJECTS = (
    "the sea, a steam engine, a lighthouse, bread, the moon, a library, winter, a violin, rain, a bicycle, an apple, "
    "a clock, fire, a bridge, a garden, salt, a letter, a train, snow, a mirror, a river, honey, a candle, wool, "
    "the wind, a map, glass, a harbour, coffee, a forge, a market, stars"
)

console = Console(highlight=False, soft_wrap=True)


class DemoFailed(Exception):
    """A step did not show what it is to show; the text says why."""


class Up:
    """A `stoker up` in the background; what it prints is shown as it comes."""

    def __init__(self, engine: str, data: Path) -> None:
        """Start it on a free port."""
        self.data = data
        self.url = ""
        command = [sys.executable, "-m", "stoker.cli", "up", "--port", "0", "--data", str(data), "--engine", engine]
        # It must live longer than a Ctrl-C in this terminal: it is stopped, and then looked at.
        self._process = subprocess.Popen(
            command,
            env=environment(os.environ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._said: SimpleQueue[str | None] = SimpleQueue()
        self._last = ""
        threading.Thread(target=self._listen, daemon=True).start()

    def wait_ready(self) -> None:
        """Return when it is ready. Raises DemoFailed."""
        until = time.monotonic() + START_WITHIN
        while not self.url:
            try:
                line = self._said.get(timeout=max(0.0, until - time.monotonic()))
            except Empty:
                raise DemoFailed(f"the service was not ready within {START_WITHIN:.0f} s") from None
            if line is None:
                raise DemoFailed(f"`stoker up` ended: {self._last}")
            if line.startswith("ready "):
                self.url = line.removeprefix("ready ").strip()

    def stop(self) -> None:
        """Stop it as Ctrl-C does, and make sure that nothing is left. Raises DemoFailed."""
        recorded = Ledger(self.data / "run/processes.json").read()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        try:
            status = self._process.wait(STOP_WITHIN)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            Ledger(self.data / "run/processes.json").reap()
            raise DemoFailed(f"`stoker up` did not stop within {STOP_WITHIN:.0f} s") from None
        left = [pid for members in sessions([it.pid for it in recorded]).values() for pid in members]
        if left:
            raise DemoFailed(f"still running: {left}")
        if self.url and status != 0:
            raise DemoFailed(f"`stoker up` ended with status {status}")

    def _listen(self) -> None:
        for line in self._process.stdout or ():
            self._last = line.strip()
            # Read on whoever looks: rich raises SystemExit when the terminal is gone.
            with suppress(OSError, SystemExit):
                console.print(
                    f"  [dim]up[/]  {line.rstrip()}" if not line.startswith("ready ") else f"  [bold]{line.strip()}[/]"
                )
            self._said.put(line)
        self._said.put(None)


def environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the demo's service: nothing in it leads to a service that the person runs already."""
    kept = {name: value for name, value in inherited.items() if name not in _NOT_OURS}
    return kept | {"STOKER_WEBHOOK_ALLOW_CIDRS": "127.0.0.1/32"}


def run(engine: str, data: Path) -> None:
    """Show every step. Raises DemoFailed."""
    data = data.absolute()
    times: list[tuple[str, float]] = []
    began = time.monotonic()
    console.print(f"[bold]stoker demo[/]: the whole service in {data}")
    try:
        with unwinding_at_signals(), ExitStack() as stack:
            with _timed("start", times):
                up = Up(engine, data)
                stack.callback(_stop, up, times)
                up.wait_ready()
            client = stack.enter_context(closing(Client(up.url)))
            with _timed("one job", times):
                one_job(client)
            with _timed(f"{JOBS} jobs", times):
                many_jobs(client, data)
            with _timed("webhook", times):
                webhook(client, data)
    except (StokerAPIError, TimeoutError, DemoFailed) as error:
        raise DemoFailed(f"{error}{_logs(data)}") from error
    console.print("\n[bold]done[/]: everything was stopped, nothing is left running")
    for name, seconds in times:
        console.print(f"  {name:<10} {seconds:6.1f} s")
    console.print(f"  {'in all':<10} {time.monotonic() - began:6.1f} s")


def one_job(client: Client) -> None:
    """Hand in one chat and poll until it has its answer."""
    job = client.submit(prompt=QUESTION, max_tokens=40, temperature=0)
    console.print(f"  POST /v1/jobs          202 {job.id} {job.state}")
    until, seen = time.monotonic() + JOB_WITHIN, job.state
    while not job.ended:
        if time.monotonic() > until:
            raise DemoFailed(f"job {job.id} is still {job.state} after {JOB_WITHIN:.0f} s")
        time.sleep(0.1)
        job = client.get(job.id)
        if job.state != seen:
            seen = job.state
            console.print(f"  GET  /v1/jobs/<id>     {job.state}")
    _succeeded([job])
    console.print(f"  [cyan]{job.model} was asked:[/] {QUESTION}", markup=True)
    console.print("  [cyan]and answered:[/] ", end="")
    console.print(job.text.strip(), markup=False)


def many_jobs(client: Client, data: Path) -> None:
    """Hand in many jobs at once; tell how fast they were and which batches they made."""

    def hand_in(subject: str) -> Job:
        return client.submit(prompt=f"Write two sentences about {subject}.", max_tokens=48)

    began = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as threads:
        jobs = list(threads.map(hand_in, SUBJECTS.split(", ")[:JOBS]))
    console.print(f"  {len(jobs)} jobs handed in within {time.monotonic() - began:.2f} s")
    ended = _with_progress(client, [job.id for job in jobs])
    took = time.monotonic() - began
    _succeeded(ended)
    written = sum((job.usage or {}).get("completion_tokens", 0) for job in ended)
    console.print(f"  {written} tokens in {took:.1f} s: [bold]{written / took:.0f} tokens/s[/]")
    sizes = batch_sizes(data / "stoker.db", [job.id for job in ended])
    console.print(f"  the collector formed {len(sizes)} batches of {', '.join(map(str, sizes))} jobs")
    example = ended[0]
    console.print("  for example: ", end="")
    console.print(" ".join(example.text.split()), markup=False)


def webhook(client: Client, data: Path) -> None:
    """Have the end of a job told to a receiver of our own, and check who signed it."""
    with Receiver() as receiver:
        job = client.submit(prompt="Say hello.", max_tokens=16, webhook_url=receiver.url)
        console.print(f"  job {job.id} tells {receiver.url}")
        came = receiver.wait(timeout=JOB_WITHIN)[0]
    try:
        event = Webhook(webhook_secret(data)).verify(came.body, came.headers)
    except WebhookVerificationError as error:
        raise DemoFailed(f"the webhook's signature is wrong: {error}") from None
    if event["data"]["id"] != job.id or event["type"] != "job.succeeded":
        raise DemoFailed(f"the webhook tells of something else: {json.dumps(event)}")
    console.print(f"  received {event['type']}, signature verified ({came.headers['webhook-id']})")


def batch_sizes(database: Path, ids: Sequence[str]) -> list[int]:
    """Return the sizes of the batches in which these jobs ran, in the order in which they were cut."""
    marks = ",".join("?" * len(ids))
    chosen = (
        "SELECT size FROM batches WHERE id IN"  # noqa: S608  # only question marks are put in
        f" (SELECT batch_id FROM jobs WHERE id IN ({marks})) ORDER BY created_at"
    )
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
        return [int(row[0]) for row in connection.execute(chosen, list(ids))]


def _with_progress(client: Client, ids: Sequence[str]) -> list[Job]:
    """Wait until all jobs have ended, showing how many have."""
    until = time.monotonic() + JOBS_WITHIN
    bar = Progress(TextColumn("  jobs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console)
    waiting, ended = list(ids), dict[str, Job]()
    with bar:
        task = bar.add_task("jobs", total=len(ids))
        while waiting:
            # The oldest is waited for; the others of its batch have mostly ended with it.
            job = client.wait(waiting[0], timeout=max(1.0, until - time.monotonic()))
            ended[job.id] = job
            waiting.remove(job.id)
            bar.update(task, completed=len(ended))
    return [ended[job_id] for job_id in ids]


def _succeeded(jobs: Sequence[Job]) -> None:
    for job in jobs:
        if job.state != "succeeded" or not job.text.strip():
            why = job.error["message"] if job.error else "it has no text"
            raise DemoFailed(f"job {job.id} ended as {job.state}: {why}")


def _stop(up: Up, times: list[tuple[str, float]]) -> None:
    began = time.monotonic()
    # It is stopped even when there is nobody any more to be told so.
    with suppress(OSError, SystemExit):
        console.print("\n[bold]stop[/]")
    up.stop()
    times.append(("stop", time.monotonic() - began))


@contextmanager
def _timed(name: str, times: list[tuple[str, float]]) -> Iterator[None]:
    console.print(f"\n[bold]{name}[/]")
    began = time.monotonic()
    try:
        yield
    finally:
        times.append((name, time.monotonic() - began))


def _logs(data: Path, lines: int = 5) -> str:
    """Return the ends of the logs that tell of errors."""
    found = []
    for log in sorted((data / "logs").glob("*.log")):
        last = log.read_text(errors="replace").splitlines()[-lines:]
        if any(word in line for line in last for word in ("rror", "Traceback", "stoker ")):
            found += [f"\n{log}:", *(f"\n    {line[:300]}" for line in last)]
    return "".join(found)


def main() -> int:
    """Run the demo as a program; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m stoker.demo", description="See real answers go the whole way.")
    parser.add_argument("--engine", choices=["vllm", "fake"], default="vllm")
    parser.add_argument("--data", type=Path, default=Path("var/demo"))
    given = parser.parse_args()
    try:
        run(given.engine, given.data)
    except DemoFailed as error:
        print(f"stoker demo failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
