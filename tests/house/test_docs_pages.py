"""The pages of the documentation: what is generated is up to date, links lead somewhere, blocks of code can be read."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from benchmarks import picture
from stoker import cli_reference
from tests import pages
from webapi import api_reference

ROOT = pages.ROOT
DOCS = ROOT / "docs"
PAGES = [ROOT / name for name in ("README.md", "CHANGELOG.md", "examples/README.md", "benchmarks/README.md")]
PAGES += sorted(DOCS.rglob("*.md"))
ELSEWHERE = {"deploying.md", "cli.md", "cli-bulks.md", "cli-openai.md", "cli-service.md"}
"""Pages whose blocks tests of their own take: test_deploy_page, tests/journeys/test_command_examples."""
CALL = r"(?:^(?:\w+=\S+ )*(?:until |\.venv/bin/)?|[(|] ?|-- )stoker ([a-z][^|;&)#\n]*)"
"""A call of ours in a shell's text, whatever stands before it: variables, a pipe, `$(`, the program that runs it."""
LONGEST = 300
FOLLOWED = (ROOT / "tests/journeys/test_pages.py").read_text(encoding="utf-8")


def named(path: Path) -> str:
    """Return a page's name for reports."""
    return str(path.relative_to(ROOT))


def prose(page: Path) -> Iterator[str]:
    """Yield a page's lines without its blocks of code."""
    inside = False
    for line in page.read_text(encoding="utf-8").splitlines():
        inside ^= line.lstrip().startswith("```")
        if not inside:
            yield line


def anchors(page: Path) -> set[str]:
    """Return what links to a page's headings end in, as GitHub makes it."""
    found: dict[str, int] = {}
    for line in prose(page):
        if heading := re.fullmatch(r"#+ (.*)", line):
            slug = re.sub(r"[^\w\- ]", "", heading[1].lower()).replace(" ", "-")
            found[slug] = found.get(slug, -1) + 1
    return {slug if not number else f"{slug}-{number}" for slug, most in found.items() for number in range(most + 1)}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_to_what_is_there(page: Path) -> None:
    """Each file that a page links to exists, and each heading; pictures too."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", "\n".join(prose(page))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = unquote(target).partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and there.suffix == ".md" and anchor not in anchors(there)):
            broken.append(target)
    assert broken == []


def test_every_page_can_be_found_from_the_first() -> None:
    """Links lead from docs/README.md to each page."""
    seen, ahead = set(), [DOCS / "README.md"]
    while ahead:
        page = ahead.pop()
        if page in seen or not page.exists():
            continue
        seen.add(page)
        linked = re.findall(r"\]\(([^)#\s]+\.md)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        ahead += [(page.parent / link).resolve() for link in linked if ":" not in link]
    assert [named(page) for page in DOCS.rglob("*.md") if page not in seen] == []


def test_no_page_is_too_long() -> None:
    """A page that grows beyond 300 lines is two."""
    lengths = {named(page): len(page.read_text(encoding="utf-8").splitlines()) for page in DOCS.rglob("*.md")}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def test_every_block_can_be_read(tmp_path: Path) -> None:
    """Python compiles and a shell reads, on every page, whether a test follows it or not."""
    scripts = []
    for page in PAGES:
        for block in pages.blocks(page):
            if block.language == pages.PYTHON:
                compile(block.text, f"{named(page)}, line {block.line}", "exec")
            elif block.language == pages.SHELL:
                scripts.append(tmp_path / f"{named(page).replace('/', '-')}-{block.line}.sh")
                scripts[-1].write_text(block.text)
    check = 'for script; do bash -n "$script" || exit 1; done'
    read = subprocess.run(["bash", "-c", check, "-", *scripts], capture_output=True, text=True, check=False)
    assert read.returncode == 0, read.stderr
    assert len(scripts) > 50


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_block_is_run_or_says_why_not(page: Path) -> None:
    """tests/journeys/test_pages.py follows each page that has blocks to run; the others give a reason, in words."""
    program = [block for block in pages.blocks(page) if block.language in {pages.SHELL, pages.PYTHON}]
    if page.name in ELSEWHERE or not program:
        return
    reasons = [reason for block in program for reason in block.marks.get("not run", [])]
    assert [reason for reason in reasons if len(reason.split()) < 3] == []
    followed = re.findall(r'"(?:docs/)?(?:how-to/)?([\w-]+)(?:\.md)?"', FOLLOWED)
    assert page.stem in followed or len(reasons) == len(program)


def test_every_command_is_one_that_there_is() -> None:
    """Each `stoker ...` on every page, also where no test runs it, names a command, and options that this one has."""
    known = {path: {name for param in one.params for name in param.opts} for path, one in cli_reference.commands()}
    wrong, seen = [], 0
    for page in PAGES:
        shell = "".join(block.text for block in pages.blocks(page) if block.language == pages.SHELL)
        for call in re.findall(CALL, shell.replace("\\\n", " "), flags=re.MULTILINE):
            words = call.split()
            options = next((known[path] for n in (2, 1) if (path := tuple(words[:n])) in known), None)
            told = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
            seen += 1
            if options is None or told - options - {"--help"}:
                wrong.append(f"{named(page)}: stoker {call}")
    assert wrong == []
    assert seen > 150


def test_every_target_of_make_is_one_that_there_is() -> None:
    """Each `make ...` in a block of a page."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    text = "\n".join(block.text for page in PAGES for block in pages.blocks(page))
    named = set(re.findall(r"^make ([a-z]+)", text, flags=re.MULTILINE))
    assert {"demo", "test", "setup", "chaos", "bench"} <= named <= targets


def test_pages_do_not_get_in_each_others_way() -> None:
    """No two write a bulk's results to the same file: a bulk refuses to go on with those of another one.

    A newcomer follows README, tutorial and how-tos in one folder, one after the other.
    """
    followed = [ROOT / "README.md", DOCS / "tutorial.md", *(DOCS / "how-to").glob("*.md")]
    outputs = [name for page in followed for name in re.findall(r"stoker bulk run .* -o (\S+)", page.read_text())]
    assert len(outputs) > 3
    assert sorted(outputs) == sorted(set(outputs))


def test_the_reference_of_the_api_is_what_is_generated() -> None:
    """docs/api-reference.md tells of every call as the service's own document does; `make docs` writes it."""
    document = api_reference.document()
    made = api_reference.page(document)
    assert (DOCS / api_reference.PAGE).read_text(encoding="utf-8") == made
    calls = [f"`{method.upper()} {path}`" for path, calls in document["paths"].items() for method in calls]
    assert len(calls) > 40
    assert [call for call in calls if f"| {call} |" not in made] == []


def test_the_picture_of_the_benchmarks_is_what_is_drawn() -> None:
    """docs/images/benchmark.svg shows the results that are in benchmarks/results; `make docs` draws it."""
    assert picture.PICTURE.read_text(encoding="utf-8") == picture.drawn()


def test_a_mark_that_is_none_is_told(tmp_path: Path) -> None:
    """A misspelt comment above a block does not silently run it, or leave it out."""
    page = tmp_path / "page.md"
    page.write_text("<!-- not-run: because -->\n```sh\nfalse\n```\n")
    with pytest.raises(ValueError, match=r"page\.md:2"):
        list(pages.blocks(page))


def test_a_page_that_lies_is_caught(tmp_path: Path) -> None:
    """A command that fails, and an output that is not as shown, fail the page."""
    (tmp_path / "new").mkdir()
    with pages.Reader(tmp_path / "new", pages.environment(tmp_path / "new")) as reader:
        (page := tmp_path / "page.md").write_text("<!-- shows: good -->\n```sh\necho good\n```\n")
        assert reader.follow(page) == 1
        page.write_text("```sh\nfalse\necho good\n```\n")
        with pytest.raises(AssertionError, match="failed, or took more"):
            reader.follow(page)
    (tmp_path / "other").mkdir()
    with pages.Reader(tmp_path / "other", pages.environment(tmp_path / "other")) as reader:
        (page := tmp_path / "page.md").write_text("<!-- shows: 7 -->\n```python\nprint(6)\n```\n")
        with pytest.raises(AssertionError, match="shows no '7'"):
            reader.follow(page)
