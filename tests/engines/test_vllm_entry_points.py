"""The names of vLLM that we use, in the installed version and in the other one."""

from __future__ import annotations

import inspect
import subprocess
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stoker.settings import Settings
from tasks.engines import vllm as module
from tasks.engines.assembly import STREAMED
from tasks.engines.base import EngineStartError
from tasks.engines.vllm_answers import ENDPOINTS

# vLLM and torch warn of themselves while they load.
real = [pytest.mark.vllm, pytest.mark.timeout(300), pytest.mark.filterwarnings("default")]


def marked(function: Any) -> Any:
    """Mark a test that imports the real vLLM."""
    for mark in real:
        function = mark(function)
    return function


def test_importing_the_engine_does_not_import_vllm() -> None:
    """The module can be imported where vLLM is not installed, and costs nothing where it is."""
    code = "import sys, tasks.engines.vllm; sys.exit('vllm' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


@marked
@pytest.mark.parametrize("name", module.HOMES)
def test_every_name_is_there(name: str) -> None:
    """The installed vLLM has every name that we use."""
    assert module.find(name) is not None


@marked
def test_names_are_called_as_vllm_takes_them() -> None:
    """Functions and methods of vLLM still take what we give them."""
    inspect.signature(module.find("build_async_engine_client")).bind("args")
    inspect.signature(module.find("init_app_state")).bind("client", "state", "args", "tasks")
    inspect.signature(module.find("create_error_response")).bind(ValueError())
    inspect.signature(module.find("make_arg_parser")).bind("parser")
    client = sys.modules["vllm"].AsyncLLMEngine if hasattr(sys.modules["vllm"], "AsyncLLMEngine") else None
    from vllm.v1.engine.async_llm import AsyncLLM

    assert client is None or issubclass(client, AsyncLLM)
    inspect.signature(AsyncLLM.shutdown).bind("self", timeout=1.0)
    inspect.signature(AsyncLLM.get_supported_tasks).bind("self")
    assert isinstance(AsyncLLM.errored, property)


@marked
def test_cores_output_is_fetched_by_the_method_that_we_watch() -> None:
    """Progress is counted where vLLM's output handler looks its next step up on the client, each time anew."""
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.core_client import AsyncMPClient

    assert inspect.iscoroutinefunction(AsyncMPClient.get_output_async)
    assert "await engine_core.get_output_async()" in inspect.getsource(AsyncLLM._run_output_handler)


@marked
@pytest.mark.parametrize("path", sorted(STREAMED))
def test_requests_have_the_fields_that_we_set(path: str) -> None:
    """What generates has a priority, which a lane decides, and a response is named by its request's id."""
    kind = module.find(ENDPOINTS[path].request)
    assert "priority" in kind.model_fields
    assert not kind.model_config.get("frozen")
    assert "request_id" in kind.model_fields


@marked
def test_handlers_are_set_where_we_look_for_them() -> None:
    """The state of vLLM has the handlers under the names that we read, and they have the methods that we call."""
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
    from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
    from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
    from vllm.entrypoints.pooling.embed.serving import ServingEmbedding
    from vllm.entrypoints.pooling.scoring.serving import ServingScores

    classes: dict[str, Any] = {
        "openai_serving_chat": OpenAIServingChat,
        "openai_serving_completion": OpenAIServingCompletion,
        "openai_serving_responses": OpenAIServingResponses,
        "serving_embedding": ServingEmbedding,
        "serving_scores": ServingScores,
    }
    for endpoint in ENDPOINTS.values():
        inspect.signature(getattr(classes[endpoint.handler], endpoint.method)).bind("self", "body")


@marked
def test_settings_are_read_by_vllms_parser() -> None:
    """Our flags and any other are vLLM's own; requests are never logged, whatever the flags say."""
    settings = Settings(
        model="org/model",
        tensor_parallel_size=2,
        engine_args="--enable-log-requests --gpu-memory-utilization 0.5 --max-num-seqs 7",
    )
    args = module.parse(settings, "folder")
    assert (args.model, args.served_model_name) == ("folder", ["org/model"])
    assert (args.tensor_parallel_size, args.max_num_seqs, args.gpu_memory_utilization) == (2, 7, 0.5)
    assert args.enable_log_requests is False


@marked
@pytest.mark.parametrize(
    ("flags", "tensor", "pipeline", "data", "backend"),
    [
        ("--pipeline-parallel-size 2", 4, 2, 1, None),
        ("--data-parallel-size 8 --enable-expert-parallel", 4, 1, 8, None),
        ("--distributed-executor-backend ray --tensor-parallel-size 8 --pipeline-parallel-size 2", 8, 2, 1, "ray"),
    ],
)
def test_what_is_said_of_several_gpus_reaches_vllm(
    flags: str, tensor: int, pipeline: int, data: int, backend: str | None
) -> None:
    """Each flag that the page about scaling names, beside STOKER_TENSOR_PARALLEL_SIZE=4."""
    assert flags in (Path(__file__).parents[2] / "docs/scaling.md").read_text()
    args = module.parse(Settings(tensor_parallel_size=4, engine_args=flags), "folder")
    sizes = (args.tensor_parallel_size, args.pipeline_parallel_size, args.data_parallel_size)
    assert (*sizes, args.distributed_executor_backend) == (tensor, pipeline, data, backend)


@marked
def test_every_rank_has_its_own_places() -> None:
    """The limit of requests at once is that of one data-parallel rank; the engine has those of all."""
    from vllm.config import ParallelConfig

    assert {"data_parallel_size"} <= set(inspect.signature(ParallelConfig).parameters)
    config = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=7), parallel_config=ParallelConfig())
    assert module.places(config) == 7
    config.parallel_config.data_parallel_size = 3
    assert module.places(config) == 21


@marked
def test_the_workers_own_arguments_are_not_vllms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags never come from the command line of the process."""
    monkeypatch.setattr(sys, "argv", ["celery", "worker", "--dtype", "half", "--nonsense"])
    assert module.parse(Settings(dtype="float32"), "folder").dtype == "float32"


@marked
@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ("--frobnicate 3", "frobnicate"),
        ("--max-num-seqs many", "max-num-seqs"),
        ("--enable-auto-tool-choice", "tool-call-parser"),
        ("--help", "--help"),
    ],
)
def test_bad_flags_are_one_line(flags: str, part: str) -> None:
    """A wrong flag is told in the parser's words, in one line that names the variable."""
    with pytest.raises(EngineStartError) as raised:
        module.parse(Settings(engine_args=flags), "folder")
    assert str(raised.value).startswith("STOKER_ENGINE_ARGS: ")
    assert part in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("packages_stay", [True, False], ids=["packages stay", "packages go"])
@pytest.mark.parametrize(
    ("name", "home"),
    [(name, home) for name, homes in module.HOMES.items() if len(homes) > 1 for home in homes],
)
def test_every_versions_home_is_tried(
    monkeypatch: pytest.MonkeyPatch, name: str, home: str, *, packages_stay: bool
) -> None:
    """A name is found in whichever home has it, where the others are gone and where they are there without it."""
    wanted = object()

    def load(tried: str) -> types.SimpleNamespace:
        if tried == home:
            return types.SimpleNamespace(**{name: wanted})
        if packages_stay:
            return types.SimpleNamespace()
        raise ModuleNotFoundError(name=tried)

    monkeypatch.setattr(module.importlib, "import_module", load)
    assert module.find(name) is wanted


def test_a_broken_installation_is_not_taken_for_an_old_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that lacks something else fails with that name."""

    def load(home: str) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(module.importlib, "import_module", load)
    with pytest.raises(ModuleNotFoundError, match="torch"):
        module.find("init_app_state")


@pytest.mark.parametrize(
    ("missing", "message"),
    [("vllm", "vLLM is not installed"), ("vllm.entrypoints", "this version of vLLM is not supported")],
)
def test_no_vllm_or_another_one_is_one_line(monkeypatch: pytest.MonkeyPatch, missing: str, message: str) -> None:
    """A machine without vLLM, or with a version that we do not know, says so."""

    def load(home: str) -> None:
        raise ModuleNotFoundError(name=missing)

    monkeypatch.setattr(module.importlib, "import_module", load)
    with pytest.raises(EngineStartError, match=message):
        module.find("init_app_state")
