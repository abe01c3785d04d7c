"""docs/settings.md has every setting as the code has it."""

from __future__ import annotations

from pathlib import Path

from stoker.settings import Settings

PAGE = Path(__file__).parents[2] / "docs/settings.md"


def test_every_setting_is_on_the_page_as_it_is() -> None:
    """Name, default and description, in the order of the code; nothing that is no setting."""
    expected = []
    for name, field in Settings.model_fields.items():
        default = "" if field.default in {"", None} else f"`{field.default}`"
        expected.append(f"| `STOKER_{name.upper()}` | {default} | {field.description} |")
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `STOKER_")]
    assert rows == expected
