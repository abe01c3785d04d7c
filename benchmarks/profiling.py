"""Where the processor time goes: py-spy's samples of a process, charged to functions of ours."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.report import ROOT
from benchmarks.service import BenchmarkError

RATE = 100
PACKAGES = ("webapi", "tasks", "models", "stoker")
_FRAME = re.compile(r"^(?P<function>.*) \((?P<file>[^():]*)(?::\d+)?\)$")


@dataclass
class Profile:
    """Samples of one process while it ran Python (held the interpreter's lock), at 100 a second."""

    samples: int = 0
    own: Counter[str] = field(default_factory=Counter)
    inclusive: Counter[str] = field(default_factory=Counter)

    def top(self, count: int = 10) -> list[list[object]]:
        """Return the functions with the most samples: name, its own share in %, share with what it calls of ours."""
        return [
            [name, 100 * own / self.samples, 100 * self.inclusive[name] / self.samples]
            for name, own in self.own.most_common(count)
        ]


@contextmanager
def profiled(pids: Mapping[str, int]) -> Iterator[dict[str, Profile]]:
    """Sample these processes (by name) during the `with`; the profiles are filled in at its end."""
    program = shutil.which("py-spy") or str(Path(sys.executable).with_name("py-spy"))
    profiles = {name: Profile() for name in pids}
    with tempfile.TemporaryDirectory(prefix="stoker-bench-") as folder:
        files = {name: Path(folder) / name for name in pids}
        spies = {name: _spy(program, pid, files[name]) for name, pid in pids.items()}
        try:
            time.sleep(1)  # until all of them look
            yield profiles
        finally:
            for spy in spies.values():
                spy.send_signal(signal.SIGINT)
            said = {name: spy.communicate(timeout=60)[1] for name, spy in spies.items()}
        for name, file in files.items():
            if not file.exists():
                raise BenchmarkError(f"py-spy could not look at {name}: {said[name][-500:]}")
            profiles[name] = summarise(file.read_text())


def _spy(program: str, pid: int, file: Path) -> subprocess.Popen[str]:
    to = ("--pid", str(pid), "--format", "raw", "--output", str(file), "--rate", str(RATE))
    how = ("--full-filenames", "--nolineno", "--subprocesses", "--gil")
    command = [program, "record", *to, *how]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def summarise(raw: str) -> Profile:
    """Charge each sample (py-spy's raw format: `frame;frame count`) to the innermost function of ours in its stack.

    What no function of ours called is charged to the package that ran: `(celery)`, `(gunicorn)`.
    """
    profile = Profile()
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = [frame for text in stack.split(";") if (frame := _FRAME.match(text))]
        ours = [name for frame in frames if (name := _ours(frame))]
        profile.samples += int(count)
        profile.own[ours[-1] if ours else _outside(frames)] += int(count)
        for name in set(ours):
            profile.inclusive[name] += int(count)
    return profile


def _ours(frame: re.Match[str]) -> str:
    file = Path(frame["file"])
    if not file.is_relative_to(ROOT):
        return ""
    inside = file.relative_to(ROOT)
    return f"{inside}:{frame['function']}" if inside.parts[0] in PACKAGES else ""


def _outside(frames: list[re.Match[str]]) -> str:
    for frame in reversed(frames):
        parts = Path(frame["file"]).parts
        if "site-packages" in parts:
            return f"({parts[parts.index('site-packages') + 1].removesuffix('.py')})"
    return "(python)"
