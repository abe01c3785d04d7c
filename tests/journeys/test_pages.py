"""README, tutorial and how-tos, followed to the letter: each block of code, in order, in a new folder."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import buckets, pages
from tests.journeys.running import Up, end_whatever_is_left

pytestmark = [pytest.mark.journey, pytest.mark.timeout(900)]

DOCS = pages.ROOT / "docs"
FAKE = {"STOKER_ENGINE": "fake", "STOKER_MODEL_NAME": "smollm2-135m-instruct"}
"""What stands for the model: what a page shows is the way to an answer, not the answer."""
RECEIVING = {"STOKER_WEBHOOK_ALLOW_CIDRS": "127.0.0.1/32"}


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


def test_the_tutorial(folder: Path) -> None:
    """From the first prompt to keys: what it says is what comes."""
    with newcomer(folder) as reader:
        assert reader.follow(DOCS / "tutorial.md") > 12


@pytest.mark.parametrize("page", ["README.md", "docs/how-to/openai-client.md", "docs/how-to/webhooks.md"])
def test_a_page_about_using_it(running: Up, folder: Path, page: str) -> None:
    """A service runs; whoever follows the page gets what it shows."""
    with newcomer(folder, running) as reader:
        assert reader.follow(pages.ROOT / page) > 3


@pytest.mark.parametrize("page", ["api", "client", "bulks", "interactive", "operating", "webhooks"])
def test_a_page_of_reference(running: Up, folder: Path, page: str) -> None:
    """Its examples run as they stand, with the files that they name."""
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"Say {n}."}) + "\n" for n in range(5)))
    (folder / "prompts.csv").write_text("prompt\nSay one.\nSay two.\n")
    (folder / "prompts.jsonl.gz").write_bytes(gzip.compress((folder / "prompts.jsonl").read_bytes()))
    with newcomer(folder, running, **{"/srv/stoker": str(running.data)}) as reader:
        assert reader.follow(DOCS / f"{page}.md") > 0


def test_the_page_about_keys(folder: Path) -> None:
    """Keys are made, listed, rotated and revoked before there is any service."""
    with newcomer(folder) as reader:
        assert reader.follow(DOCS / "keys.md") == 1


@pytest.mark.parametrize("page", ["upgrade", "backup"])
def test_a_page_about_looking_after_it(running: Up, folder: Path, page: str) -> None:
    """Restarted and copied while it runs; what is restored runs, too, and knows the job."""
    with newcomer(folder, running) as reader:
        assert reader.follow(DOCS / f"how-to/{page}.md") > 2


def test_the_router(folder: Path) -> None:
    """A server that was there before answers through the queue, under its model's name."""
    with newcomer(folder) as reader:
        assert reader.follow(DOCS / "how-to/router.md") > 3


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
