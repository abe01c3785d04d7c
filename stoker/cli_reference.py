"""The reference of the command line, docs/cli*.md, as it is in the code.

`python -m stoker.cli_reference docs` writes the pages; a test holds that they are what is generated.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer import Context
from typer.main import get_command

from stoker.cli import app
from stoker.console import STATUSES

_CONTEXT = Context(get_command(app))
_SERVICE = ("up", "engine", "ps", "health", "demo", "doctor", "restart", "keys", "db")
_PAGE_OF = {
    **dict.fromkeys(_SERVICE, "cli-service.md"),
    "bulk": "cli-bulks.md",
    "batch": "cli-openai.md",
    "webhooks": "cli-openai.md",
}
"""Where the first word of a command leads; the others are on the first page."""
_EVERYWHERE = {"--url", "--api-key", "--json", "--data", "--database-url", "--help"}

_FIRST = """\
# The command line

This page and the three that it leads to are generated from the code (`make docs`); `stoker COMMAND --help` says the
same in a terminal. Here are the commands for jobs and for a look at everything; then there are [bulks](cli-bulks.md),
[batches and webhooks](cli-openai.md), and [the service's own commands](cli-service.md). All but the last speak HTTP,
and come with `stoker-client` alone, too.

| exit status | means |
|---|---|
{statuses}

A signal that ends a command has the status 128 and its number, as everywhere. What a command tells is on the standard
output; what went wrong, and how far it is, on the standard error: bars on a terminal, now and then a line elsewhere.
Colours are for terminals; NO_COLOR takes them away, FORCE_COLOR has them anywhere. A terminal gets texts of the service
without what would steer it; a pipe gets answers and results as they are.

A request that nobody answers, or that the service is too busy for, is sent again, up to five times. Whoever waits for
something goes on for a minute, `bulk run` for five, and is told why on the standard error; then the status is 1. Cut
short at any moment, `bulk run` goes on where it was when it is run again.

Options that mean the same for every command that has them:

| option | variable | means |
|---|---|---|
| `--url URL` | `STOKER_URL` | Where the service is; `http://127.0.0.1:8000`. |
| `--api-key KEY` | `STOKER_API_KEY` | API key, once the service has any; others can see an option, not a variable. |
| `--json` | | Print JSON, for programs. |
| `--data FOLDER` | `STOKER_DATA` | Folder of the service's data; `var`. |
| `--database-url URL` | `STOKER_DATABASE_URL` | PostgreSQL or SQLite URL; SQLite in the data folder. |
| `--help`, `-h` | | Tell what the command does, with examples. |

`stoker completion install` makes bash, zsh and fish complete commands, options, states and lanes, from their next start
on; `stoker completion show bash` prints the script, for a package or an image.
"""
_BULKS = """\
# The command line: bulks

Generated, as [the first page](cli.md) is. What a bulk is: [bulks](bulks.md).
"""
_OPENAI = """\
# The command line: OpenAI's batches, and webhooks

Generated, as [the first page](cli.md) is. What events there are and how they are signed: [webhooks](webhooks.md).
"""
_OF_THE_SERVICE = """\
# The command line: the service

Generated, as [the first page](cli.md) is. These come with the package `stoker`, not with `stoker-client`. How they go
together: [operating](operating.md).
"""
_HEADS = {
    "cli.md": _FIRST.format(statuses="\n".join(f"| {status} | {means} |" for status, means in STATUSES.items())),
    "cli-bulks.md": _BULKS,
    "cli-openai.md": _OPENAI,
    "cli-service.md": _OF_THE_SERVICE,
}


def pages() -> dict[str, str]:
    """Return the pages by the names of their files."""
    found = {name: [head] for name, head in _HEADS.items()}
    for path, command in commands():
        found[_PAGE_OF.get(path[0], "cli.md")].append(_described(path, command))
    return {name: "\n".join(parts) for name, parts in found.items()}


def commands() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command that does something, with the words that name it."""
    yield from _below((), get_command(app))


def examples_of(command: Any) -> list[str]:
    """Return the lines of a command's examples, as they are pasted."""
    _, _, lines = (command.epilog or "").partition("\b\n")
    return [line.strip() for line in lines.splitlines()]


def _below(path: tuple[str, ...], command: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    below = getattr(command, "commands", None)
    if below is None:
        yield path, command
        return
    for name, one in below.items():
        yield from _below((*path, name), one)


def _described(path: tuple[str, ...], command: Any) -> str:
    """Return the part of a page that is a command's."""
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    options = [param for param in command.params if param.param_type_name == "option"]
    usage = " ".join(["stoker", *path, *(_argument(param) for param in arguments)])
    shared = sorted({opt for param in options for opt in param.opts} & _EVERYWHERE - {"--help"})
    lines = [f"## {usage}", "", _prose(command.help), ""]
    lines += [f"- `{_argument(param)}`: {_means(param)}" for param in arguments if param.metavar != "ID"]
    lines += [f"- {_option(param)} {_means(param)}" for param in options if not _EVERYWHERE & set(param.opts)]
    if shared:
        lines.append(f"- also {', '.join(f'`{name}`' for name in shared)}")
    return re.sub(r"\n{3,}", "\n\n", "\n".join([*lines, "", "```sh", *examples_of(command), "```", ""]))


def _prose(text: str) -> str:
    """Return a docstring as one paragraph."""
    return " ".join(inspect.cleandoc(text).split())


def _argument(param: Any) -> str:
    name = param.metavar or param.name.upper()
    return name if param.required or name.startswith("[") else f"[{name}]"


def _option(param: Any) -> str:
    names = ", ".join(f"`{name}`" for name in [*param.opts, *param.secondary_opts])
    if param.is_flag:
        return f"{names}:"
    shown, _ = param.get_help_record(_CONTEXT)
    found = re.search(r"<(.+)>", shown)
    takes = param.metavar or (found and found[1]) or "text"
    return f"{names[:-1]} {_TAKES.get(takes.split()[0], takes)}`:"


_TAKES = {"str": "TEXT", "text": "TEXT", "int": "N", "float": "N", "path": "PATH", "datetime": "TIME"}


def _means(param: Any) -> str:
    """Return an option's help, with its default and variable."""
    text, _, told = (param.help or "").partition("  [default: ")
    facts = []
    if told:
        facts.append(f"default: {told.rstrip(']')}")
    elif param.required and param.param_type_name == "option":
        facts.append("required")
    elif isinstance(param.default, str | int | float | Path) and param.default not in ("", False):
        default = f"{param.default:g}" if isinstance(param.default, float) else param.default
        facts.append(f"default: {default}")
    if param.envvar and param.param_type_name == "option":
        facts.append(f"`{param.envvar}`")
    return f"{text.strip()} ({'; '.join(facts)})" if facts else text.strip()


def main(folder: Path) -> None:
    """Write the pages into a folder."""
    for name, text in pages().items():
        (folder / name).write_text(text, "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
