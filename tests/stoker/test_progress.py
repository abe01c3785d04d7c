"""How long steps show that they go on: a spinner on a terminal, now and then a line elsewhere, nothing if short."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
from pathlib import Path

import pytest

from stoker import progress
from tests.tasks.inprocess import until


def test_what_takes_long_is_told_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Elsewhere than on a terminal: lines on the standard error, with the size of what grows; none after the end."""
    file = tmp_path / "backup.part"
    file.write_bytes(b"x" * 2_500_000)
    monkeypatch.setattr(progress, "_PAUSES", (0.01,))
    said = ""

    def told() -> bool:
        nonlocal said
        said += capsys.readouterr().err
        return said.count("\n") > 1

    with progress.working("writing backup", file):
        until(told, 60)
    capsys.readouterr()
    assert set(said.splitlines()) <= {f"writing backup: 2.5 MB, {seconds} s" for seconds in range(60)}
    assert capsys.readouterr().err == ""


def test_what_is_short_is_not_talked_about(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing before the first line is due, and the end does not wait for it."""
    monkeypatch.setattr(progress, "_PAUSES", (3600.0,))
    with progress.working("a moment"):
        pass
    assert capsys.readouterr() == ("", "")


def test_an_error_comes_through() -> None:
    """What goes wrong meanwhile is raised as it is."""
    with pytest.raises(KeyError), progress.working("a moment"):
        raise KeyError


@pytest.mark.parametrize("killed", [False, True], ids=["at its end", "when it is killed"])
def test_a_terminal_has_a_spinner_that_is_gone_at_the_end(killed: bool) -> None:
    """It is drawn on the standard error, and what is printed meanwhile goes to the standard output, whole."""
    script = (
        "import time\nfrom stoker.progress import working\n"
        "with working('looking'):\n    print('found', flush=True)\n    input()\nprint('done')"
    )
    master, slave = pty.openpty()
    try:
        running = subprocess.Popen(
            [sys.executable, "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=slave,
            env=os.environ | {"TERM": "xterm"},
        )
        with running:
            drawn = b""
            while b"looking" not in drawn:
                assert select.select([master], [], [], 60)[0]
                drawn += os.read(master, 4096)
            assert running.stdout is not None
            assert running.stdout.readline() == b"found\n"
            if killed:
                running.terminate()
            printed, _ = running.communicate(None if killed else b"\n")
            while select.select([master], [], [], 0)[0]:
                drawn += os.read(master, 4096)
    finally:
        os.close(master)
        os.close(slave)
    assert (running.returncode, printed) == ((143, b"") if killed else (0, b"done\n"))
    # The line is cleared, and the cursor shown again.
    assert drawn.rindex(b"\x1b[2K") > drawn.rindex(b"looking")
    assert b"\x1b[?25h" in drawn
