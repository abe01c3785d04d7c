"""An upload to its lines: any blocks, any line as the place to go on from, bounded memory, bad files."""

from __future__ import annotations

import gzip
import itertools
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.lines import BLOCK, BOM, BadInput, Line, Seen, gunzipped, read_lines, skipping

MB = 1_000_000

inputs = st.lists(st.sampled_from([b"a", b"bc" * 4, b" ", b"\r", b"\n", b"\r\n", b"\n\n", BOM, b"\xff", b"\0"])).map(
    b"".join
)


@st.composite
def cut(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """Draw an input, and the same in blocks of any size, empty ones too."""
    whole = draw(inputs)
    ends = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    return whole, [whole[start:end] for start, end in itertools.pairwise([0, *ends, len(whole)])]


def expected(whole: bytes, most: int) -> list[Line]:
    """Return the lines of an input, found the plain way."""
    lines, end = [], 0
    for number, raw in enumerate(_plain(whole), 1):
        start, end = end, end + len(raw)
        data = raw.removesuffix(b"\n").removesuffix(b"\r")
        data = data.removeprefix(BOM) if start == 0 else data
        if len(data) > most:
            lines.append(Line(number, end, None))
        elif data.strip():
            lines.append(Line(number, end, data))
    return lines


def _plain(whole: bytes) -> list[bytes]:
    pieces = whole.split(b"\n")
    return [*(piece + b"\n" for piece in pieces[:-1]), *filter(None, pieces[-1:])]


@contextmanager
def memory_below(most: int) -> Iterator[None]:
    """Fail when more than so many bytes are held at once."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


@given(cut(), st.integers(1, 12))
def test_any_blocks_give_the_same_lines(given_input: tuple[bytes, list[bytes]], most: int) -> None:
    """However the bytes come, the lines, their numbers, ends and the final position are the same."""
    whole, blocks = given_input
    reader = read_lines(blocks, most)
    assert list(reader) == expected(whole, most)
    assert (reader.offset, reader.number) == (len(whole), len(_plain(whole)))


@given(cut(), st.integers(1, 12))
def test_reading_goes_on_behind_any_line(given_input: tuple[bytes, list[bytes]], most: int) -> None:
    """From the position behind any line the rest comes, with the same numbers and ends."""
    _, blocks = given_input
    reader, lines = read_lines(blocks, most), list(read_lines(blocks, most))
    for taken, line in enumerate(reader, 1):
        assert (reader.offset, reader.number) == (line.end, line.number)
        rest = read_lines(skipping(blocks, line.end), most, offset=line.end, number=line.number)
        assert list(rest) == lines[taken:]


def test_lines_can_be_taken_a_few_at_a_time() -> None:
    """A reader goes on where it was left."""
    reader = read_lines([b"a\nb\nc\n"], 10)
    assert next(reader).data == b"a"
    assert [line.data for line in itertools.islice(reader, 1)] == [b"b"]
    assert [line.data for line in reader] == [b"c"]


@pytest.mark.parametrize(
    ("whole", "lines", "number"),
    [
        (b"", [], 0),
        (b"\n \n\t\r\n", [], 3),
        (b"\r\n" * 3, [], 3),
        (BOM, [], 1),
        (BOM + b"a", [(1, 4, b"a")], 1),
        (b"a\r\nb\r\n", [(1, 3, b"a"), (2, 6, b"b")], 2),
        (b"a\n\nb", [(1, 2, b"a"), (3, 4, b"b")], 3),
        (b"a\n" + BOM + b"b\n", [(1, 2, b"a"), (2, 7, BOM + b"b")], 2),
        (b"\x00\xff\x1f\x8b", [(1, 4, b"\x00\xff\x1f\x8b")], 1),
    ],
)
def test_odd_files(whole: bytes, lines: list[tuple[int, int, bytes]], number: int) -> None:
    """Empty, blank, CRLF, a byte order mark, no newline at the end, garbage: each has its lines."""
    reader = read_lines([whole], 10)
    assert list(reader) == [Line(*line) for line in lines]
    assert (reader.number, reader.offset) == (number, len(whole))


def test_a_line_of_exactly_the_limit_is_taken() -> None:
    """Only what is between byte order mark and newline counts."""
    assert [line.data for line in read_lines([BOM + b"x" * 10 + b"\r\n" + b"y" * 11 + b"\r\nz"], 10)] == [
        b"x" * 10,
        None,
        b"z",
    ]


@pytest.mark.parametrize("block", [b"x" * 65536, b"x" * 5_000_000])
def test_a_huge_line_is_never_held(block: bytes) -> None:
    """A line of 50 MB is counted, named and passed by; the next one is read."""
    times = 50 * MB // len(block)
    with memory_below(8 * MB):
        lines = list(read_lines(itertools.chain(itertools.repeat(block, times), [b"\nb"]), MB))
    assert lines == [Line(1, times * len(block) + 1, None), Line(2, times * len(block) + 2, b"b")]


def test_ten_million_blank_lines_take_seconds_and_no_memory() -> None:
    """Nothing but newlines, in one block: counted within seconds."""
    whole = b"\n" * (10 * MB)
    started = time.process_time()  # of this process: the machine may be busy
    reader = read_lines([whole], MB)
    assert not any(line.data for line in reader)
    assert reader.number == reader.offset == 10 * MB
    assert time.process_time() - started < 10
    with memory_below(16 * MB):
        assert not any(line.data for line in read_lines([whole[:MB]], MB))


def test_a_long_stretch_of_blank_lines_is_told_of_as_it_goes() -> None:
    """For each BLOCK of it there is a place to go on from; a shorter one is passed by in silence."""
    whole = b"a\n" + b" \r\n" * BLOCK + b"b\n" + b"\n" * (BLOCK - 1) + b"c"
    lines = list(read_lines([whole], MB))
    assert [line.data for line in lines if line.data != b""] == [b"a", b"b", b"c"]
    stretch = lines[1:-2]
    assert 1 <= len(stretch) <= 3
    assert all(line.data == b"" and line.end == 2 + 3 * (line.number - 1) for line in stretch)
    for taken, line in enumerate(lines, 1):
        rest = read_lines(skipping([whole], line.end), MB, offset=line.end, number=line.number)
        assert [found for found in rest if found.data] == [found for found in lines[taken:] if found.data]


@given(cut(), st.lists(st.integers(0, 200), max_size=3), st.integers(1, 7))
def test_gzip_of_any_members_in_any_blocks(given_input: tuple[bytes, list[bytes]], zeros: list[int], size: int) -> None:
    """What went in comes out: several members, zeros between them, blocks of any size."""
    whole, blocks = given_input
    packed = b"".join(gzip.compress(block) + b"\0" * (zeros[0] if zeros else 0) for block in blocks)
    fed = [packed[at : at + size] for at in range(0, len(packed), size)]
    assert b"".join(gunzipped(fed, len(whole))) == whole


def test_a_gzip_bomb_is_cut_off() -> None:
    """Of a small file that becomes a huge one no more comes out than is allowed, in small blocks."""
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join([*(packer.compress(b"\0" * MB) for _ in range(200)), packer.flush()])
    out: list[int] = []
    with memory_below(4 * MB), pytest.raises(BadInput) as refused:
        out.extend(map(len, gunzipped([bomb], 10 * MB)))
    assert refused.value.code == "file_too_large"
    assert 0 < sum(out) <= 10 * MB
    assert max(out) <= BLOCK


@pytest.mark.parametrize("members", [1, 400])
def test_what_becomes_too_much_larger_is_cut_off(members: int) -> None:
    """A bomb ends soon behind the first megabyte, also one of many members, however much may come out of a file."""
    packed = gzip.compress(b"a" * MB) * members * 10
    out: list[int] = []
    with memory_below(4 * MB), pytest.raises(BadInput) as refused:
        out.extend(map(len, gunzipped([packed], 20_000 * MB, 200.0)))
    assert refused.value.code == "gzip_ratio"
    assert MB <= sum(out) < 5 * MB


@pytest.mark.parametrize(("size", "ratio"), [(MB, 2.0), (20 * MB, 2000.0)])
def test_what_is_allowed_comes_out_whole(size: int, ratio: float) -> None:
    """Up to a megabyte whatever the ratio; beyond it below the ratio."""
    assert sum(map(len, gunzipped([gzip.compress(b"a" * size)], 100 * MB, ratio))) == size


def test_ordinary_lines_are_far_from_the_limit() -> None:
    """Prompts that have much in common are packed to a tenth or so: nobody meets the limit by chance."""
    lines = b"".join(
        b'{"custom_id": "%d", "prompt": "Translate the word number %d"}\n' % (n, n * 7919) for n in range(99_999)
    )
    assert sum(map(len, gunzipped([gzip.compress(lines)], 100 * MB, 50.0))) == len(lines)


@pytest.mark.parametrize(
    "packed",
    [
        b"not gzip at all",
        b"\x1f",
        b"\x1f\x8b\x08\x00",
        gzip.compress(b"abc" * 1000)[:-1],
        gzip.compress(b"abc" * 1000)[:20],
        gzip.compress(b"abc") + b"behind it",
        gzip.compress(b"abc")[:-8] + b"\0" * 8,
    ],
)
def test_broken_gzip_is_refused(packed: bytes) -> None:
    """What is no gzip, is cut off, has something behind it or a wrong checksum is a bad input."""
    with pytest.raises(BadInput) as refused:
        list(gunzipped([packed], MB))
    assert refused.value.code == "invalid_gzip"
    assert str(refused.value) == refused.value.message


def test_many_empty_members_are_no_trap() -> None:
    """A file of hundreds of thousands of empty members is read in seconds."""
    started = time.process_time()  # of this process: the machine may be busy
    assert list(gunzipped([gzip.compress(b"") * 200_000], 10)) == []
    assert time.process_time() - started < 10


@given(st.lists(st.binary(max_size=5)), st.integers(0, 30))
def test_skipping_drops_the_first_bytes(blocks: list[bytes], size: int) -> None:
    """What is left begins behind so many bytes, and is empty when there are no more."""
    assert b"".join(skipping(blocks, size)) == b"".join(blocks)[size:]


@given(st.lists(st.text(max_size=2)), st.integers(1, 5))
def test_duplicates_are_found_exactly(ids: list[str], most: int) -> None:
    """Each line whose id came before is named with the first such line, in the order of the lines."""
    seen, first, twice = Seen(), dict[str, int](), []
    for line, custom_id in enumerate(ids, 1):
        seen.add(custom_id, line)
        if first.setdefault(custom_id, line) != line:
            twice.append((line, first[custom_id]))
    assert seen.duplicates(most) == twice[:most]


def test_the_memory_of_ids_is_small() -> None:
    """Ids of 10 kB each take no more than short ones, and a line seen twice (after a crash) is no duplicate."""
    seen = Seen()
    with memory_below(3 * MB):
        for line in range(1, 100_001):
            seen.add(f"{line}", line)
        for line in range(1, 101):
            seen.add("x" * 10_000 + str(line), 100_000 + line)
            seen.add("x" * 10_000 + str(line), 100_000 + line)
    assert seen.duplicates(10) == []
