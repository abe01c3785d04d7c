"""The picture in README.md, drawn from results/: `python -m benchmarks.picture` writes docs/images/benchmark.svg."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PICTURE = Path(__file__).parents[1] / "docs/images/benchmark.svg"
WIDTH, HEIGHT = 860, 330
_TOP, _GROUND = 78, 268
"""Where the tallest bar ends, and where all begin."""
_OURS, _THEIRS, _INK, _PAPER = "#c2410c", "#94a3b8", "#334155", "#ffffff"

Bar = tuple[str, float, str]
"""What stands below a bar, its value, and its colour."""


def drawn() -> str:
    """Return the picture: what batches bring, and what the service takes from it. Reads two results."""
    sizes, pairs = _result("batch_size"), _result("overhead")
    (by_size,), (by_pair,) = sizes["tables"], pairs["tables"]
    batches = [(str(row[0]), row[3], _OURS) for row in by_size["rows"]]
    # Two bars a pair: vLLM's own runner, then the service.
    both = [bar for row in by_pair["rows"] for bar in (("", row[4], _THEIRS), (f"pair {row[0]}", row[5], _OURS))]
    ratio = statistics.median(pairs["figures"]["ratios"])
    machine = sizes["machine"]
    shape = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="t"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {shape} font-family="system-ui, sans-serif" fill="{_INK}">',
        '<title id="t">Tokens a second by batch size, and beside those of vLLM alone</title>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="{_PAPER}"/>',
        *_panel(batches, 30, 400, "Tokens a second, by the size of the batch", "so many chats, 100 tokens each"),
        *_panel(both, 460, 370, "The whole service, and vLLM alone", f"tokens a second; median ratio {ratio:.2f}"),
        *_legend(),
        _text(30, HEIGHT - 12, f"SmolLM2-135M on {machine['cores']} CPU cores without a GPU, {_days(sizes, pairs)}. "
              "How, and everything else: benchmarks/README.md", size=11),
        "</svg>",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _result(name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def _days(*results: Mapping[str, Any]) -> str:
    return " and ".join(sorted({result["machine"]["date"][:10] for result in results}))


def _panel(bars: Sequence[Bar], left: int, width: int, title: str, subtitle: str) -> Iterator[str]:
    """Yield bars side by side, each with its value above it."""
    most = max(value for _, value, _ in bars)
    step = width / len(bars)
    yield _text(left, 28, title, size=15, weight="600")
    yield _text(left, 48, subtitle)
    for number, (name, value, colour) in enumerate(bars):
        height = (_GROUND - _TOP) * value / most
        x = left + number * step
        yield (
            f'<rect x="{x + 3:.1f}" y="{_GROUND - height:.1f}" width="{step - 6:.1f}" height="{height:.1f}" '
            f'rx="2" fill="{colour}"/>'
        )
        yield _text(x + step / 2, _GROUND - height - 5, f"{value:.0f}", anchor="middle", size=12)
        yield _text(x + step / 2 - (step / 2 if name.startswith("pair") else 0), _GROUND + 18, name, anchor="middle")
    yield f'<path d="M{left} {_GROUND}h{width}" stroke="{_INK}"/>'


def _legend() -> Iterator[str]:
    for x, colour, name in ((640, _THEIRS, "vLLM's run_batch"), (775, _OURS, "stoker")):
        yield f'<rect x="{x}" y="56" width="11" height="11" rx="2" fill="{colour}"/>'
        yield _text(x + 16, 66, name, size=12)


def _text(x: float, y: float, text: str, *, size: int = 13, anchor: str = "start", weight: str = "400") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" font-weight="{weight}">{text}</text>'
    )


if __name__ == "__main__":
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(drawn(), encoding="utf-8")
