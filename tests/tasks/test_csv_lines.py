"""CSV to records: any blocks, any record as the place to go on from, bad records, bad headers."""

from __future__ import annotations

import csv
import io
import itertools
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.csv_lines import Record, read_csv, read_header
from tasks.line_jobs import LineError
from tasks.lines import BLOCK, BOM, BadInput, skipping

pieces = st.sampled_from(["a", "é", '"', '""', ",", "\n", "\r\n", "\n\n", " ", "x,y\n", '"p\nq",r\n'])
garbage = st.lists(pieces | st.just("\0"), max_size=30).map(lambda parts: "prompt,b\n" + "".join(parts))
cells = st.text(st.characters(exclude_characters="\0\r", exclude_categories=["Cs"]), min_size=1, max_size=6)


def cut_up(whole: bytes, ends: list[int]) -> list[bytes]:
    """Return an input in blocks that end there."""
    ends = sorted(min(end, len(whole)) for end in ends)
    return [whole[start:end] for start, end in itertools.pairwise([0, *ends, len(whole)])]


def codes(whole: bytes, most: int = 1000) -> list[tuple[int, str]]:
    """Return what is wrong with the records, empty where nothing is."""
    found = [(record.number, record.columns) for record in read_csv([whole], most)]
    return [(number, what.code if isinstance(what, LineError) else "") for number, what in found]


@given(st.lists(st.tuples(cells, cells), max_size=8), st.sampled_from(["\n", "\r\n"]), st.lists(st.integers(0, 99)))
def test_what_was_written_is_read(rows: list[tuple[str, str]], newline: str, ends: list[int]) -> None:
    """Quotes, commas and newlines in cells come out as they went in, whatever the blocks."""
    rows = [row for row in rows if any(cell.strip() for cell in row)]
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=newline, quoting=csv.QUOTE_ALL).writerows([("prompt", "b"), *rows])
    whole = text.getvalue().encode()
    reader = read_csv(cut_up(whole, ends), 1000)
    assert [record.columns for record in reader] == [{"prompt": prompt, "b": b} for prompt, b in rows]
    assert (reader.offset, reader.number) == (len(whole), whole.count(b"\n"))


@given(garbage, st.lists(st.integers(0, 99)), st.integers(10, 40))
def test_reading_goes_on_behind_any_record(text: str, ends: list[int], most: int) -> None:
    """Any blocks give the same records, and from the end of each comes the rest, good or bad."""
    whole = text.encode()
    records = list(read_csv([whole], most))
    reader = read_csv(cut_up(whole, ends), most)
    for taken, record in enumerate(reader, 1):
        assert record == records[taken - 1]
        assert (reader.offset, reader.number) == (record.end, record.last)
        rest = skipping([whole], record.end)
        assert (
            list(read_csv(rest, most, header=reader.header, offset=record.end, number=record.last)) == records[taken:]
        )
    assert reader.offset == len(whole)


def test_records_are_numbered_by_their_lines() -> None:
    """A record has the line where it begins and ends; blank ones count, and no newline is needed at the end."""
    reader = read_csv([BOM + b'\r\n"prompt", b \r\n"x\n\ny",1\r\n\r\n  \nz,"2"'], 1000)
    assert reader.header == ["prompt", "b"]
    assert [(record.number, record.last) for record in reader] == [(3, 5), (8, 8)]
    assert reader.number == 8


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b"", []),
        (b"\n\r\n \n", []),
        (b"a\nb,c\nd,e,f\n", [(2, "invalid_csv_line"), (3, ""), (4, "invalid_csv_line")]),
        (b"a\xff,b\nc,d\n", [(2, "invalid_csv_line"), (3, "")]),
        (b'"a\n\xff\n",b\nc,d\n', [(2, "invalid_csv_line"), (5, "")]),
        (b"a\0,b\nc,d\n", [(2, "nul_character"), (3, "")]),
        (b'"a"b,c\nd,e\n', [(2, "invalid_csv_line"), (3, "")]),
        (b"a\rb,c\nd,e\n", [(2, "invalid_csv_line"), (3, "")]),
        (b'a,b\n"never closed,c\nd,e\n', [(2, ""), (3, "invalid_csv_line")]),
        (b"a," + b"b" * 1000 + b"\nc,d\n", [(2, "line_too_large"), (3, "")]),
        (b'"' + b"a,b\n" * 300 + b"c,d\n", [(2, "line_too_large"), *((number, "") for number in range(252, 303))]),
    ],
)
def test_a_bad_record_does_not_stop_the_others(body: bytes, found: list[tuple[int, str]]) -> None:
    """Wrong numbers of cells, bad characters, bad quotes, too much: each is named by its line, the rest is read."""
    assert codes(b"prompt,b\n" + body) == found


def test_an_open_quote_is_named_with_the_lines_it_took() -> None:
    """The message tells which lines were read as one record."""
    record = next(read_csv([b'prompt\n"' + b"a\n" * 1000], 100))
    assert isinstance(record.columns, LineError)
    assert record.columns.message.startswith(f"Lines 2 to {record.last} are one record of more than 100 bytes")


def test_a_long_stretch_of_blank_lines_is_told_of_as_it_goes() -> None:
    """For each BLOCK of it there is a place to go on from; a shorter one is passed by in silence."""
    whole = b"prompt\na\n" + b" \r\n" * BLOCK + b"b\n" + b"\n" * (BLOCK - 1) + b"c"
    records = list(read_csv([whole], 1000))
    assert [record.columns for record in records if record.columns] == [
        {"prompt": "a"},
        {"prompt": "b"},
        {"prompt": "c"},
    ]
    stretch = [record for record in records if record.columns is None]
    assert len(stretch) == 2
    assert all(record.end == 9 + 3 * (record.last - 2) and record.number == record.last for record in stretch)
    for taken, record in enumerate(records, 1):
        rest = read_csv(skipping([whole], record.end), 1000, header=["prompt"], offset=record.end, number=record.last)
        assert [found for found in rest if found.columns] == [found for found in records[taken:] if found.columns]


def test_the_header_is_not_looked_for_without_an_end() -> None:
    """Some blank lines may come before it, but not a BLOCK of them."""
    assert read_header([b"\n" * (BLOCK - 1), b"prompt\n"], 1000) == ["prompt"]
    with pytest.raises(BadInput, match="blank lines") as refused:
        read_header(itertools.repeat(b"\n" * 1000), 1000)
    assert refused.value.code == "invalid_csv"


@pytest.mark.parametrize(("block", "times"), [(b"a,b\n" * 1000, 50), (b"a" * 40_000, 1250)])
def test_an_open_quote_and_a_huge_line_are_never_held(block: bytes, times: int) -> None:
    """Megabytes behind a quote, or in one line, take the memory of one record."""
    tracemalloc.start()
    blocks = itertools.chain([b'prompt,b\n"'], itertools.repeat(block, times))
    large = [record.number for record in read_csv(blocks, 100_000) if isinstance(record.columns, LineError)]
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert large == [2]
    assert held < 2_000_000


def test_cells_may_be_as_large_as_a_record() -> None:
    """The limit of Python's csv module, 131,072 characters, does not hold here."""
    record = next(read_csv([b"prompt\n" + b"a" * 500_000], 1_000_000))
    assert record == Record(2, 2, 500_007, {"prompt": "a" * 500_000})


@pytest.mark.parametrize(
    ("whole", "code"),
    [
        (b"", "empty_file"),
        (b"\n\n", "empty_file"),
        (b"Prompt,text\n", "missing_column"),
        (b"prompt;b\n", "missing_column"),
        (b"prompt,b,b\n", "duplicate_column"),
        (b"prompt,,\n", "duplicate_column"),
        (b"prompt," + b"a" * 2000, "invalid_csv"),
        (b'prompt,"b\n', "invalid_csv"),
        (b"\x1f\x8b\0\xff", "invalid_csv"),
    ],
)
def test_a_bad_header_is_a_bad_input(whole: bytes, code: str) -> None:
    """Without a header that names each column once, prompt among them, nothing can be read."""
    with pytest.raises(BadInput) as refused:
        read_header([whole], 1000)
    assert refused.value.code == code
