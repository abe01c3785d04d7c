"""The names of those who tend bulks tell who has died."""

from __future__ import annotations

import os
import subprocess
import sys

from tasks.holders import has_died, new_holder


def test_a_holder_lives_as_long_as_its_process() -> None:
    """Ours does; a process that has ended does not, whatever its number is used for now."""
    mine = new_holder()
    assert not has_died(mine)
    assert len(mine) <= 64
    script = "from tasks.holders import new_holder; print(new_holder())"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert has_died(ran.stdout.strip())
    machine, _, start, rest = mine.split(".")
    assert has_died(f"{machine}.{os.getpid()}.{int(start) - 1}.{rest}")


def test_nothing_is_known_of_other_machines() -> None:
    """Their leases have to run out."""
    assert not has_died("0123456789ab.1.1.00000000")
    assert not has_died("tender")
