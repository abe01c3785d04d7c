"""Evaluate a model on a data set: how many multiple-choice questions it gets right, by topic.

    python examples/evaluate.py examples/questions.jsonl [MODEL]

A line of the data set has `question`, `choices`, `answer` (a letter) and `topic`. The questions go as one bulk, so a
data set of a million of them works as well, and the service's other users hardly notice.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stoker import Client

LETTERS = "ABCDEFGH"


def prompts(questions: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, str]]:
    """Yield a line of the bulk for each question; its number comes back with the answer."""
    for number, question in enumerate(questions):
        choices = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, question["choices"], strict=False))
        yield {"custom_id": str(number), "prompt": f"{question['question']}\n{choices}\nAnswer with one letter."}


def chosen(answer: str) -> str:
    """Return the letter that an answer names first, or nothing."""
    found = re.search(rf"\b([{LETTERS}])\b", answer)
    return found[1] if found else ""


def main(path: Path, model: str | None) -> None:
    """Ask everything, and print the table."""
    questions = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    asked, right = Counter(question["topic"] for question in questions), Counter()
    with Client(os.environ.get("STOKER_URL", "http://127.0.0.1:8000"), os.environ.get("STOKER_API_KEY")) as client:
        bulk = client.bulk(prompts(questions), model=model, max_tokens=16, temperature=0, metadata={"run": path.stem})
        for result in client.iter_results(bulk.id):  # in the order in which they end
            question = questions[int(result.custom_id or 0)]
            right[question["topic"]] += chosen(result.text or "") == question["answer"]
        failed = client.get_bulk(bulk.id).counts.failed
    print(f"{'topic':<12} {'right':>5} {'of':>4} {'accuracy':>9}")
    for topic in [*sorted(asked), "all"]:
        of = asked.total() if topic == "all" else asked[topic]
        good = right.total() if topic == "all" else right[topic]
        print(f"{topic:<12} {good:>5} {of:>4} {good / of:>9.1%}")
    if failed:
        print(f"{failed} questions got no answer: stoker bulk status {bulk.id}", file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
