"""What the tests of the console do to find a browser."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.browser.console import ROOT


def find(path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script that finds a browser, with no more programs than there are in a folder."""
    shell = shutil.which("sh")
    assert shell is not None
    return subprocess.run(
        [shell, ROOT / "requirements/browser.sh"],
        env={"PATH": str(path)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def program(file: Path, text: str) -> Path:
    """Write a program for the shell."""
    file.write_text(f"#!{shutil.which('sh')}\n{text}\n")
    file.chmod(0o755)
    return file


def test_no_browser(tmp_path: Path) -> None:
    """Where there is none, and none can be installed, it says in one line what to do."""
    program(tmp_path / "id", "echo 1000")
    found = find(tmp_path)
    assert found.returncode == 1
    assert found.stdout == ""
    assert found.stderr.count("\n") == 1
    assert "apt-get install chromium" in found.stderr


def test_browser_that_does_not_run(tmp_path: Path) -> None:
    """A program that only has the name, as Ubuntu's, is passed over for one that runs; CHROMIUM comes first."""
    program(tmp_path / "chromium", "exit 1")
    other = program(tmp_path / "google-chrome", "exit 0")
    named = program(tmp_path / "mine", "exit 0")
    assert find(tmp_path).stdout == f"{other}\n"
    assert find(tmp_path, CHROMIUM=str(named)).stdout == f"{named}\n"


def test_root_of_debian_gets_one(tmp_path: Path) -> None:
    """For root apt-get puts it there: its name is printed, and what is done is said on stderr."""
    program(tmp_path / "id", "echo 0")
    made = tmp_path / "chromium"
    program(tmp_path / "apt-get", f"echo '#!/bin/sh' > {made}; {shutil.which('chmod')} +x {made}")
    found = find(tmp_path)
    assert found.returncode == 0, found.stderr
    assert found.stdout == f"{made}\n"
    assert "apt-get install chromium" in found.stderr
    assert os.access(made, os.X_OK)
