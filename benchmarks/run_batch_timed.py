"""Run vLLM's own batch runner, unchanged, with the engine flags that stoker would use, and say when it worked.

`python benchmarks/run_batch_timed.py INPUT OUTPUT TIMES`, settings from STOKER_*. The clock is read when the runner
begins to read its input, the engine being loaded, and when its output is written; TIMES gets the seconds, as JSON.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

RUNNERS = ("vllm.entrypoints.launchers.run_batch", "vllm.entrypoints.openai.run_batch")
"""Where vLLM 0.32 has it, and where older ones do."""


def main(source: str, target: str, times: str) -> None:
    """Run the batch in the file `source` into the file `target`; write what it took to the file `times`."""
    from stoker.settings import load
    from tasks.engines import vllm_args

    settings = load()
    # `VLLM_LOGGING_CONFIG_PATH` stays the runner's own.
    chosen = vllm_args.environment(settings, settings.model, Path(), vllm_args.available_memory())
    for name, value in chosen.items():
        if name != "VLLM_LOGGING_CONFIG_PATH":
            os.environ.setdefault(name, value)
    from tasks.engines.vllm import find

    cpu = find("current_platform").is_cpu()
    dtype = vllm_args.cpu_dtype(vllm_args.cpu_flags()) if cpu else ""
    flags = vllm_args.command_line(settings, settings.model, cpu=cpu, dtype=dtype)
    sys.argv = ["run_batch", "-i", source, "-o", target, *flags]
    runner = _runner()
    clock = _stamp(runner)
    asyncio.run(runner.main(runner.parse_args()))
    Path(times).write_text(json.dumps({"seconds": clock["stored"] - clock["read"]}))


def _runner() -> Any:
    for name in RUNNERS:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        if hasattr(module, "run_batch"):
            return module
    raise SystemExit("this vLLM has no run_batch")


def _stamp(runner: Any) -> dict[str, float]:
    """Note when the runner reads its input, and when it has written its output."""
    clock: dict[str, float] = {}
    read, write = runner.read_file, runner.write_file

    async def read_file(*args: Any, **options: Any) -> Any:
        clock["read"] = time.perf_counter()
        return await read(*args, **options)

    async def write_file(*args: Any, **options: Any) -> Any:
        written = await write(*args, **options)
        clock["stored"] = time.perf_counter()
        return written

    runner.read_file, runner.write_file = read_file, write_file
    return clock


# vLLM spawns processes that import this file again.
if __name__ == "__main__":
    main(*sys.argv[1:])
