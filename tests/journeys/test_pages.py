"""README, tutorial and how-tos, followed to the letter: each block of code, in order, in a new folder."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from tests import buckets, pages
from tests.journeys.running import Up, end_whatever_is_left

pytestmark = [pytest.mark.journey, pytest.mark.timeout(900)]

DOCS = pages.ROOT / "docs"
FAKE = {"STOKER_ENGINE": "fake", "STOKER_MODEL_NAME": "smollm2-135m-instruct"}
"""What stands for the model: what a page shows is the way to an answer, not the answer."""
RECEIVING = {"STOKER_WEBHOOK_ALLOW_CIDRS": "127.0.0.1/32"}
STARTING = {"docs/tutorial.md": 18, "docs/how-to/router.md": 5, "docs/keys.md": 1}
"""Pages that start what they need, or need nothing that runs, each with how many blocks are run at least."""
USING = {
    "README.md": 5,
    "docs/how-to/openai-client.md": 4,
    "docs/how-to/webhooks.md": 8,
    "docs/api.md": 5,
    "docs/client.md": 7,
    "docs/bulks.md": 2,
    "docs/interactive.md": 2,
    "docs/operating.md": 1,
    "docs/webhooks.md": 2,
}
"""Pages for which a service runs."""
TENDING = {"docs/how-to/upgrade.md": 3, "docs/how-to/backup.md": 5}
"""Pages that restart this service, or copy it: one after the other, when nobody else uses it."""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Return a clean folder; what still runs in it after the test is ended."""
    yield tmp_path
    end_whatever_is_left(tmp_path)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Return a service for the pages that find one."""
    data = tmp_path_factory.mktemp("service")
    try:
        up = Up(data, "--engine", "fake", **FAKE | RECEIVING)
        up.address = up.url()
        yield up
        assert up.end() == 0
    finally:
        end_whatever_is_left(data)


def newcomer(folder: Path, up: Up | None = None, **places: str) -> pages.Reader:
    """Return a reader who finds a service at the usual place, or one who is going to start it there."""
    port = up.address.rpartition(":")[2] if up else str(pages.free_port())
    known = FAKE | {"STOKER_PORT": port, "STOKER_URL": f"http://127.0.0.1:{port}"}
    if up:
        known["STOKER_DATA"] = str(up.data)
    return pages.Reader(folder, pages.environment(folder, **known), {"8000": port}, places)


def follow(page: str, folder: Path, up: Up | None = None, after: Sequence[Future[int]] = ()) -> int:
    """Follow a page in a new folder that has the files which pages of reference name, once others have been followed.

    Return how many blocks ran.
    """
    wait(after)
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"Say {n}."}) + "\n" for n in range(5)))
    (folder / "prompts.csv").write_text("prompt\nSay one.\nSay two.\n")
    (folder / "prompts.jsonl.gz").write_bytes(gzip.compress((folder / "prompts.jsonl").read_bytes()))
    try:
        with newcomer(folder, up, **({"/srv/stoker": str(up.data)} if up else {})) as reader:
            return reader.follow(pages.ROOT / page)
    finally:
        end_whatever_is_left(folder)


@pytest.fixture(scope="module")
def followed(running: Up, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Future[int]]]:
    """Return what comes of each page. Several readers at once: most of the time a program is being started."""

    def begun(page: str, *told: Any) -> Future[int]:
        return readers.submit(follow, page, tmp_path_factory.mktemp("page"), *told)

    with ThreadPoolExecutor(4) as readers:
        pages_of = {page: begun(page) for page in STARTING} | {page: begun(page, running) for page in USING}
        # The others' service is not restarted under their feet, nor copied in the middle of that.
        after = [pages_of[page] for page in USING]
        for page in TENDING:
            pages_of[page] = begun(page, running, after)
            after = [pages_of[page]]
        yield pages_of


@pytest.mark.parametrize("page", STARTING)
def test_a_page_that_begins_with_nothing(followed: Mapping[str, Future[int]], page: str) -> None:
    """Whoever follows it starts what it needs, and gets what it shows."""
    assert followed[page].result() >= STARTING[page]


@pytest.mark.parametrize("page", USING)
def test_a_page_about_using_it(followed: Mapping[str, Future[int]], page: str) -> None:
    """A service runs, which others use too; the page's examples run as they stand, and show what it says."""
    assert followed[page].result() >= USING[page]


@pytest.mark.postgres
@pytest.mark.redis
def test_postgresql_a_bucket_and_a_second_machine(folder: Path, postgres_url: str, redis_url: str) -> None:
    """Files lie in the bucket; an engine that knows nothing but the addresses joins."""
    with buckets.bucket() as bucket:
        places = {
            "postgresql://stoker:secret@db.example.com/stoker": postgres_url,
            "redis://redis.example.com:6379/0": redis_url,
            "s3://my-bucket": f"s3://{buckets.BUCKET}",
            "https://s3.example.com": f"{bucket.endpoint} AWS_ALLOW_HTTP=true",
        }
        with newcomer(folder, **places) as reader:
            assert reader.follow(DOCS / "how-to/postgresql-and-s3.md") > 3
            assert bucket.stored()
            reader.interrupt()
            assert reader.follow(DOCS / "how-to/several-machines.md") > 3


@pytest.mark.parametrize("page", TENDING)
def test_a_page_about_looking_after_it(followed: Mapping[str, Future[int]], page: str) -> None:
    """Restarted and copied while it runs; what is restored runs, too, and knows the job."""
    assert followed[page].result() >= TENDING[page]
