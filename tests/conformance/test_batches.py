"""Batches: made, listed, looked at; what their documents say."""

from __future__ import annotations

import re
import time

import pytest

from .conftest import Server
from .kit import BATCH_KEYS, CHAT, Api, Ended, fresh, in_order, moments, refused

row = pytest.mark.row

DAY = 86_400
TIMES = {"in_progress", "expires", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled"}


@pytest.fixture(scope="module")
def nowhere(api: Api) -> str:
    """Return the id of a file that is gone: its batches end at once, without an engine."""
    return api.unknown_file()


@pytest.fixture(scope="module")
def many(api: Api, nowhere: str) -> list[str]:
    """Make 22 batches, one after the other."""
    return [api.create(nowhere)["id"] for _ in range(22)]


# POST /v1/batches


@row("batches.create")
def test_a_new_batch(api: Api) -> None:
    """A batch is answered at once: `validating`, nothing counted, to expire in 24 hours."""
    file_id, before = api.upload(b"{}\n")["id"], time.time()
    made = api.create(file_id)
    assert re.fullmatch(r"batch_\w+", made["id"])
    assert made["object"] == "batch"
    assert made["status"] == "validating"
    assert (made["input_file_id"], made["endpoint"], made["completion_window"]) == (file_id, CHAT, "24h")
    assert made["request_counts"] == {"total": 0, "completed": 0, "failed": 0}
    assert abs(made["created_at"] - before) < 60
    assert abs(made["expires_at"] - made["created_at"] - DAY) <= 1
    empty = ["errors", "output_file_id", "error_file_id", *(f"{name}_at" for name in TIMES - {"expires"})]
    assert {name: made[name] for name in empty} == dict.fromkeys(empty)


@row("batches.create")
@pytest.mark.parametrize(
    "metadata",
    [{"a": "b"}, {f"{n:064}": "v" * 512 for n in range(16)}, {"Größe": "数据"}],
    ids=["one", "as much as fits", "unicode"],
)
def test_metadata_comes_back(api: Api, nowhere: str, metadata: dict[str, str]) -> None:
    """Up to 16 pairs, keys of up to 64 letters, values of up to 512, come back as they were given."""
    made = api.create(nowhere, metadata=metadata)
    assert made["metadata"] == metadata
    assert api.get(f"/batches/{made['id']}")["metadata"] == metadata


@row("batches.create")
def test_no_metadata(api: Api, nowhere: str) -> None:
    """Without metadata it is null or empty."""
    assert not api.create(nowhere)["metadata"]


@row("batches.create")
@pytest.mark.parametrize("seconds", [3600, 30 * DAY])
def test_output_expires_after(api: Api, seconds: int) -> None:
    """`output_expires_after`, from 3600 to 2592000 seconds, counts from the output file's own making."""
    ended = api.run(
        api.line("a"), api.refused_line("b"), output_expires_after={"anchor": "created_at", "seconds": seconds}
    )
    for name in ("output_file_id", "error_file_id"):
        file = api.get(f"/files/{ended.batch[name]}")
        assert file["expires_at"] == file["created_at"] + seconds


ENDPOINTS = {
    "/v1/chat/completions": ({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}, "chat.completion"),
    "/v1/completions": ({"prompt": "hi", "max_tokens": 8}, "text_completion"),
    "/v1/embeddings": ({"input": "hi"}, "list"),
    "/v1/responses": ({"input": "hi", "max_output_tokens": 16}, "response"),
}


@row("batches.create")
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_each_endpoint(api: Api, server: Server, endpoint: str) -> None:
    """A batch may be made for chats, completions, embeddings, responses; each answer is the endpoint's own object."""
    server.serves(endpoint)
    body, kind = ENDPOINTS[endpoint]
    model = server.embedding_model if endpoint == "/v1/embeddings" else server.model
    line = {"custom_id": "a", "method": "POST", "url": endpoint, "body": {"model": model, **body}}
    ended = api.run(line, endpoint=endpoint)
    assert ended.batch["status"] == "completed"
    assert ended.batch["endpoint"] == endpoint
    (answer,) = ended.output
    assert answer["response"]["status_code"] == 200
    assert answer["response"]["body"]["object"] == kind


# What is refused


@row("errors.request")
@pytest.mark.parametrize("endpoint", ["/v1/nonsense", "chat", ""])
def test_bad_endpoint(api: Api, nowhere: str, endpoint: str) -> None:
    """An endpoint that there is not is refused as `invalid_value`, with those that there are."""
    error = refused(api.try_create(nowhere, endpoint=endpoint), 400, code="invalid_value", param="endpoint")
    assert CHAT in error["message"]


@row("errors.request")
@pytest.mark.parametrize("window", ["7m", "1 day", ""])
def test_bad_completion_window(api: Api, nowhere: str, window: str) -> None:
    """Another window than 24h is refused as `invalid_value`, with those that there are."""
    error = refused(
        api.try_create(nowhere, completion_window=window), 400, code="invalid_value", param="completion_window"
    )
    assert "24h" in error["message"]


@row("errors.request")
@pytest.mark.parametrize("name", ["input_file_id", "endpoint", "completion_window"])
def test_a_batch_without_its_parameters(api: Api, nowhere: str, name: str) -> None:
    """`input_file_id`, `endpoint` and `completion_window` are all needed; the error names the missing one."""
    body = {"input_file_id": nowhere, "endpoint": CHAT, "completion_window": "24h"}
    del body[name]
    refused(api.ask("POST", "/batches", json=body), 400, param=name)


@row("errors.request")
@pytest.mark.parametrize("value", [5, 1.5, True, None, ["a"], {"a": "b"}], ids=str)
def test_metadata_of_other_types(api: Api, nowhere: str, value: object) -> None:
    """A value of metadata that is no text is refused as `invalid_type`, and the error names its key."""
    metadata = {"good": "a", "bad": value}
    refused(api.try_create(nowhere, metadata=metadata), 400, code="invalid_type", param="metadata.bad")


@row("errors.request")
@pytest.mark.parametrize(
    "metadata",
    [{str(n): "" for n in range(17)}, {"k" * 65: "v"}, {"k": "v" * 513}, ["a"], "a"],
    ids=["17 pairs", "key of 65", "value of 513", "list", "text"],
)
def test_too_much_metadata(api: Api, nowhere: str, metadata: object) -> None:
    """Metadata beyond 16 pairs, keys of 64 and values of 512 letters, or none at all, is refused."""
    error = refused(api.try_create(nowhere, metadata=metadata), 400)
    assert error["param"].startswith("metadata")


@row("errors.request")
@pytest.mark.parametrize(
    "policy",
    [
        {"anchor": "created_at", "seconds": 3599},
        {"anchor": "created_at", "seconds": 2_592_001},
        {"anchor": "created_at", "seconds": "soon"},
        {"anchor": "last_active_at", "seconds": 3600},
        {"seconds": 3600},
        {"anchor": "created_at"},
        "never",
    ],
    ids=["too soon", "too late", "no number", "other anchor", "no anchor", "no seconds", "text"],
)
def test_bad_output_expires_after(api: Api, nowhere: str, policy: object) -> None:
    """`output_expires_after` outside 3600 to 2592000 seconds, or with another anchor, is refused."""
    error = refused(api.try_create(nowhere, output_expires_after=policy), 400)
    assert error["param"].startswith("output_expires_after")


# GET /v1/batches


@row("batches.list")
def test_twenty_at_once(api: Api, many: list[str]) -> None:
    """Without `limit` the newest 20 come; the page says its first id, its last and whether there are more."""
    page = api.get("/batches")
    ids = [batch["id"] for batch in page["data"]]
    assert page["object"] == "list"
    assert ids == many[::-1][:20]
    assert (page["first_id"], page["last_id"], page["has_more"]) == (ids[0], ids[-1], True)


@row("batches.list")
@pytest.mark.parametrize("limit", [1, 7, 100])
def test_batches_page_by_page(api: Api, many: list[str], limit: int) -> None:
    """`after` goes on behind an id: page by page every batch comes once, whatever the `limit` from 1 to 100."""
    seen: list[str] = []
    after: dict[str, str] = {}
    while many[0] not in seen:
        page = api.get("/batches", limit=limit, **after)
        ids = [batch["id"] for batch in page["data"]]
        assert 1 <= len(ids) <= limit
        assert page["has_more"] or many[0] in ids
        seen += ids
        after = {"after": ids[-1]}
    assert len(seen) == len(set(seen))
    assert [batch_id for batch_id in seen if batch_id in many] == many[::-1]


@row("batches.list")
@pytest.mark.parametrize("limit", ["0", "101", "-1", "many"])
def test_bad_limit(api: Api, limit: str) -> None:
    """A `limit` outside 1 to 100 is refused."""
    refused(api.ask("GET", "/batches", params={"limit": limit}), 400, param="limit")


@row("batches.list")
def test_a_list_shows_whole_batches(api: Api, good: Ended) -> None:
    """A batch in the list is the same document as by its id."""
    listed = api.get("/batches", limit=100)["data"]
    found = [batch for batch in listed if batch["id"] == good.batch["id"]]
    assert found in ([], [good.batch])
    assert all(batch == api.get(f"/batches/{batch['id']}") for batch in listed[-2:])


# One batch


@row("batches.one")
def test_an_unknown_batch(api: Api) -> None:
    """An id that never was is 404, to look at and to cancel."""
    refused(api.ask("GET", f"/batches/{fresh('batch_')}"), 404)
    refused(api.ask("POST", f"/batches/{fresh('batch_')}/cancel"), 404)


@row("batches.one")
def test_an_ended_batch_stays(api: Api, good: Ended, failed: Ended) -> None:
    """A batch that has ended stays as it is."""
    for ended in (good, failed):
        assert api.get(f"/batches/{ended.batch['id']}") == ended.batch


# The object


@row("batches.object")
@pytest.mark.parametrize("which", ["good", "mixed", "bad", "failed", "cancelled"])
def test_the_fields_of_a_batch(request: pytest.FixtureRequest, which: str) -> None:
    """A batch has all of its fields, however it ended; times are whole seconds or null."""
    batch = request.getfixturevalue(which).batch
    assert batch.keys() >= BATCH_KEYS
    assert batch["object"] == "batch"
    assert type(batch["created_at"]) is int
    assert all(batch[f"{name}_at"] is None or type(batch[f"{name}_at"]) is int for name in TIMES)
    assert set(batch["request_counts"]) == {"total", "completed", "failed"}
    assert batch[f"{batch['status']}_at"] is not None
    ends = {"completed", "failed", "expired", "cancelled"} - {batch["status"]}
    assert {batch[f"{name}_at"] for name in ends} == {None}


@row("batches.object")
def test_a_completed_batch(good: Ended, server: Server) -> None:
    """A batch that completed has counted its lines, has no errors, and names its model."""
    assert good.batch["status"] == "completed"
    assert good.batch["request_counts"] == {"total": 3, "completed": 3, "failed": 0}
    assert good.batch["errors"] is None
    assert good.batch["metadata"] == {"run": "good"}
    assert good.batch["model"] is None or good.batch["model"].startswith(server.model)


@row("batches.object")
def test_usage_is_the_sum_of_its_lines(mixed: Ended) -> None:
    """`usage` is what the output lines say, added up."""
    spent = [line["response"]["body"]["usage"] for line in mixed.output]
    usage = mixed.batch["usage"]
    assert usage["input_tokens"] == sum(one["prompt_tokens"] for one in spent)
    assert usage["output_tokens"] == sum(one["completion_tokens"] for one in spent)
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert 0 <= usage["input_tokens_details"]["cached_tokens"] <= usage["input_tokens"]
    assert 0 <= usage["output_tokens_details"]["reasoning_tokens"] <= usage["output_tokens"]


@row("batches.object")
def test_a_failed_batch(failed: Ended) -> None:
    """A batch that failed its validation ran nothing: errors, no files, nothing counted as done."""
    batch = failed.batch
    assert batch["status"] == "failed"
    assert batch["errors"]["object"] == "list"
    assert all(set(fault) == {"code", "message", "param", "line"} for fault in failed.faults)
    assert (batch["output_file_id"], batch["error_file_id"]) == (None, None)
    assert (batch["request_counts"]["completed"], batch["request_counts"]["failed"]) == (0, 0)


@row("batches.object")
def test_the_files_that_a_batch_writes(api: Api, mixed: Ended) -> None:
    """The files of a batch have the purpose `batch_output`, are listed under it, and are named after what they hold."""
    listed = {file["id"] for file in api.get("/files", purpose="batch_output")["data"]}
    for kind, name in (("output", "output_file_id"), ("error", "error_file_id")):
        file = api.get(f"/files/{mixed.batch[name]}")
        assert (file["purpose"], file["status"]) == ("batch_output", "processed")
        assert re.fullmatch(rf"batch_{kind}_\w+\.jsonl", file["filename"])
        assert file["bytes"] == len(api.content(file["id"]))
        assert file["id"] in listed


# The states


@row("batches.states")
@pytest.mark.parametrize(
    ("which", "status"),
    [("good", "completed"), ("bad", "completed"), ("failed", "failed"), ("cancelled", "cancelled")],
)
def test_the_way_to_each_end(request: pytest.FixtureRequest, which: str, status: str) -> None:
    """A batch is seen in no other order than that of its states, and its times follow it."""
    ended = request.getfixturevalue(which)
    assert ended.batch["status"] == status
    assert in_order(ended.seen), ended.seen
    assert moments(ended.batch) == sorted(moments(ended.batch))


@row("batches.states")
def test_a_completed_batch_went_through_all(good: Ended) -> None:
    """A batch that completed was in progress, and finalizing."""
    assert good.batch["in_progress_at"] is not None
    assert good.batch["finalizing_at"] is not None


@row("batches.states")
def test_counts_only_grow(api: Api) -> None:
    """While a batch runs, its total stands and what is done only grows, up to the total."""
    lines = [*(api.line(f"{n}") for n in range(10)), api.slow_line("slow", 200)]
    seen = [batch["request_counts"] for batch in api.states(api.start(*lines)) if batch["status"] != "validating"]
    assert {counts["total"] for counts in seen} == {11}
    done = [counts["completed"] + counts["failed"] for counts in seen]
    assert done == sorted(done)
    assert done[-1] == 11
