"""What `stoker top` shows: the overview as lines that fit a terminal, however narrow. Pure.

Texts from outside (models, owners, hosts) are cells of tables, which leave out what a terminal would obey.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stoker.text_table import ALWAYS, Cell, Column, Glyphs, Line, Section, cells, cut, table

Document = Mapping[str, Any]

BAR = 10
_LEAST = 3
"""Lines that a table takes at least: a gap, its titles, a row."""
_LATE, _VERY_LATE = 60.0, 600.0
"""Seconds in line from which an age is yellow, and red."""
_UNITS = ((1_000_000_000, "G"), (1_000_000, "M"), (10_000, "k"))
_STATES = {"live": "green", "starting": "yellow", "draining": "yellow", "silent": "red", "gone": "dim"}


def lines(document: Document, width: int, height: int | None = None, glyphs: Glyphs = Glyphs()) -> list[Line]:  # noqa: B008  # it is frozen
    """Return an overview as lines of at most `width` cells, at most `height` of them where that is given."""
    shown = [*_wrapped(_summary(document), width), *_curve(document, width, glyphs)]
    sections = [section for section in _sections(document, glyphs) if section.rows or section.empty]
    most = _most_rows(sections, None if height is None else height - len(shown))
    for section in sections:
        if height is None or len(shown) + _LEAST <= height:
            shown += [(), *table(section, width, most, glyphs)]
    return shown[:height]


def count(number: float) -> str:
    """Return a number as it is, or a large one by its first digits."""
    for unit, name in _UNITS:
        if number >= unit:
            value = number / (1_000 if name == "k" else unit)
            return f"{value:,.0f}{name}" if value >= 100 else f"{value:.1f}{name}"  # noqa: PLR2004  # three digits
    return f"{number:,.0f}"


def _summary(document: Document) -> list[Line]:
    """Return what is told in single words, each a piece that is not broken."""
    waiting = sum(row["queued"] + row["delayed"] + row["batched"] for row in document["queue"])
    running = sum(row["running"] for row in document["queue"])
    oldest = max((row["oldest_seconds"] or 0.0 for row in document["queue"]), default=0.0)
    pieces = [_named(count(waiting), "waiting"), _named(count(running), "running")]
    if waiting:
        pieces.append((("oldest ", ""), (_short(oldest), _lateness(oldest))))
    rates = document.get("rates")
    if rates:
        pieces.append(_named(f"{rates['jobs']:,.1f}", "jobs/s"))
        pieces.append(_named(f"{rates['failed']:,.1f}", "failed/s", "red" if rates["failed"] else ""))
        pieces.append(_named(count(rates["completion_tokens"]), "tokens/s written"))
        pieces.append(_named(count(rates["prompt_tokens"]), "read"))
    if document.get("batches_ready") is not None:
        pieces.append(_named(count(document["batches_running"]), "batches"))
        pieces.append(_named(count(document["batches_ready"]), "ready"))
        pieces.append(_named(count(document["deliveries_pending"]), "webhooks due"))
    return pieces


def _named(number: str, name: str, style: str = "bold") -> Line:
    return ((number, style or "bold"), (f" {name}", ""))


def _wrapped(pieces: Sequence[Line], width: int) -> Iterator[Line]:
    """Yield pieces side by side, as many a line as fit."""
    line: list[Cell] = []
    for piece in pieces:
        if line and cells(line) + 3 + cells(piece) > width:
            yield line
            line = []
        line += [("   ", ""), *piece] if line else piece
    yield line


def _curve(document: Document, width: int, glyphs: Glyphs) -> Iterator[Line]:
    """Yield the jobs a second over the window that was asked for, and how long those of the last minute took."""
    series = document.get("series")
    if not series or not any(series["jobs"]):
        return
    title = f"jobs/s in {_window(document['minutes'])}"
    room = max(8, min(60, width - len(title) - 2))
    yield ((f"{title}  ", "dim"), (_spark(_squeezed(series["jobs"], room), glyphs), "cyan"))
    told = [f"{name} {_percentiles(document['rates'][key])}" for key, name in (("wait", "waited"), ("latency", "took"))]
    yield ((cut(f"{',  '.join(told)}  (median, 95 %)", width, glyphs), "dim"),)


def _squeezed(values: Sequence[float], most: int) -> list[float]:
    """Return at most so many values: the mean of each stretch."""
    size = -(-len(values) // most)
    return [sum(values[at : at + size]) / len(values[at : at + size]) for at in range(0, len(values), size)]


def _spark(values: Sequence[float], glyphs: Glyphs) -> str:
    highest, last = max(values), len(glyphs.steps) - 1
    return "".join(glyphs.steps[round(value / highest * last) if highest else 0] for value in values)


def _percentiles(found: Mapping[str, float | None]) -> str:
    return "-" if found["p50"] is None else f"{found['p50']:.2f} / {found['p95']:.2f} s"


def _sections(document: Document, glyphs: Glyphs) -> Iterator[Section]:
    yield _queue(document["queue"])
    if document.get("engines") is None:
        yield Section("ENGINES", (), empty="engines, batches, rates and owners are for keys with the scope admin")
        return
    yield _engines(document["engines"], glyphs)
    yield _upstreams(document["engines"])
    yield _owners(document["owners"])
    yield _errors(document["errors"], document["minutes"])
    yield _batches(document["batches"])


def _queue(rows: Sequence[Document]) -> Section:
    numbers = [Column(name, keep, right=True) for name, keep in (("QUEUED", ALWAYS), ("BATCHED", 3), ("RUNNING", 7))]
    columns = [Column("QUEUE"), Column("LANE"), *numbers, Column("DELAYED", 2, right=True), Column("OLDEST", 8)]
    section = Section("QUEUE", columns, empty="nothing waits and nothing runs")
    for row in rows:
        numbers_of = [(count(row[name]), "") for name in ("queued", "batched", "running", "delayed")]
        age = row["oldest_seconds"]
        oldest = ("-", "dim") if age is None else (_short(age), _lateness(age))
        section.rows.append([(row["model"], "bold"), (row["lane"], ""), *numbers_of, oldest])
    return section


def _engines(rows: Sequence[Document], glyphs: Glyphs) -> Section:
    columns = [Column("ENGINE"), Column("STATE"), Column("BUSY", 8), Column("JOBS", 7, right=True)]
    columns += [Column("KIND", 2), Column("HOST", 3), Column("MODELS", 5), Column("SEEN", 4)]
    section = Section("ENGINES", columns, empty="no engine is there: nothing runs until one is")
    for row in rows:
        state, busy = row["state"], row["busy"]
        bar = ("-", "dim") if busy is None else (f"{_bar(busy, glyphs)} {busy:>4.0%}", "cyan")
        here = row["silent_seconds"] < _LATE and state not in {"silent", "gone"}
        seen = "now" if here else f"{_short(row['silent_seconds'])} ago"
        name, jobs = (row["name"], "bold"), (f"{count(row['running'])}/{count(row['slots'])}", "")
        first = [name, (state, _STATES.get(state, "")), bar, jobs, (row["kind"], ""), (row["host"], "")]
        section.rows.append([*first, (", ".join(row["models"]), ""), (seen, "red" if state == "silent" else "")])
    return section


def _upstreams(engines: Sequence[Document]) -> Section:
    columns = [Column("UPSTREAM"), Column("STATE"), Column("IN FLIGHT", 7, right=True)]
    columns += [Column("WAITING", 4, right=True), Column("LATENCY", 3, right=True), Column("WHY", 5)]
    section = Section("UPSTREAMS", columns)
    for row in (upstream for engine in engines for upstream in engine["upstreams"]):
        state = ("up", "green") if row["healthy"] else ("down", "red")
        latency = "-" if row["latency"] is None else f"{row['latency']:.2f} s"
        in_flight = f"{count(row['in_flight'])}/{count(row['limit'])}"
        texts = [(text, "") for text in (in_flight, count(row["waiting"]), latency, row["why_down"])]
        section.rows.append([(row["url"], "bold"), state, *texts])
    return section


def _owners(rows: Sequence[Document]) -> Section:
    section = Section("OWNERS", [Column("OWNER"), Column("WAITING", right=True), Column("RUNNING", right=True)])
    section.rows = [[(row["owner"], "bold"), (count(row["waiting"]), ""), (count(row["running"]), "")] for row in rows]
    return section


def _errors(rows: Sequence[Document], minutes: int) -> Section:
    section = Section("FAILED", [Column(f"FAILED IN {_window(minutes)}"), Column("JOBS", right=True)])
    section.rows = [[(row["code"], "red"), (count(row["jobs"]), "")] for row in rows]
    return section


def _batches(rows: Sequence[Document]) -> Section:
    columns = [Column("BATCH", 5), Column("MODEL"), Column("LANE", 8), Column("ENGINE", 6)]
    columns += [Column("JOBS", right=True), Column("FOR", right=True), Column("CUT BY", 4)]
    section = Section("BATCHES", columns)
    for row in rows:
        texts = [row[name] for name in ("id", "model", "lane", "engine")]
        texts += [count(row["jobs"]), _short(row["seconds"]), row["reason"]]
        section.rows.append([(text, "") for text in texts])
    return section


def _bar(share: float, glyphs: Glyphs) -> str:
    full = round(max(0.0, min(1.0, share)) * BAR)
    return glyphs.full * full + glyphs.empty * (BAR - full)


def _short(seconds: float) -> str:
    """Return a time in few cells: 42s, 6m52s, 2h05m, 3d04h."""
    whole = round(seconds)
    for large, small, size in (("d", "h", 86_400), ("h", "m", 3600), ("m", "s", 60)):
        if whole >= size:
            step = {"h": 3600, "m": 60, "s": 1}[small]
            return f"{whole // size}{large}{whole % size // step:02}{small}"
    return f"{whole}s"


def _window(minutes: int) -> str:
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h"  # noqa: PLR2004  # minutes of an hour


def _lateness(seconds: float) -> str:
    return "red" if seconds >= _VERY_LATE else "yellow" if seconds >= _LATE else ""


def _most_rows(sections: Sequence[Section], height: int | None) -> int | None:
    """Return how many rows a table may have so that all of them fit, three at least."""
    if height is None:
        return None
    for most in range(max((len(section.rows) for section in sections), default=0), 2, -1):
        if sum(2 + max(1, min(len(section.rows), most + 1)) for section in sections) <= height:
            return most
    return 3
