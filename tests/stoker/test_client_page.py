"""docs/client.md: its examples run, and it names what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from stoker import Client
from tests.stoker.bulk_service import bulk_service

PAGE = (Path(__file__).parents[2] / "docs/client.md").read_text("utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("example", [one for one in EXAMPLES if "client.bulk(" in one], ids=["sync", "async"])
def test_the_examples_of_bulks_run(
    example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As they stand there, but for the address."""
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "hi", "custom_id": "a"}\nnonsense\n')
    monkeypatch.chdir(tmp_path)
    with bulk_service() as service:
        exec(example.replace("http://127.0.0.1:8000", service.url), {})  # noqa: S102  # our own page
    assert "echo: " in capsys.readouterr().out


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_is_python(example: str) -> None:
    """Each can be pasted."""
    compile(example, "docs/client.md", "exec")


def test_every_method_is_named() -> None:
    """A method that is added or renamed is added there, too; nothing is named that is not there."""
    methods = {name for name in vars(Client) if not name.startswith("_")} - {"close", "perform"}
    assert {name for name in methods if f"{name}" not in PAGE} == set()
    assert set(re.findall(r"`([a-z]+_(?:bulk|results|file|batch)s?)\b", PAGE)) <= methods | {"verify_webhook"}
