"""`stoker completion ...`: what makes a shell complete commands, options, states and lanes."""

from __future__ import annotations

import os
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Annotated, Literal, cast, get_args

import typer

from stoker.console import examples, fail

app = typer.Typer(help="Completion of commands, options and their values in a shell.", no_args_is_help=True)

Shell = Literal["bash", "zsh", "fish"]
ASKED = "_STOKER_COMPLETE"
"""The variable by which a shell asks."""

ShellArgument = Annotated[Shell | None, typer.Argument(help="For this shell.  [default: the one of $SHELL]")]

# zsh completes nothing until compinit has run.
_ZSH = "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }; "


@app.command(epilog=examples("stoker completion install", "stoker completion install zsh"))
def install(shell: ShellArgument = None) -> None:
    """Install completion, for your account.

    It is a file, and for bash and zsh a line in their start file.
    """
    chosen = shell or _mine()
    script, start = _places(chosen)
    try:
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(_script(chosen), "utf-8")
        if start is not None:
            line = f". '{script}'"
            _add(start, f"{_ZSH}{line}" if chosen == "zsh" else line)
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}")
    typer.echo(f"{chosen} completes stoker from its next start on: {script}")


@app.command(epilog=examples("stoker completion show bash", "stoker completion show fish > stoker.fish"))
def show(shell: ShellArgument = None) -> None:
    """Print the script that `install` installs.

    For a package, an image, or a start file of your own.
    """
    typer.echo(_script(shell or _mine()), nl=False)


def know_shells() -> None:
    """Let typer answer the shells that ask what fits; it does so by itself only together with options of its own."""
    from typer.completion import get_completion_inspect_parameters

    get_completion_inspect_parameters()


def _mine() -> Shell:
    name = Path(os.environ.get("SHELL", "")).name
    if name not in get_args(Shell):
        fail(f"which shell? name one of {', '.join(get_args(Shell))}", 2)
    return cast("Shell", name)


def _script(shell: Shell) -> str:
    from typer.completion import shell_complete

    from stoker.cli import app as root

    know_shells()
    printed = StringIO()
    with redirect_stdout(printed):
        status = shell_complete(typer.main.get_command(root), {}, "stoker", ASKED, f"source_{shell}")
    if status:
        fail(f"there is no completion for {shell}")
    return printed.getvalue().strip() + "\n"


def _places(shell: Shell) -> tuple[Path, Path | None]:
    """Return where a shell's script goes, and the start file that must name it, if any must."""
    home = Path.home()
    if shell == "fish":
        config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
        return config / "fish/completions/stoker.fish", None
    data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local/share")
    start = Path(os.environ.get("ZDOTDIR") or home) / ".zshrc" if shell == "zsh" else home / ".bashrc"
    return data / "stoker" / f"completion.{shell}", start


def _add(file: Path, line: str) -> None:
    """Add a line to a file, once; what stands in it stays as it is, byte for byte."""
    before = file.read_bytes() if file.exists() else b""
    if line.encode() in before.splitlines():
        return
    gap = b"" if before.endswith(b"\n") or not before else b"\n"
    with file.open("ab") as start:
        start.write(gap + line.encode() + b"\n")
