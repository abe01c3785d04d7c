"""What a run leaves on the disk: outputs that are whole up to a place, and a state that is whole or not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stoker.result_pages import Line
from stoker.run_state import Mark, Output, RunError, RunState, fingerprint, load


def lines(*seqs: int) -> list[Line]:
    """Return lines of results as they come."""
    documents = [{"seq": seq, "text": "é\u2028" * seq} for seq in seqs]
    return [Line(json.dumps(found, ensure_ascii=False).encode() + b"\n", found) for found in documents]


def seqs(path: Path) -> list[int]:
    """Return which lines are in a file."""
    return [json.loads(line)["seq"] for line in path.read_bytes().split(b"\n") if line]


def test_lines_follow_each_other(tmp_path: Path) -> None:
    """What is appended is in the file at once; the next run goes on behind it."""
    path = tmp_path / "r.jsonl"
    with Output(path, Mark()) as output:
        assert not path.exists()
        output.append(lines(1, 3))
        assert seqs(path) == [1, 3]
        mark = output.settle()
    with Output(path, mark) as output:
        output.append(lines(4))
        assert output.mark == Mark(path.stat().st_size, 4, 3)
    assert seqs(path) == [1, 3, 4]


@pytest.mark.parametrize("settled", [True, False], ids=["settled", "never settled"])
def test_a_cut_anywhere_costs_only_the_torn_line(tmp_path: Path, settled: bool) -> None:
    """Whatever byte the file ends at behind what is settled: whole lines stay, a torn one goes."""
    path = tmp_path / "r.jsonl"
    with Output(path, Mark()) as output:
        output.append(lines(1))
        mark = output.settle() if settled else Mark()
        first = output.mark.offset
        output.append(lines(2))
        second = output.mark.offset
        output.append(lines(5))
    whole = path.read_bytes()
    for end in range(first, len(whole) + 1):
        path.write_bytes(whole[:end])
        kept = [1, 2, 5] if end == len(whole) else [1, 2] if end >= second else [1]
        with Output(path, mark) as output:
            assert (output.mark.seq, output.mark.lines) == (kept[-1], len(kept))
            assert seqs(path) == kept


@pytest.mark.parametrize(
    "torn", [b"\0" * 300, b"\0" * 300 + b"\n", b"{}\n", b"[1]\n", b'{"seq": "3"}\n', b'{"seq": 2}\n', b"\xff\n"]
)
def test_what_is_no_line_of_the_run_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    """After a loss of power a file may end in anything: only lines that follow each other count."""
    path = tmp_path / "r.jsonl"
    with Output(path, Mark()) as output:
        output.append(lines(1, 2))
    path.write_bytes(path.read_bytes() + torn + lines(3)[0].raw)
    with Output(path, Mark()) as output:
        assert output.mark.seq == 2
    assert seqs(path) == [1, 2]


def test_a_file_that_was_changed_is_left_alone(tmp_path: Path) -> None:
    """It is shorter than what was settled, or gone: nothing of it is touched."""
    path = tmp_path / "r.jsonl"
    path.write_bytes(b"mine\n")
    with pytest.raises(RunError, match="was changed"):
        Output(path, Mark(100, 1, 1)).__enter__()
    assert path.read_bytes() == b"mine\n"
    path.unlink()
    with pytest.raises(RunError, match="is gone"):
        Output(path, Mark(100, 1, 1)).__enter__()


def test_one_program_at_a_time_writes(tmp_path: Path) -> None:
    """A second run into the same file is refused while the first one goes on."""
    path = tmp_path / "r.jsonl"
    with Output(path, Mark()) as output:
        output.append(lines(1))
        with pytest.raises(RunError, match="another program"):
            Output(path, Mark()).__enter__()
    with Output(path, Mark()):
        pass


def test_a_state_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    """All of it; and there is none where there is no file."""
    path = tmp_path / "r.jsonl.stoker"
    assert load(path) is None
    state = RunState("http://x", "key", {"name": "p"}, {"max_tokens": 5}, "bulk_1", Mark(10, 5, 2), Mark(1, 2, 3))
    state.save(path)
    assert load(path) == state
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"version": 1}', '{"version": 99}', '"x"', "\0"])
def test_what_is_no_state_is_refused(tmp_path: Path, text: str) -> None:
    """Of a newer version, or of something else."""
    path = tmp_path / "r.jsonl.stoker"
    path.write_text(text)
    with pytest.raises(RunError, match="is no state"):
        load(path)


def test_inputs_are_told_apart(tmp_path: Path) -> None:
    """By every byte of them."""
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"a")
    before = fingerprint(path)
    path.write_bytes(b"b")
    assert fingerprint(path)["size"] == before["size"] == 1
    assert fingerprint(path) != before
