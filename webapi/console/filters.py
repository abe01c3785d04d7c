"""Numbers and times as the pages write them; `static/console/console.js` has the same words."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from flask import Blueprint
from markupsafe import Markup

MISSING = "\N{EN DASH}"
_COUNTS = ((10, 1, 2, ""), (100, 1, 1, ""), (1e6, 1, 0, ""), (1e7, 1e6, 2, " M"), (math.inf, 1e6, 1, " M"))
_SPANS = (
    (1, 0.001, 0, " ms"),
    (10, 1, 1, " s"),
    (120, 1, 0, " s"),
    (7200, 60, 0, " min"),
    (172_800, 3600, 1, " h"),
    (math.inf, 86_400, 1, " d"),
)
"""Below what, in which unit, with how many digits, and the unit's name."""
_SIZES = ("B", "kB", "MB", "GB", "TB")


def install(pages: Blueprint) -> None:
    """Give the filters to all templates."""
    for name, filter_ in {"count": count, "span": span, "bytes": size, "when": when}.items():
        pages.add_app_template_filter(filter_, name)


def count(value: float | None) -> str:
    """Return a number in few digits: 12,345 or 1.23 M."""
    if value is None:
        return MISSING
    unit, digits, name = next(row[1:] for row in _COUNTS if abs(value) < row[0])
    text = f"{value / unit:,.{digits}f}"
    return (text.rstrip("0").rstrip(".") if unit == 1 and digits else text) + name


def span(seconds: float | None) -> str:
    """Return seconds in words: 12 ms, 3.4 s, 5 min, 2.1 h, 3.5 d."""
    if seconds is None:
        return MISSING
    unit, digits, name = next(row[1:] for row in _SPANS if seconds < row[0])
    return f"{seconds / unit:.{digits}f}{name}"


def size(value: float | None) -> str:
    """Return bytes in words: 512 B, 1.4 MB."""
    if value is None:
        return MISSING
    thousands = min(len(_SIZES) - 1, int(math.log10(max(1, value)) / 3 + 1e-9))
    return f"{count(value / 1000**thousands)} {_SIZES[thousands]}"


def when(seconds: float | None) -> Markup | str:
    """Return a time, given as seconds since 1970, as an element whose text a script makes local."""
    if seconds is None:
        return MISSING
    time = datetime.fromtimestamp(seconds, UTC)
    exact = time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return Markup('<time datetime="{}">{} UTC</time>').format(exact, time.strftime("%Y-%m-%d %H:%M:%S"))
