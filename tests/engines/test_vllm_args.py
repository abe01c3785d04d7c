"""What vLLM is told, and what its failures to start mean, without vLLM."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stoker.settings import Settings
from tasks.engines import vllm_args
from tasks.engines.base import EngineStartError

GIB = 1 << 30


def line(*, cpu: bool = False, dtype: str = "", **settings: object) -> list[str]:
    """Build the flags for a model in /models/llama."""
    made = Settings(model="/models/llama", **settings)  # type: ignore[arg-type]
    return vllm_args.command_line(made, "/models/llama", cpu=cpu, dtype=dtype)


def test_flags_of_a_gpu() -> None:
    """On a GPU vLLM is told the model, its name and the parallel size; the rest is its own choice."""
    assert line() == [
        *("--model", "/models/llama"),
        *("--served-model-name", "llama"),
        *("--tensor-parallel-size", "1"),
        *("--scheduling-policy", "priority"),
        "--enable-prompt-tokens-details",
        *("--allowed-media-domains", "none.invalid"),
    ]


def test_flags_of_a_cpu() -> None:
    """On a CPU the number format is chosen and nothing is compiled."""
    flags = line(cpu=True, dtype="float32")
    assert flags[flags.index("--dtype") + 1] == "float32"
    assert "--enforce-eager" in flags


def test_settings_go_to_vllm() -> None:
    """Each engine setting is the flag that it is named for, and an explicit dtype wins."""
    flags = line(tensor_parallel_size=4, max_model_len=1000)
    assert flags[flags.index("--tensor-parallel-size") + 1] == "4"
    assert flags[flags.index("--max-model-len") + 1] == "1000"
    chosen = vllm_args.command_line(Settings(dtype="bfloat16"), "m", cpu=True, dtype="float32")
    assert chosen[chosen.index("--dtype") + 1] == "bfloat16"


def test_any_flag_passes_through_and_wins() -> None:
    """What STOKER_ENGINE_ARGS says comes last, quoted as in a shell, and takes the place of ours."""
    flags = line(engine_args="--max_model_len=64 --chat-template 'my template.jinja'", max_model_len=1000)
    assert flags[-3:] == ["--max_model_len=64", "--chat-template", "my template.jinja"]
    assert "--max-model-len" not in flags
    assert "1000" not in flags


def test_the_operators_policy_stays() -> None:
    """Lanes become vLLM's priorities unless the operator chose how vLLM schedules."""
    flags = line(engine_args="--scheduling-policy fcfs")
    assert flags[-2:] == ["--scheduling-policy", "fcfs"]
    assert "priority" not in flags


def test_media_are_fetched_from_where_the_operator_says() -> None:
    """A chat's image_url leads nowhere by default; the operator's own list takes its place."""
    flags = line(engine_args="--allowed-media-domains a.example.com b.example.com")
    assert flags[-3:] == ["--allowed-media-domains", "a.example.com", "b.example.com"]
    assert vllm_args.NO_DOMAIN not in flags
    chosen = vllm_args.environment(Settings(), "m", Path("log.json"), 8 * GIB)
    assert chosen["VLLM_MEDIA_URL_ALLOW_REDIRECTS"] == "0"


def test_bad_quotes_are_one_line() -> None:
    """An open quote names the variable."""
    with pytest.raises(EngineStartError, match="STOKER_ENGINE_ARGS cannot be read"):
        line(engine_args="--chat-template 'open")


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ({"avx2"}, "float32"),
        ({"avx2", "avx512f", "avx512_vnni"}, "float32"),
        ({"avx512f", "avx512_bf16"}, "bfloat16"),
        ({"amx_bf16"}, "bfloat16"),
        (set(), "float32"),
    ],
)
def test_dtype_follows_the_processor(flags: set[str], dtype: str) -> None:
    """bfloat16 only where the processor has instructions for it."""
    assert vllm_args.cpu_dtype(frozenset(flags)) == dtype


def test_processor_flags_are_read(tmp_path: Path) -> None:
    """The first processor's flags are taken; a machine without the file has none."""
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu avx2 amx_bf16\n\nprocessor\t: 1\nflags\t\t: fpu\n")
    assert vllm_args.cpu_flags(cpuinfo) == {"fpu", "avx2", "amx_bf16"}
    assert vllm_args.cpu_flags(tmp_path / "none") == frozenset()


def test_free_memory_is_read(tmp_path: Path) -> None:
    """Free memory is what Linux calls available."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  8 kB\nMemFree:  1 kB\nMemAvailable:  4 kB\n")
    assert vllm_args.available_memory(meminfo) == 4096
    assert vllm_args.available_memory(tmp_path / "none") == 0


@pytest.mark.parametrize(("free", "cache"), [(0, "1"), (6, "1"), (9, "2"), (100, "4")])
def test_environment(tmp_path: Path, free: int, cache: str) -> None:
    """Nothing is sent out, the core is spawned, and a CPU's cache is a quarter of the free memory, at most 4 GiB."""
    found = vllm_args.environment(Settings(), str(tmp_path), tmp_path / "log.json", free * GIB)
    assert found["VLLM_NO_USAGE_STATS"] == found["DO_NOT_TRACK"] == found["HF_HUB_OFFLINE"] == "1"
    assert found["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"
    assert found["VLLM_CPU_KVCACHE_SPACE"] == cache


def test_environment_leaves_room_for_choices(tmp_path: Path) -> None:
    """A Hugging Face id may be downloaded, and the operator's own memory flags are not overruled."""
    settings = Settings(engine_args="--kv-cache-memory-bytes 1G")
    found = vllm_args.environment(settings, "org/model", tmp_path / "log.json", 100 * GIB)
    assert "HF_HUB_OFFLINE" not in found
    assert "VLLM_CPU_KVCACHE_SPACE" not in found


def test_log_config_keeps_warnings(tmp_path: Path) -> None:
    """Warnings of vLLM go to stderr, and errors to a file too."""
    config = json.loads(vllm_args.log_config(tmp_path / "errors"))
    assert config["loggers"]["vllm"]["level"] == config["handlers"]["stderr"]["level"] == "WARNING"
    assert config["handlers"]["file"] | {"formatter": 0} == {
        "class": "logging.FileHandler",
        "formatter": 0,
        "level": "ERROR",
        "filename": str(tmp_path / "errors"),
        "delay": True,
    }


TRACE = """ERROR 12:00:00 [vllm.v1.engine.core] EngineCore failed to start.
Traceback (most recent call last):
  File "core.py", line 1, in run
{first}
Traceback (most recent call last):
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {{}}
"""
FAILED = RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}")
KILLED = RuntimeError(
    "Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': -9}"
)


@pytest.mark.parametrize(
    ("error", "first", "start", "part"),
    [
        (FAILED, "torch.OutOfMemoryError: CUDA out of memory. Tried", "not enough memory", "CUDA out of memory"),
        (FAILED, "ValueError: No available memory for the cache blocks.", "not enough memory", "STOKER_MAX_MODEL_LEN"),
        (KILLED, "", "not enough memory", "smaller model"),
        (FAILED, "ValueError: head size 7 is not supported", "vLLM cannot start with m", "head size 7"),
        (
            OSError("nobody/x is not a local folder and is not a valid\nmodel"),
            "",
            "STOKER_MODEL: cannot load m",
            "x is",
        ),
        (
            ValueError("1 error\n[type=value_error, input_value={\n'a': 1}, input_type=dict]\nbad"),
            "",
            "vLLM",
            "1 error bad",
        ),
        (TimeoutError(), "", "m was not loaded in time", "STOKER_START_TIMEOUT"),
        (KeyError(), "", "vLLM cannot start with m", "KeyError"),
    ],
)
def test_failures_are_one_line(error: Exception, first: str, start: str, part: str) -> None:
    """Each failure to start is one line with its cause and what to do."""
    found = str(vllm_args.start_error("m", error, TRACE.format(first=first) if first else ""))
    assert found.startswith(start)
    assert part in found
    assert "\n" not in found


def test_folders_without_a_model_are_found_at_once(tmp_path: Path) -> None:
    """A missing or empty folder is told before vLLM is imported; a Hugging Face id is vLLM's to find."""
    with pytest.raises(EngineStartError, match="there is no folder"):
        vllm_args.check_model(str(tmp_path / "missing"))
    with pytest.raises(EngineStartError, match="holds no model"):
        vllm_args.check_model(str(tmp_path))
    (tmp_path / "config.json").touch()
    vllm_args.check_model(str(tmp_path))
    vllm_args.check_model("org/model")


def test_long_causes_are_cut() -> None:
    """A cause of pages is a line."""
    assert len(str(vllm_args.start_error("m", ValueError("x" * 10_000), ""))) < 600
