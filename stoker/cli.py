"""The command `stoker`: run the service, hand in jobs, look after keys and the database.

Whatever a command needs is imported when it runs, so that `--help` and the HTTP commands answer at once.
"""

from __future__ import annotations

import io
import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from stoker import (
    cli_admin,
    cli_batches,
    cli_bulk_run,
    cli_bulk_submit,
    cli_bulks,
    cli_completion,
    cli_jobs,
    cli_keys,
    cli_top,
    cli_usage,
    cli_webhooks,
)
from stoker.console import (
    READER_GONE,
    STATUSES,
    DatabaseOption,
    DataOption,
    JsonOption,
    dim,
    examples,
    fail,
    give_up_output,
    json_line,
    settings_errors,
    tell,
    words,
)

ENGINES = words("vllm", "upstream", "fake")
PROCESSES = words("web", "collector", "worker", "bulk", "engine", "beat")


class _Root(TyperGroup):
    """The command line, whole or without the service: `stoker-client` has only the commands that speak HTTP."""

    def invoke(self, ctx: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # what a terminal has no sign for is a question mark
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError:
            if find_spec("stoker.settings"):
                raise
            fail("this is the client alone: `pip install .` in the folder of stoker's source has the service", 2)
        except BrokenPipeError:
            give_up_output()
            raise typer.Exit(READER_GONE) from None
        except UnicodeError:
            fail("a text that was given is not UTF-8", 2)
        except OSError as error:
            fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))


app = typer.Typer(
    name="stoker",
    cls=_Root,
    help="Feed GPUs: a queue of LLM jobs, batched onto vLLM.\n\n"
    "STOKER_URL and STOKER_API_KEY say which service is meant; `stoker COMMAND --help` shows examples.",
    epilog="\n".join(["Exit status:", "", "\b", *(f"  {status:>3}  {means}" for status, means in STATUSES.items())]),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command(
    epilog=examples(
        "stoker up",
        "stoker up --port 9000 --data /srv/stoker",
        "stoker up --model Qwen/Qwen2.5-7B-Instruct --database-url postgresql://stoker@db/stoker",
    )
)
def up(
    host: Annotated[str | None, typer.Option(envvar="STOKER_HOST", help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(envvar="STOKER_PORT", help="Port; 0: a free one.")] = None,
    data: DataOption = None,
    database_url: DatabaseOption = None,
    redis_url: Annotated[
        str | None, typer.Option(envvar="STOKER_REDIS_URL", help="Redis to use.  [default: the bundled one]")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            envvar="STOKER_ENGINE", help="vllm, upstream, or fake for trials.  [default: vllm]", autocompletion=ENGINES
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(envvar="STOKER_MODEL", help="Hugging Face id or folder.  [default: the demo model]"),
    ] = None,
    model_name: Annotated[
        str | None, typer.Option(envvar="STOKER_MODEL_NAME", help="Name that clients ask for.")
    ] = None,
) -> None:
    """Run the whole service on this machine, until Ctrl-C.

    It prints `ready` and its address once it takes jobs. An engine that cannot start ends it with status 78.
    """
    from stoker.local import UpError
    from stoker.local import up as run

    began = time.monotonic()
    options = {
        "host": host,
        "port": port,
        "data": data,
        "database_url": database_url,
        "redis_url": redis_url,
        "engine": engine,
        "model": model,
        "model_name": model_name,
    }
    given = {name: value for name, value in options.items() if value not in {None, ""}}

    def say(text: str) -> None:
        line = text if text.startswith("ready ") else f"{dim(f'{time.monotonic() - began:6.1f} s')}  {text}"
        tell(line)

    with settings_errors():
        try:
            status = run(given, say)
        except UpError as error:
            fail(str(error), error.status)
    give_up_output()
    raise typer.Exit(status)


@app.command(
    epilog=examples(
        "stoker engine embed --model BAAI/bge-small-en-v1.5",
        "STOKER_UPSTREAMS=http://127.0.0.1:8080 stoker engine router --engine upstream",
    )
)
def engine(
    name: Annotated[str, typer.Argument(help="A name of its own, which it keeps over restarts.")],
    *,
    engine: Annotated[
        str | None, typer.Option(envvar="STOKER_ENGINE", help="vllm, upstream or fake.", autocompletion=ENGINES)
    ] = None,
    model: Annotated[str | None, typer.Option(envvar="STOKER_MODEL", help="Hugging Face id or folder.")] = None,
    model_name: Annotated[
        str | None, typer.Option(envvar="STOKER_MODEL_NAME", help="Name that clients ask for.")
    ] = None,
    data: DataOption = None,
    database_url: DatabaseOption = None,
    redis_url: Annotated[
        str | None, typer.Option(envvar="STOKER_REDIS_URL", help="Redis of the service.  [default: that of --data]")
    ] = None,
) -> None:
    """Run one more engine, for another model, GPU or machine.

    Until Ctrl-C. The service that it is for runs: that of the data folder, or of a database and Redis.
    """
    from stoker.one_engine import run
    from stoker.running import UpError

    options = {
        "engine_name": name,
        "engine": engine,
        "model": model,
        "model_name": model_name,
        "data": data,
        "database_url": database_url,
        "redis_url": redis_url,
    }
    with settings_errors():
        try:
            status = run({key: value for key, value in options.items() if value not in {None, ""}}, tell)
        except UpError as error:
            fail(str(error), error.status)
    give_up_output()
    raise typer.Exit(status)


@app.command(epilog=examples("stoker ps", "stoker ps --json --data /srv/stoker | jq -r '.[].name'"))
def ps(*, data: DataOption = None, as_json: JsonOption = False) -> None:
    """List the processes of the `stoker up` of a data folder."""
    from stoker.processes import Ledger

    folder = (data or Path("var")).expanduser()
    alive = [process for process in Ledger(folder / "run/processes.json").read() if process.alive]
    if as_json:
        print(json_line([{"name": process.name, "pid": process.pid} for process in alive]))
        return
    for process in alive:
        print(f"{process.pid:>8}  {process.name}")
    if not alive:
        print(f"nothing runs in {folder}", file=sys.stderr)


@app.command(epilog=examples("stoker health web", "STOKER_DATA=/srv/stoker stoker health collector"))
def health(
    part: Annotated[
        str,
        typer.Argument(metavar="PART", help="web, collector, worker, bulk, engine or beat.", autocompletion=PROCESSES),
    ],
) -> None:
    """Fail unless a part of the service does its work.

    For health checks of containers; the settings of the environment say where the service is.
    """
    from stoker.health import PARTS, Unhealthy
    from stoker.settings import load

    if part not in PARTS:
        fail(f"there is no part {part!r}: choose one of {', '.join(PARTS)}", 2)
    with settings_errors():
        try:
            PARTS[part](load())
        except Unhealthy as error:
            fail(str(error))
    print("ok")


@app.command(epilog=examples("stoker demo", "stoker demo --engine fake"))
def demo(
    engine: Annotated[str, typer.Option(help="vllm, or fake for a quick look.", autocompletion=ENGINES)] = "vllm",
    data: Annotated[Path, typer.Option(help="Folder for the demo's data.")] = Path("var/demo"),
) -> None:
    """See real answers go the whole way, then stop everything."""
    from stoker.demo import DemoFailed, run

    try:
        run(engine, data)
    except DemoFailed as error:
        fail(str(error))


bulk = typer.Typer(help="Many prompts at once: a file goes up, its results come back.", no_args_is_help=True)

app.add_typer(cli_jobs.app)
app.add_typer(cli_top.app)
app.add_typer(cli_admin.care)
bulk.add_typer(cli_bulk_run.app)
bulk.add_typer(cli_bulk_submit.app)
bulk.add_typer(cli_bulks.app)
app.add_typer(bulk, name="bulk")
app.add_typer(cli_batches.app, name="batch")
app.add_typer(cli_webhooks.app, name="webhooks")
app.add_typer(cli_usage.app)
app.add_typer(cli_keys.app, name="keys")
app.add_typer(cli_admin.db, name="db")
app.add_typer(cli_completion.app, name="completion")

if cli_completion.ASKED in os.environ:
    cli_completion.know_shells()


if __name__ == "__main__":
    app()
