"""Time to the first token and to the last through stoker, beside the same engine behind nothing but a web server.

Several clients stream chats and pause between them. The fake engine takes a set time (`--base-ms`, `--token-ms`), so
that what stoker adds can be seen; `--real` takes vLLM and its own server instead, which on a CPU is busy with the model
alone: what is added then is queueing for two cores.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from benchmarks import service, streaming
from benchmarks.report import Report, parser, percentile
from benchmarks.service import BenchmarkError
from benchmarks.streaming import Timing
from tests import servers

SHARES = (0.5, 0.9, 0.99)


def main(argv: Sequence[str]) -> None:
    """Stream the same chats through both, in turn, and write what stoker adds."""
    options = _options(argv)
    report = Report("first_token", options)
    settings = _settings(options)
    timings: dict[str, list[Timing]] = {"alone": [], "stoker": []}
    for number in range(options.rounds):
        for side in ("alone", "stoker") if number % 2 == 0 else ("stoker", "alone"):
            with _serving(side, settings, options) as (url, model):
                chats = streaming.bodies(options.requests, model, options.tokens)
                streaming.closed_loop(url, chats[: 2 * options.clients], options.clients, 0.1)
                timings[side] += streaming.closed_loop(url, chats, options.clients, options.pause)
            report.say(f"round {number + 1}: {side}: {len(timings[side])} chats")
    _tell(report, timings)
    report.write()


@contextmanager
def _serving(side: str, settings: dict[str, object], options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    if side == "stoker":
        with service.running(settings, sqlite=options.sqlite) as up:
            yield up.url, up.model
    elif not options.real:
        with streaming.bare(settings) as url:
            yield url, "fake"
    else:
        with vllm_alone(settings) as url:
            yield url, str(settings["model_name"])


@contextmanager
def vllm_alone(settings: dict[str, object]) -> Iterator[str]:
    """Run vLLM's own server with the flags that stoker gives its engine; yields its address."""
    port = servers.free_port()
    flags = ["--model", str(settings["model"]), "--served-model-name", str(settings["model_name"])]
    flags += ["--host", "127.0.0.1", "--port", str(port)]
    flags += str(settings["engine_args"]).split()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *flags]
    with service.child(command, service.environment(settings)) as (process, said):

        def up() -> bool:
            if process.poll() is not None:
                raise BenchmarkError("vLLM's server did not start: " + " ".join(said[-5:]))
            return any("Application startup complete" in line for line in said)

        service.wait_until(up, service.PATIENCE, "vLLM's server")
        yield f"http://127.0.0.1:{port}"


def _settings(options: argparse.Namespace) -> dict[str, object]:
    if options.real:
        return {**service.engine_settings(options), "log_level": "warning"}
    return {
        "engine": "fake",
        "fake_base_ms": options.base_ms,
        "fake_token_ms": options.token_ms,
        "log_level": "warning",
    }


def _tell(report: Report, timings: dict[str, list[Timing]]) -> None:
    rows = []
    for what, value in (("first token", "first"), ("whole answer", "total")):
        found = {
            side: [percentile([1000 * float(getattr(one, value)) for one in taken], share) for share in SHARES]
            for side, taken in timings.items()
        }
        added = [through - alone for through, alone in zip(found["stoker"], found["alone"], strict=True)]
        report.figures[value] = {**found, "added": added}
        rows += [[what, side, *figures] for side, figures in (*found.items(), ("added", added))]
    head = ["milliseconds", "", *(f"p{share * 100:g}" for share in SHARES)]
    report.table(f"{len(timings['stoker'])} chats over {report.options.clients} clients", head, rows)


def _options(argv: Sequence[str]) -> argparse.Namespace:
    wanted = parser("first_token", __doc__)
    wanted.add_argument("--requests", type=int, default=400, help="chats in each round and side")
    wanted.add_argument("--rounds", type=int, default=2)
    wanted.add_argument("--clients", type=int, default=8)
    wanted.add_argument("--pause", type=float, default=0.5, help="most seconds that a client pauses after a chat")
    wanted.add_argument("--tokens", type=int, default=32)
    wanted.add_argument("--base-ms", type=float, default=50)
    wanted.add_argument("--token-ms", type=float, default=20)
    wanted.add_argument("--real", action="store_true", help="vLLM instead of the fake engine")
    wanted.add_argument("--sqlite", action="store_true", help="SQLite instead of PostgreSQL")
    service.engine_options(wanted)
    return wanted.parse_args(argv)
