"""What vLLM is told when it starts, and what its failures to start mean to a person. Imports no vLLM."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from stoker.settings import Settings
from tasks.engines.base import EngineStartError

GIB = 1 << 30
MOST_CPU_CACHE = 4
"""GiB of KV cache on a CPU unless `VLLM_CPU_KVCACHE_SPACE` says otherwise."""

CPU_CACHE_FLAGS = re.compile(r"--(kv[-_]cache[-_]memory[-_]bytes|gpu[-_]memory[-_]utilization)")

OUT_OF_MEMORY = re.compile(
    r"out of memory|outofmemory|no available memory|available memory|free memory on device|kv cache memory"
    r"|kv cache is needed|cannot allocate memory|not enough memory",
    re.IGNORECASE,
)
NO_SUCH_MODEL = re.compile(
    r"invalid repository id|not a valid model identifier|repository not found|no such file or directory"
    r"|couldn't connect to|cannot find (the )?(requested|appropriate)|localentrynotfound|outgoing traffic"
    r"|does not appear to have a file named|not a local folder|client has been closed|name resolution",
    re.IGNORECASE,
)
CAUSE = re.compile(r"^(?:[\w.]+\.)?(\w*(?:Error|Exception|Interrupt))\b:? ?(.*)$")
"""The last line of a traceback."""
NOT_THE_CAUSE = re.compile(r"initialization failed|see (root cause|stack trace) above", re.IGNORECASE)


NO_DOMAIN = "none.invalid"
"""A name that cannot exist: an empty list of domains is all of them to vLLM."""


def check_model(model_path: str) -> None:
    """Raise `EngineStartError` for a folder that holds no model, before seconds are spent on importing vLLM."""
    path = Path(model_path)
    if model_path.startswith(("/", ".")) and not path.exists():
        raise EngineStartError(f"STOKER_MODEL: there is no folder {model_path}")
    if path.is_dir() and not any((path / name).exists() for name in ("config.json", "params.json")):
        raise EngineStartError(f"STOKER_MODEL: {model_path} holds no model: it has no config.json")


def command_line(settings: Settings, model_path: str, *, cpu: bool, dtype: str) -> list[str]:
    """Return vLLM's flags; what `STOKER_ENGINE_ARGS` says comes last and wins.

    `dtype` is what this machine does best, `""` to leave it to vLLM. Raises `EngineStartError` for bad quoting.
    """
    args = ["--model", model_path, "--served-model-name", settings.served_name]
    if chosen := settings.dtype or dtype:
        args += ["--dtype", chosen]
    args += ["--tensor-parallel-size", str(settings.tensor_parallel_size)]
    if settings.max_model_len is not None:
        args += ["--max-model-len", str(settings.max_model_len)]
    # The gate orders who goes in; inside, lanes decide whose prompt is read first and who gives way for memory.
    args += ["--scheduling-policy", "priority"]
    # What of a prompt the prefix cache had: OpenAI's usage tells it, and so do our metrics.
    args += ["--enable-prompt-tokens-details"]
    # vLLM fetches what a chat's `image_url` names, from its place in the operator's network: by default nothing.
    args += ["--allowed-media-domains", NO_DOMAIN]
    if cpu:
        # Compiling takes minutes on a CPU and gains little.
        args += ["--enforce-eager"]
    try:
        own = shlex.split(settings.engine_args)
    except ValueError as error:
        raise EngineStartError(f"STOKER_ENGINE_ARGS cannot be read: {error}") from None
    return [*_without(args, own), *own]


def _without(args: list[str], own: list[str]) -> list[str]:
    """Drop the flags that the operator set too: vLLM warns of flags given twice."""
    given = {word.split("=")[0].replace("_", "-") for word in own if word.startswith("--")}
    kept: list[str] = []
    keep = True
    for word in args:
        if word.startswith("--"):
            keep = word not in given
        if keep:
            kept.append(word)
    return kept


def cpu_dtype(flags: frozenset[str]) -> str:
    """Choose the number format for a CPU: bfloat16 only where the processor multiplies it, else it is slow."""
    return "bfloat16" if flags & {"avx512_bf16", "amx_bf16", "bf16"} else "float32"


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Read the flags of this machine's first processor; none where the file does not exist."""
    if not cpuinfo.exists():
        return frozenset()
    for line in cpuinfo.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in {"flags", "Features"}:
            return frozenset(value.split())
    return frozenset()


def environment(settings: Settings, model_path: str, log_config: Path, available: int) -> dict[str, str]:
    """Return the variables that vLLM is started with where the operator set no others.

    No word goes out: no usage statistics, and with a model in a local folder no call to Hugging Face. The engine's
    process is spawned: a forked one would inherit the worker's database connections and keep them open after the
    worker died. `available` is the machine's free memory in bytes.
    """
    chosen = {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_LOGGING_CONFIG_PATH": str(log_config),
        # A domain that may be fetched from must not lead on to one that may not.
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
    }
    if Path(model_path).is_dir():
        chosen["HF_HUB_OFFLINE"] = "1"
    if not CPU_CACHE_FLAGS.search(settings.engine_args):
        # Only vLLM on a CPU reads it. Its own default takes 90 % of the machine or refuses to start.
        chosen["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, min(MOST_CPU_CACHE, available // 4 // GIB)))
    return chosen


def available_memory(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Read how many bytes of memory are free for a new process; 0 where the file does not exist."""
    if not meminfo.exists():
        return 0
    found = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def log_config(errors: Path) -> str:
    """Return vLLM's logging configuration: warnings to stderr, errors also to a file, which tells why a start failed.

    vLLM loads the model in processes of its own, and what is raised there is told to nobody but their logs.
    """
    line = {"format": "%(levelname)s %(asctime)s [%(name)s] %(message)s"}
    stderr = {"class": "logging.StreamHandler", "formatter": "line", "level": "WARNING", "stream": "ext://sys.stderr"}
    file = {
        "class": "logging.FileHandler",
        "formatter": "line",
        "level": "ERROR",
        "filename": str(errors),
        "delay": True,
    }
    logger = {"handlers": ["stderr", "file"], "level": "WARNING", "propagate": False}
    return json.dumps(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"line": line},
            "handlers": {"stderr": stderr, "file": file},
            "loggers": {"vllm": logger},
        }
    )


def start_error(model_path: str, error: BaseException, log: str) -> EngineStartError:
    """Say in one line why vLLM did not start and what to do; `log` is what its processes wrote."""
    if isinstance(error, TimeoutError):
        return EngineStartError(f"{model_path} was not loaded in time (STOKER_START_TIMEOUT allows more)")
    told = _one_line(str(error) or type(error).__name__)
    why = (cause(log) or told) if NOT_THE_CAUSE.search(told) else told
    if OUT_OF_MEMORY.search(why) or "-9}" in told:
        return EngineStartError(
            f"not enough memory for {model_path}: {why} "
            "(lower STOKER_MAX_MODEL_LEN, or --gpu-memory-utilization in STOKER_ENGINE_ARGS, "
            "on a CPU VLLM_CPU_KVCACHE_SPACE, or take a smaller model)"
        )
    if NO_SUCH_MODEL.search(why):
        return EngineStartError(
            f"STOKER_MODEL: cannot load {model_path}: {why} "
            "(it must be a folder with a model, or a Hugging Face id that this machine can download)"
        )
    return EngineStartError(f"vLLM cannot start with {model_path}: {why}")


def cause(log: str) -> str:
    """Find the sentence that tells most in the tracebacks of vLLM's processes; `""` when there is none."""
    found = [match for match in map(CAUSE.match, log.splitlines()) if match and not NOT_THE_CAUSE.search(match[0])]
    if not found:
        return ""
    telling = next((match for match in found if OUT_OF_MEMORY.search(match[0])), found[-1])
    return _one_line(telling[2] or telling[1])


def _one_line(text: str, most: int = 400) -> str:
    """Join the lines, without pydantic's list of what it was given."""
    text = re.sub(r"^\d+ validation errors? for \w+\s+(Value error, )?", "", text)
    text = re.sub(r"\[type=.*?\]", "", text, flags=re.DOTALL)
    text = re.sub(r"For further information visit \S+", "", text)
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 3] + "..."
