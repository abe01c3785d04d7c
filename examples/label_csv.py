"""Label the rows of a CSV file: a column with the label that the model chose is added, everything else stays.

    python examples/label_csv.py examples/reviews.csv labelled.csv --column text --labels positive,negative,mixed

A row that could not be labelled gets `?`, and the reason goes to the standard error.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from stoker import Client

UNKNOWN = "?"


def prompts(rows: Sequence[Mapping[str, str]], column: str, labels: Sequence[str]) -> Iterator[dict[str, str]]:
    """Yield a line of the bulk for each row."""
    task = f"Answer with exactly one of these words: {', '.join(labels)}."
    for number, row in enumerate(rows):
        yield {"custom_id": str(number), "system": task, "prompt": row[column]}


def label_in(answer: str, labels: Sequence[str]) -> str:
    """Return the label that an answer names first."""
    places = {answer.lower().find(label.lower()): label for label in labels}
    found = [place for place in places if place >= 0]
    return places[min(found)] if found else UNKNOWN


def labelled(rows: Sequence[Mapping[str, str]], column: str, labels: Sequence[str]) -> list[str]:
    """Return a label for each row, in their order, whatever order the answers came in."""
    found = [UNKNOWN] * len(rows)
    with Client(os.environ.get("STOKER_URL", "http://127.0.0.1:8000"), os.environ.get("STOKER_API_KEY")) as client:
        bulk = client.bulk(prompts(rows, column, labels), max_tokens=10, temperature=0)
        for result in client.iter_results(bulk.id):
            found[int(result.custom_id or 0)] = label_in(result.text or "", labels)
        for error in client.iter_results(bulk.id, errors=True):
            print(f"row {error.custom_id}: {error.error}", file=sys.stderr)
    return found


def main() -> None:
    """Read the file, have it labelled, and write the other one."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("input", type=Path)
    options.add_argument("output", type=Path)
    options.add_argument("--column", default="text")
    options.add_argument("--labels", default="positive,negative")
    told = options.parse_args()
    with told.input.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file, restval=""))
    if not rows or told.column not in rows[0]:
        options.error(f"{told.input} has no column {told.column}, or no row")
    if uneven := [str(number) for number, row in enumerate(rows, 1) if None in row]:
        options.error(f"{told.input} has rows with more columns than its first line: {', '.join(uneven[:5])}")
    if "label" in rows[0]:
        options.error(f"{told.input} has a column label already: rename it")
    labels = labelled(rows, told.column, told.labels.split(","))
    with told.output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0], "label"])
        writer.writeheader()
        writer.writerows(row | {"label": label} for row, label in zip(rows, labels, strict=True))


if __name__ == "__main__":
    main()
