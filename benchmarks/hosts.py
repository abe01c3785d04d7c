"""Machines that this one plays: a network namespace each, with an address and a name, on a bridge that leads nowhere.

Nothing but the machines is on it, and none has a way out. Each is held by a process that ends with this one; the last
process gone, the kernel removes namespace and wires.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.service import BenchmarkError

NETWORK = "10.77.0"
_NEW_NETWORK = 0x40000000
_HOLD = 'hostname "$1" && ip link set lo up && echo held && read -r _'


@dataclass(frozen=True, slots=True)
class Host:
    """A machine, by the process that holds it."""

    name: str
    address: str
    pid: int

    def command(self, words: Sequence[str]) -> list[str]:
        """Return the command that runs another one on it."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", f"--uts=/proc/{self.pid}/ns/uts", *words]

    def run(self, *words: str) -> None:
        """Run a command on it. Raises BenchmarkError."""
        _run(*self.command(words))

    def enter(self) -> None:
        """Go there with this thread and those that it starts from now on; nobody comes back."""
        with Path(f"/proc/{self.pid}/ns/net").open() as place:
            if ctypes.CDLL(None, use_errno=True).setns(place.fileno(), _NEW_NETWORK):
                raise BenchmarkError(f"cannot enter a network namespace: {os.strerror(ctypes.get_errno())}")


@contextmanager
def network(*names: str) -> Iterator[list[Host]]:
    """Make machines that reach each other and nobody else. Raises BenchmarkError where this user may not."""
    lacking = [program for program in ("ip", "nsenter", "unshare", "hostname") if shutil.which(program) is None]
    if os.geteuid() or lacking:
        missing = f"; missing: {', '.join(lacking)}" if lacking else ""
        needs = f"run this as root, on Linux, with iproute2, util-linux and hostname{missing}"
        raise BenchmarkError(f"machines are played by network namespaces: {needs}")
    with ExitStack() as held:
        switch = Host("switch", "", _hold(held, "switch"))
        switch.run("ip", "link", "add", "bridge", "type", "bridge")
        switch.run("ip", "link", "set", "bridge", "up")
        yield [_joined(switch, Host(name, f"{NETWORK}.{at}", _hold(held, name))) for at, name in enumerate(names, 1)]


def _hold(held: ExitStack, name: str) -> int:
    command = ["unshare", "--net", "--uts", "sh", "-c", _HOLD, "sh", name]
    holder = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C must not take the network away from those who are to end in peace
    )
    held.callback(holder.communicate)  # closes its input, at which it ends
    assert holder.stdout is not None  # for mypy: it is a pipe
    said = holder.stdout.readline().decode()
    if said != "held\n":
        raise BenchmarkError(f"no network namespace is to be had here: {said.strip()}")
    return holder.pid


def _joined(switch: Host, host: Host) -> Host:
    """Lay a wire from a machine to the switch."""
    wire = f"to-{host.name}"
    ends = ("netns", str(switch.pid), "type", "veth", "peer", "name", "eth0", "netns", str(host.pid))
    _run("ip", "link", "add", wire, *ends)
    switch.run("ip", "link", "set", wire, "master", "bridge", "up")
    host.run("ip", "address", "add", f"{host.address}/24", "dev", "eth0")
    host.run("ip", "link", "set", "eth0", "up")
    return host


def _run(*words: str) -> None:
    ran = subprocess.run(words, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise BenchmarkError(f"{' '.join(words)}: {ran.stderr.strip()}")
